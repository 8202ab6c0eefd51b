"""Callers that hold connections and do nothing useful with them."""

import contextlib
import fcntl
import resource
import select
import socket
import struct
import termios
import time
from collections.abc import Iterator
from contextlib import ExitStack

import numpy as np

import nablad
from nablad.tensors import to_tensor
from nablad.v1 import differentiation_pb2 as pb
from nablad.v1.tensor_pb2 import NamedTensor
from resilience.frames import DATA, HEADERS, PREFACE, SETTINGS, Connection, Raw, frame, headers
from resilience.load import ByClient, Load
from resilience.outcome import Outcome, judged
from resilience.questions import GRADIENT, question
from resilience.server import Server

ALONE = ("--compile-cache", "none")
IDLE = 10_000
SPARE = 500
"""Files that a process needs for everything else."""
DEAF = 24
DEAF_INPUTS = 4000
"""Each asks for the Hessian at a point of so many coordinates: 128 MB."""
DEAF_MEGABYTES = 400
"""So much the server may hold for all of them, of 3 GB that they ask for."""
WINDOW = 2**16 - 1
"""Bytes that HTTP/2 lets a server send before anything is granted."""
FEW = 1024
"""Bytes of signs of life, which need no window."""
LORISES = 60
"""Of each kind."""
WINDOW_UPDATE = 8
STREAM = b"/nablad.v1.DifferentiationService/StreamHessian"


def never_reads(seconds: float) -> Outcome:
    """Callers ask for 3 GB of matrices and take nothing: half leave it in their sockets, half grant no window."""
    inputs = [NamedTensor(name="x", tensor=to_tensor(np.zeros(DEAF_INPUTS)))]
    request = pb.StreamHessianRequest(function="rosenbrock", inputs=inputs).SerializeToString()
    with Server(*ALONE) as server, Load(lambda: ByClient(server.address)) as load, ExitStack() as stack:
        before = server.status("VmRSS")
        load.mark()
        deaf = [stack.enter_context(Raw(STREAM, server.port)) for _ in range(DEAF)]
        for connection in deaf[::2]:
            # All that HTTP/2 allows, for the stream and for the connection.
            connection.socket.sendall(frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 2**31 - 1)))
            connection.socket.sendall(frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", 2**31 - 2**16)))
        for connection in deaf:
            connection.send(request)
        unread = _stalled(deaf, load)
        load.go_on(seconds)
        grown = (server.status("VmRSS") - before) // 1024
        load.stop()
        later = [_unread(connection.socket) for connection in deaf]
        asked = DEAF * DEAF_INPUTS**2 * 8 >> 20
        return judged(
            [load],
            [server],
            f"{DEAF} callers asked for {asked} MB; {sum(later) >> 20} MB wait in their sockets, and no more come; the "
            f"server grew by {grown} MB",
            {"full windows in every socket": min(unread) >= WINDOW,
             "a server that cannot send on": all(b - a < FEW for a, b in zip(unread, later, strict=True)),
             "far less than was asked for": sum(later) >> 20 < asked // 2},
            {f"the server grows by less than {DEAF_MEGABYTES} MB": grown < DEAF_MEGABYTES},
        )  # fmt: skip


def _stalled(deaf: list[Raw], load: Load) -> list[int]:
    """Waits until no bytes come any more, for a minute at most; how many wait in each socket."""
    counts: list[int] = []
    for _ in range(120):
        before, counts = counts, [_unread(connection.socket) for connection in deaf]
        if before == counts and min(counts) >= WINDOW:
            break
        load.go_on(0.5)
    return counts


def _unread(connection: socket.socket) -> int:
    """Bytes that have come and have not been read."""
    (count,) = struct.unpack("i", fcntl.ioctl(connection, termios.FIONREAD, bytes(4)))
    return int(count)


def idle_connections(seconds: float) -> Outcome:
    """Ten thousand connections that say nothing after their greeting, all at the same time."""
    with _many_files() as limit:
        count = min(IDLE, limit - SPARE)
        with Server(*ALONE) as server, Load(lambda: ByClient(server.address)) as load, ExitStack() as stack:
            files, resident = server.files, server.status("VmRSS")
            load.mark()
            idle = [stack.enter_context(Connection(server.port)).socket for _ in range(count)]
            greeted = sum(bool(connection.recv(1 << 12)) for connection in idle)
            load.go_on(seconds)
            # Connections made while these are open must find room, too.
            with nablad.Client(server.address) as client:
                served = client.healthy()
            held = server.files - files
            each = (server.status("VmRSS") - resident) / count
            still = count - _hung_up(idle)
            load.stop()
            return judged(
                [load],
                [server],
                f"{greeted} greeted, {still} open at the same time, the server holds {held} more files, {each:.0f} kB "
                f"for each; {limit} files are allowed",
                {f"{IDLE} connections open at the same time (ulimit -n of {IDLE + SPARE} allows them)": still >= IDLE,
                 "the server's files for them": held >= IDLE},
                {"a new connection is served": served},
            )  # fmt: skip


@contextlib.contextmanager
def _many_files() -> Iterator[int]:
    """As many open files as this process may have, and those it starts; how many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        yield hard
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _hung_up(connections: list[socket.socket]) -> int:
    """How many the other end has closed."""
    poll = select.poll()
    for connection in connections:
        poll.register(connection, select.POLLRDHUP)
    return len(poll.poll(0))


def slow_loris(seconds: float) -> Outcome:
    """Callers send a byte at a time: of their greeting, of the headers of a call, of its message. All are ended."""
    arguments = ("--handshake-seconds", "1", "--request-seconds", "1", "--connection-idle-seconds", "1")
    message = question(np.ones(3))
    kinds = {
        "greetings": (b"", PREFACE),
        "headers": (
            PREFACE + frame(SETTINGS, 0, 0, b""),
            len(headers(GRADIENT.encode())).to_bytes(3, "big")
            + bytes([HEADERS, 4, 0, 0, 0, 1])
            + headers(GRADIENT.encode()),
        ),
        "messages": (
            PREFACE + frame(SETTINGS, 0, 0, b"") + frame(HEADERS, 4, 1, headers(GRADIENT.encode())),
            frame(DATA, 0, 1, b"\0" + len(message).to_bytes(4, "big") + message),
        ),
    }
    with Server(*ALONE, *arguments) as server, Load(lambda: ByClient(server.address)) as load, ExitStack() as stack:
        load.mark()
        slow = [
            (kind, _Slow(stack.enter_context(socket.create_connection(("127.0.0.1", server.port))), start, rest))
            for kind, (start, rest) in kinds.items()
            for _ in range(LORISES)
        ]
        until = time.monotonic() + max(seconds, 10.0)
        while time.monotonic() < until and not all(connection.ended for _, connection in slow):
            for _, connection in slow:
                connection.go_on()
            load.go_on(0.1)
        load.stop()
        ended = {kind: sum(each.ended for other, each in slow if other == kind) for kind in kinds}
        return judged(
            [load],
            [server],
            "the server ended " + ", ".join(f"{count} of {LORISES} slow {kind}" for kind, count in ended.items()),
            {f"the end of all slow {kind}": count == LORISES for kind, count in ended.items()},
        )


class _Slow:
    """Sends something a byte at a time, and its end never.

    Attributes:
        ended: whether the server has ended the call or hung up.
    """

    def __init__(self, connection: socket.socket, start: bytes, rest: bytes) -> None:
        connection.setblocking(False)
        connection.sendall(start)
        self.ended = False
        self._connection = connection
        self._rest = rest[:-1]
        self._seen = b""

    def go_on(self) -> None:
        """Sends the next byte, and looks at what has come."""
        if self.ended:
            return
        byte, self._rest = self._rest[:1], self._rest[1:]
        try:
            self._connection.sendall(byte)
            data = self._connection.recv(1 << 12)
        except BlockingIOError:
            return
        except OSError:  # it has hung up
            self.ended = True
            return
        self._seen += data
        self.ended = not data or b"had not arrived whole" in self._seen
