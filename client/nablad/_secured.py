"""How a client shows that it is who it is, and has the server show it: TLS, and a token with every call."""

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import grpc

from nablad.errors import InvalidArgument

_TOKEN = re.compile(r"[A-Za-z0-9._~+/=-]+")
_ADDRESSES = re.compile(r"(?:ipv4:|ipv6:|dns:(?:///)?)?(?P<hosts>[^/]+)")
"""A target whose hosts can be read off it; `dns://SERVER/HOST` and other schemes are for gRPC alone."""


@dataclass(frozen=True)
class Tls:
    """What a client needs for TLS: PEM files, which are read when it is made.

    Attributes:
        ca: the certificates that vouch for the server; by default those that gRPC brings.
        certificate: the client's own, for a server that asks for one.
        key: its private key, not encrypted.
        server_name: the name that the server's certificate has, if that is not the host of the address.
    """

    ca: str | PathLike[str] | None = None
    certificate: str | PathLike[str] | None = None
    key: str | PathLike[str] | None = None
    server_name: str | None = None


def credentials(tls: Tls | bool | None) -> grpc.ChannelCredentials | None:
    """What a channel is secured with; None for plaintext.

    Raises:
        OSError: a file cannot be read.
        InvalidArgument: a certificate without its key, or the reverse.
    """
    if not tls:
        return None
    files = Tls() if tls is True else tls
    if (files.certificate is None) != (files.key is None):
        raise InvalidArgument("Tls has one of certificate and key; a client certificate needs both, others neither")
    contents = [None if name is None else Path(name).read_bytes() for name in (files.ca, files.key, files.certificate)]
    return grpc.ssl_channel_credentials(*contents)


def names(tls: Tls | bool | None) -> list[tuple[str, str]]:
    """The channel options that TLS needs."""
    if isinstance(tls, Tls) and tls.server_name is not None:
        return [("grpc.ssl_target_name_override", tls.server_name)]
    return []


def metadata(address: str, tls: Tls | bool | None, token: str | None) -> tuple[tuple[str, str], ...]:
    """What goes with every call.

    Raises:
        InvalidArgument: the token has characters that none has, or others could read it on the way.
    """
    if token is None:
        return ()
    if not _TOKEN.fullmatch(token):
        raise InvalidArgument("the token has characters that no token has; expected letters, digits and ._~+/=-")
    if not tls and not _is_local(address):
        raise InvalidArgument(
            f"{address} is on another machine and tls is not set, so anybody on the way could read the token and use "
            "it; set tls=True, or tls=Tls(ca=...) for certificates of your own"
        )
    return (("authorization", f"Bearer {token}"),)


def check_own(channel: object, tls: Tls | bool | None, token: str | None) -> None:
    """Raises InvalidArgument if something was given that a channel of the caller's own has, or has not, by itself."""
    if channel is not None and (tls or token is not None):
        raise InvalidArgument("a channel of your own has its own credentials; give tls and token with an address alone")


class Bearing:
    """A channel, of either kind, whose calls bear metadata.

    It has what the clients and the generated stubs use of a channel. An interceptor would do, too, and would take
    longer than the call does.
    """

    def __init__(self, channel: Any, metadata: tuple[tuple[str, str], ...]) -> None:
        self._channel = channel
        self._metadata = metadata

    def unary_unary(self, *args: Any, **options: Any) -> Any:
        """As the channel's."""
        return self._bearing(self._channel.unary_unary(*args, **options))

    def unary_stream(self, *args: Any, **options: Any) -> Any:
        """As the channel's."""
        return self._bearing(self._channel.unary_stream(*args, **options))

    def stream_unary(self, *args: Any, **options: Any) -> Any:
        """As the channel's."""
        return self._bearing(self._channel.stream_unary(*args, **options))

    def stream_stream(self, *args: Any, **options: Any) -> Any:
        """As the channel's."""
        return self._bearing(self._channel.stream_stream(*args, **options))

    def close(self) -> Any:
        """As the channel's."""
        return self._channel.close()

    def _bearing(self, call: Any) -> Any:
        own = self._metadata

        def bearing(request: Any = None, *, metadata: Sequence[tuple[str, str]] | None = None, **options: Any) -> Any:
            return call(request, metadata=(*metadata, *own) if metadata else own, **options)

        return bearing


def _is_local(address: str) -> bool:
    """Whether a target names processes on this machine alone."""
    if address.startswith(("unix:", "unix-abstract:")):
        return True
    found = _ADDRESSES.fullmatch(address)
    return found is not None and all(_is_loopback(part) for part in found["hosts"].split(","))


def _is_loopback(address: str) -> bool:
    bracketed = re.fullmatch(r"\[(.*)\](:\d+)?", address)
    host = bracketed[1] if bracketed else address.partition(":")[0]
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name
        return False
