"""Certificates and identities for tests: made anew each time, and worth nothing anywhere else."""

import hashlib
import json
import os
import socket
import ssl
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import trustme

from nablad import Tls
from nablad_server.serving.identities import Identity
from nablad_server.tokens import entry

OTHERS = ("certificate", "calls", "streams", "rate", "unread_bytes", "share")


def replace(path: Path, content: bytes) -> None:
    """Puts a new file in the place of an old one, at once."""
    scratch = path.with_name(f"{path.name}.new")
    scratch.write_bytes(content)
    scratch.chmod(0o600)
    os.replace(scratch, path)  # noqa: PTH105 - of two paths, as it is called everywhere


class Certificates:
    """A certificate authority, and a server certificate of it, in files.

    Attributes:
        authority: it vouches for all.
        ca, certificate, key: the files.
    """

    def __init__(self, directory: Path, *names: str) -> None:
        self.authority = trustme.CA()
        self._names = names or ("127.0.0.1", "localhost")
        self.ca, self.certificate, self.key = (directory / f"{name}.pem" for name in ("ca", "certificate", "key"))
        self._directory = directory
        self.ca.write_bytes(self.authority.cert_pem.bytes())
        self.renew()

    def renew(self) -> None:
        """Has the files hold another certificate."""
        issued = self.authority.issue_cert(*self._names)
        replace(self.certificate, b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        replace(self.key, issued.private_key_pem.bytes())

    def der(self) -> bytes:
        """The server's certificate as the file has it."""
        first = self.certificate.read_text().split("-----END CERTIFICATE-----")[0] + "-----END CERTIFICATE-----\n"
        return ssl.PEM_cert_to_DER_cert(first)

    def client(self, name: str) -> Tls:
        """What a client needs whose certificate has this name."""
        issued = self.authority.issue_cert(name)
        certificate, key = (self._directory / f"{name}-{part}.pem" for part in ("certificate", "key"))
        certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        key.write_bytes(issued.private_key_pem.bytes())
        return Tls(ca=self.ca, certificate=certificate, key=key)

    def arguments(self) -> tuple[str | Path, ...]:
        """Those of `nablad serve`."""
        return "--tls-certificate", self.certificate, "--tls-key", self.key


def shown(address: str, ca: Path) -> bytes:
    """The certificate that a server shows to a new connection."""
    host, _, port = address.rpartition(":")
    context = ssl.create_default_context(cafile=str(ca))
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection((host, int(port))) as plain,
        context.wrap_socket(plain, server_hostname=host) as secured,
    ):
        return secured.getpeercert(binary_form=True) or b""


def write_identities(path: Path, identities: Iterable[Mapping[str, Any]]) -> None:
    """A file of identities, each given by its fields; `tokens` are the tokens themselves."""
    texts = []
    for fields in identities:
        given = {key: value for key, value in fields.items() if key != "tokens"}
        hashes = [hashlib.sha256(token.encode()).hexdigest() for token in fields.get("tokens", ())]
        text = entry(Identity(**{"token_sha256": hashes, **given}))
        # What the command knows nothing of is written by hand, as people do.
        others = [f"{key} = {json.dumps(given[key])}" for key in OTHERS if key in given]
        texts.append("\n".join([text.rstrip("\n"), *others, "", ""]))
    replace(path, "".join(texts).encode())
