"""HTTP/2 by hand: clients that do what no client library would."""

import socket
from types import TracebackType
from typing import Self

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, SETTINGS, CONTINUATION = 0, 1, 4, 9
ACK, END_STREAM, END_HEADERS = 1, 1, 4

MAX_FRAME = 1 << 14


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """One frame."""
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def headers(path: bytes, *more: tuple[bytes, bytes]) -> bytes:
    """The headers of a call, each by itself and in plain."""
    return b"".join(
        b"\0" + _text(name) + _text(value)
        for name, value in (
            (b":method", b"POST"), (b":scheme", b"http"), (b":path", path), (b":authority", b"localhost"),
            (b"te", b"trailers"), (b"content-type", b"application/grpc"), *more,
        )
    )  # fmt: skip


def _text(value: bytes) -> bytes:
    if len(value) < 127:
        return bytes([len(value)]) + value
    rest, length = len(value) - 127, b"\x7f"
    while rest >= 128:
        length += bytes([rest % 128 + 128])
        rest //= 128
    return length + bytes([rest]) + value


class Connection:
    """A connection that has said that it speaks HTTP/2, and nothing more. Nothing is read before it is asked for."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=60)
        self.socket.sendall(PREFACE + frame(SETTINGS, 0, 0, b""))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def acknowledge(self) -> None:
        """Says that it has read the server's settings: a server holds nobody to limits they do not know of."""
        self.socket.recv(1)  # they come first
        self.socket.sendall(frame(SETTINGS, ACK, 0, b""))

    def call(self, block: bytes) -> None:
        """Sends the headers of a call, in one frame or several."""
        pieces = [block[start : start + MAX_FRAME] for start in range(0, len(block), MAX_FRAME)]
        last = len(pieces) - 1
        self.socket.sendall(
            b"".join(
                frame(CONTINUATION if index else HEADERS, END_HEADERS if index == last else 0, 1, piece)
                for index, piece in enumerate(pieces)
            )
        )

    def send(self, message: bytes) -> None:
        """Sends the message, and that it was the last."""
        data = b"\0" + len(message).to_bytes(4, "big") + message
        pieces = [data[start : start + MAX_FRAME] for start in range(0, len(data), MAX_FRAME)]
        for piece in pieces[:-1]:
            self.socket.sendall(frame(DATA, 0, 1, piece))
        self.socket.sendall(frame(DATA, END_STREAM, 1, pieces[-1]))

    def read_until(self, text: bytes) -> None:
        """Reads until this has come. Raises ConnectionError if the server closes the connection before."""
        seen = b""
        while text not in seen:
            data = self.socket.recv(1 << 16)
            if not data:
                raise ConnectionError(f"closed after {seen!r}")
            seen += data

    def read_to_end(self) -> bytes:
        """What comes until the server closes the connection."""
        seen = b""
        while data := self._received():
            seen += data
        return seen

    def close(self) -> None:
        """Hangs up."""
        self.socket.close()

    def _received(self) -> bytes:
        try:
            return self.socket.recv(1 << 16)
        except ConnectionResetError:
            return b""


class Raw(Connection):
    """A call on a connection of its own: the headers first, and the message when it is told to."""

    def __init__(self, path: bytes, port: int) -> None:
        super().__init__(port)
        self.call(headers(path))
