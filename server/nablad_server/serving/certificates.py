"""The server's side of TLS: its certificate, read anew when it changes, and whose certificates it trusts."""

import ssl
from dataclasses import dataclass
from pathlib import Path

import grpc

from nablad_server.serving.watched import Watched


@dataclass(frozen=True)
class TlsFiles:
    """PEM files.

    Attributes:
        certificate: the server's, followed by those that vouch for it.
        key: its private key, not encrypted.
        client_ca: the certificates that vouch for clients, each of which must then show one of its own; None to ask
            for none.
    """

    certificate: Path
    key: Path
    client_ca: Path | None = None


def server_credentials(files: TlsFiles) -> grpc.ServerCredentials:
    """What to listen with. Each new connection gets the certificate that the files hold then.

    Files that have become unusable change nothing: the log says so, and the old certificate stays.

    Raises:
        OSError: a file cannot be read.
        ValueError: they hold no certificate with its key.
    """
    paths = [path for path in (files.certificate, files.key, files.client_ca) if path is not None]
    watched = Watched("TLS certificate", paths, lambda: _read(files))

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        return _configuration(watched.value) if watched.refresh() else None

    return grpc.dynamic_ssl_server_credentials(
        _configuration(watched.value),
        fetch,  # type: ignore[arg-type]  # None is "as before", which its type leaves out
        require_client_authentication=files.client_ca is not None,
    )


@dataclass(frozen=True)
class _Read:
    certificate: bytes
    key: bytes
    client_ca: bytes | None


def _configuration(read: _Read) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(read.key, read.certificate)], read.client_ca)


def _read(files: TlsFiles) -> _Read:
    """What the files hold; raises as `server_credentials` does."""
    read = _contents(files)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(files.certificate, files.key, password=_encrypted)
    except ssl.SSLError as error:
        raise ValueError(f"{files.certificate} and {files.key} are no certificate with its key: {error}") from None
    if files.client_ca is not None:
        try:
            context.load_verify_locations(files.client_ca)
        except ssl.SSLError as error:
            raise ValueError(f"{files.client_ca} holds no certificate: {error}") from None
    # The check reads the files by itself: it may have seen others, if they are being replaced just now.
    if _contents(files) != read:
        raise ValueError(f"{files.certificate} changed while it was read; it is tried again")
    return read


def _contents(files: TlsFiles) -> _Read:
    client_ca = files.client_ca.read_bytes() if files.client_ca is not None else None
    return _Read(files.certificate.read_bytes(), files.key.read_bytes(), client_ca)


def _encrypted() -> str:
    raise ValueError("the private key is encrypted, and nobody is there to decrypt it; store it without a passphrase")
