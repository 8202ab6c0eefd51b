"""Where a server may listen, and how."""

import contextlib
import ipaddress
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

_UNIX = "unix:"
_ABSTRACT = "unix-abstract:"


def socket_path(address: str) -> Path | None:
    """The file of a Unix socket, of `unix:PATH` or `unix:///PATH`; None for another address."""
    if not address.startswith(_UNIX):
        return None
    path = address.removeprefix(_UNIX)
    return Path(path.removeprefix("//") if path.startswith("///") else path)


def is_local(address: str) -> bool:
    """Whether only processes on the same machine can connect to this address."""
    if address.startswith((_UNIX, _ABSTRACT)):
        return True
    host = address.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name, whose addresses may change
        return False


def check_encrypted(address: str, *, tls: bool, plaintext: bool) -> None:
    """Raises ValueError if what goes over this address could be read on the network, and nobody said that it may."""
    if tls or plaintext or is_local(address):
        return
    raise ValueError(
        f"{address} can be reached from other machines, and without TLS anybody on the way can read and change what is "
        "sent. Set tls_certificate and tls_key; or say --plaintext if the network itself encrypts and keeps strangers "
        "out; or listen on 127.0.0.1 or unix:PATH"
    )


@contextlib.contextmanager
def private_socket(path: Path | None) -> Iterator[None]:
    """While the socket is made: what a server left behind that ended badly is removed, and others cannot connect.

    Raises:
        OSError: something else is there, or a server that listens.
    """
    if path is None:
        yield
        return
    _clear(path)
    before = os.umask(0o177)
    try:
        yield
    finally:
        os.umask(before)


def _clear(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise FileExistsError(f"{path} is no socket; choose another path, or move it away")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:  # nobody listens
            path.unlink(missing_ok=True)
            return
        except OSError as error:
            raise OSError(f"cannot find out who listens on {path}: {error}; remove it if nobody does") from error
    raise FileExistsError(f"a server listens on {path}; stop it, or choose another path")
