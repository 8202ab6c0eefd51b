"""A server that knows its callers, over TLS; and the guises in which the fuzzer calls it."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import grpc
import trustme

from nablad_server.serving.identities import Identity
from nablad_server.tokens import entry
from resilience.fuzz import Guise
from resilience.server import Server

TOKEN = "fuzzer"  # noqa: S105 - of a server that is gone when the fuzzer is
OTHER = "nobody"
FUNCTIONS = frozenset({"rosenbrock"})
"""Those that the caller with the token may use."""


class Secured(NamedTuple):
    """The server, and who calls it: one with a token and a list of functions, and two whom it must not answer."""

    server: Server
    listed: Guise
    strangers: tuple[Guise, ...]


@contextmanager
def secured(directory: Path) -> Iterator[Secured]:
    """A server with TLS and tokens, whose files are in the directory."""
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    certificate, key, tokens = (directory / name for name in ("certificate.pem", "key.pem", "identities.toml"))
    certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    key.write_bytes(issued.private_key_pem.bytes())
    key.chmod(0o600)
    identity = Identity(
        name="fuzzer", token_sha256=[hashlib.sha256(TOKEN.encode()).hexdigest()],
        roles=["evaluate", "catalogue"], functions=sorted(FUNCTIONS),
    )  # fmt: skip
    tokens.write_text(entry(identity))
    credentials = grpc.ssl_channel_credentials(authority.cert_pem.bytes())
    listed = Guise(credentials, _bearer(TOKEN), FUNCTIONS)
    strangers = (Guise(credentials, known=False), Guise(credentials, _bearer(OTHER), known=False))
    with Server(
        "--compile-cache", "none", "--tls-certificate", str(certificate), "--tls-key", str(key),
        "--tokens", str(tokens),
    ) as server:  # fmt: skip
        yield Secured(server, listed, strangers)


def _bearer(token: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"),)
