"""A wire between client and server that the test can cut: a TCP relay on the loopback interface."""

import contextlib
import socket
import threading
from types import TracebackType
from typing import Self


class Wire:
    """Passes bytes on between whoever connects to it and an upstream address.

    Attributes:
        address: where it listens.
        connections: how many were made.
    """

    def __init__(self, upstream: str) -> None:
        """`upstream` is HOST:PORT; it can be changed with `lead_to`."""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.connections = 0
        self._upstream = upstream
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._left: float = float("inf")  # so many bytes pass downstream until it is cut
        self._cuts = 0
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        for thread in self._threads:
            thread.join()

    def lead_to(self, upstream: str) -> None:
        """Connects those who come from now on to another address."""
        self._upstream = upstream

    def cut(self) -> None:
        """Breaks every connection, now."""
        with self._lock:
            for end in self._open:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def cut_after(self, size: int, times: int = 1) -> None:
        """Breaks every connection when so many bytes came from upstream, and again after as many, so many times."""
        with self._lock:
            self._cuts, self._size, self._left = times - 1, size, size

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:  # it is closed
                return
            try:
                server = socket.create_connection(self._address())
            except OSError:  # nobody is there
                client.close()
                continue
            with self._lock:
                self.connections += 1
                self._open |= {client, server}
            for source, sink, counted in ((client, server, False), (server, client, True)):
                thread = threading.Thread(target=self._pass_on, args=(source, sink, counted), daemon=True)
                self._threads.append(thread)
                thread.start()

    def _address(self) -> tuple[str, int]:
        host, _, port = self._upstream.rpartition(":")
        return host, int(port)

    def _pass_on(self, source: socket.socket, sink: socket.socket, counted: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                sink.sendall(data)
                if counted and self._counts(len(data)):
                    self.cut()
        for end in (source, sink):  # the other direction ends too
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        with self._lock:
            self._open.discard(source)
        source.close()

    def _counts(self, size: int) -> bool:
        with self._lock:
            self._left -= size
            if self._left > 0:
                return False
            self._left = self._size if self._cuts else float("inf")
            self._cuts -= 1
            return True
