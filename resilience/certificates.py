"""Certificate authorities of an hour's life, and files with what they issue."""

import os
import socket
import ssl
from pathlib import Path

import trustme

from nablad import Tls

HOST = "127.0.0.1"


class Authorities:
    """Two authorities, an old one and its successor, in files.

    Attributes:
        both: the file of both authorities' certificates.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._made = {name: trustme.CA() for name in ("old", "new")}
        for name, authority in self._made.items():
            self.file(name).write_bytes(authority.cert_pem.bytes())
        self.both = self.file("both")
        self.both.write_bytes(self.file("old").read_bytes() + self.file("new").read_bytes())

    def file(self, name: str) -> Path:
        """The file of one authority's certificate, `old` or `new`."""
        return self._directory / f"ca-{name}.pem"

    def client(self, name: str) -> Tls:
        """What a client needs whose certificate is of the authority `name`, and who trusts servers of both."""
        certificate, key = (self._directory / f"client-{name}-{part}.pem" for part in ("certificate", "key"))
        issued = self._made[name].issue_cert("load.test")
        certificate.write_bytes(issued.cert_chain_pems[0].bytes())
        key.write_bytes(issued.private_key_pem.bytes())
        return Tls(ca=self.both, certificate=certificate, key=key)

    def issue(self, name: str, certificate: Path, key: Path) -> bytes:
        """Has a server's files hold another certificate, of the authority `name`; gives it as DER."""
        issued = self._made[name].issue_cert(HOST)
        replace(certificate, issued.cert_chain_pems[0].bytes())
        replace(key, issued.private_key_pem.bytes())
        return ssl.PEM_cert_to_DER_cert(issued.cert_chain_pems[0].bytes().decode())


def replace(path: Path, content: bytes) -> None:
    """Puts a new file in the place of an old one, in one step."""
    scratch = path.with_name(f"{path.name}.new")
    scratch.write_bytes(content)
    scratch.chmod(0o600)
    os.replace(scratch, path)  # noqa: PTH105 - of two paths, as it is called everywhere


def shown(port: int, tls: Tls) -> bytes:
    """The certificate, as DER, that a server shows to a new connection."""
    context = ssl.create_default_context(cafile=tls.ca)
    if tls.certificate is not None:
        context.load_cert_chain(tls.certificate, tls.key)
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection((HOST, port), timeout=30) as plain,
        context.wrap_socket(plain, server_hostname=HOST) as secured,
    ):
        return secured.getpeercert(binary_form=True) or b""
