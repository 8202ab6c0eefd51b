"""What is broken around a server while it is called, scenario by scenario."""

import resource
import socket
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np

import nablad
from nablad.tensors import to_tensor
from nablad.v1 import differentiation_pb2 as pb
from nablad.v1.tensor_pb2 import NamedTensor
from resilience.load import Load
from resilience.server import Server

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
IDLE = 10_000
FAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1")
NO_CACHE = ("--compile-cache", "none")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of the callers.

    Attributes:
        calls: made by them.
        lost: not answered, retries included.
        wrong: answered with something else.
        recovery_seconds: the longest time without any answer from the fault on.
        remark: what else there is to say.
        broken: a violation besides lost and wrong calls.
        skipped: the machine lacks something, which the remark names.
    """

    calls: int
    lost: int
    wrong: int
    recovery_seconds: float
    remark: str = ""
    broken: bool = False
    skipped: bool = False

    @property
    def fine(self) -> bool:
        """Whether callers noticed nothing but a pause. Without any calls nothing is known."""
        return self.skipped or (self.calls > 0 and not (self.lost or self.wrong or self.broken))


def _outcome(load: Load, *servers: Server, remark: str = "", broken: bool = False) -> Outcome:
    defects = sum(len(server.defects) for server in servers)
    text = "; ".join(filter(None, (remark, f"{defects} defects logged" if defects else "", *load.lost[:1])))
    return Outcome(load.calls, len(load.lost), load.wrong, load.gap_seconds, text, broken or bool(defects))


def _port(server: Server) -> str:
    return server.address.rpartition(":")[2]


def _both(first: Server, second: Server) -> str:
    return f"ipv4:127.0.0.1:{_port(first)},127.0.0.1:{_port(second)}"


def killed(seconds: float) -> Outcome:
    """SIGKILL for one of two servers; later it is back on the same port."""
    with Server(*NO_CACHE) as first, Server(*NO_CACHE) as second, Load(_both(first, second)) as load:
        time.sleep(seconds / 4)
        load.mark()
        first.kill()
        time.sleep(seconds / 2)
        with Server(*NO_CACHE, address=first.address) as again:
            time.sleep(seconds / 4)
            return _outcome(load, first, second, again)


def terminated(seconds: float) -> Outcome:
    """SIGTERM for one of two servers: it drains."""
    with Server(*NO_CACHE) as first, Server(*NO_CACHE) as second, Load(_both(first, second)) as load:
        time.sleep(seconds / 3)
        load.mark()
        began = time.monotonic()
        status = first.stop()
        drained = time.monotonic() - began
        time.sleep(seconds / 3)
        return _outcome(load, first, second, remark=f"exit {status} after {drained:.1f} s", broken=status != 0)


def full_disk(seconds: float) -> Outcome:
    """No file of the compile cache can grow beyond 4 KB, as if the disk were full."""
    with tempfile.TemporaryDirectory() as directory:
        # What Python ignores, SIGXFSZ, so that a write fails as on a full disk.
        prefix = ("prlimit", "--fsize=4096", "--")
        with Server("--compile-cache", directory, prefix=prefix) as server, Load(server.address) as load:
            return _new_programs(load, server, seconds)


def corrupt_cache(seconds: float) -> Outcome:
    """Every entry of the compile cache was cut in half or overwritten between two runs."""
    with tempfile.TemporaryDirectory() as directory:
        with Server("--compile-cache", directory) as server, Load(server.address) as load:
            _new_programs(load, server, seconds / 2)
        entries = [path for path in Path(directory).rglob("*") if path.is_file() and path.stat().st_size > 1000]
        for number, path in enumerate(entries):
            data = path.read_bytes()
            path.write_bytes(data[: len(data) // 2] if number % 2 else b"\xff" * len(data))
        with Server("--compile-cache", directory) as server, Load(server.address) as load:
            return _new_programs(load, server, seconds / 2, f"{len(entries)} entries spoilt", broken=not entries)


def _new_programs(load: Load, server: Server, seconds: float, remark: str = "", broken: bool = False) -> Outcome:
    """Asks for programs that are not compiled yet, beside the load."""
    right, until, n = True, time.monotonic() + seconds, 4
    with nablad.Client(server.address) as client:
        while n < 7 or time.monotonic() < until:
            answer = client.evaluate("rosenbrock", x=np.zeros(n))
            right = right and float(np.asarray(answer.value)) == n - 1  # Σ (1 - 0)²
            n += 1
    return _outcome(load, server, remark=f"{n - 4} new programs {remark}".strip(), broken=broken or not right)


def clock_jump(seconds: float) -> Outcome:
    """The wall clock jumps by a day in the middle; deadlines must not notice."""
    if not FAKETIME.is_file():
        return Outcome(0, 0, 0, 0.0, "skipped: libfaketime is not installed (Debian: faketime)", skipped=True)
    with tempfile.NamedTemporaryFile("w", suffix=".faketime") as clock:
        Path(clock.name).write_text("+0")
        env = {"LD_PRELOAD": str(FAKETIME), "FAKETIME_TIMESTAMP_FILE": clock.name, "FAKETIME_NO_CACHE": "1",
               "FAKETIME_DONT_FAKE_MONOTONIC": "1"}  # fmt: skip
        with Server(*NO_CACHE, env=env) as server, Load(server.address) as load:
            time.sleep(seconds / 3)
            load.mark()
            for offset in ("+1d", "-1d"):
                Path(clock.name).write_text(offset)
                time.sleep(seconds / 3)
            return _outcome(load, server, remark="a day forward, two back")


def never_reads(seconds: float) -> Outcome:
    """A caller asks for matrices of 8 MB by the dozen and takes none of them."""
    with Server(*NO_CACHE) as server, Load(server.address) as load:
        channel = grpc.insecure_channel(server.address, [("grpc.use_local_subchannel_pool", 1)])
        inputs = [NamedTensor(name="x", tensor=to_tensor(np.zeros(1000)))]
        ask: Any = channel.unary_stream("/nablad.v1.DifferentiationService/StreamHessian")
        request = pb.StreamHessianRequest(function="rosenbrock", inputs=inputs).SerializeToString()
        calls = [ask(request, timeout=60) for _ in range(24)]
        time.sleep(seconds)
        resident = server.status("VmRSS") // 1024
        outcome = _outcome(load, server, remark=f"server holds {resident} MB", broken=not server.alive)
        for call in calls:
            call.cancel()
        channel.close()
        return outcome


def idle_connections(seconds: float) -> Outcome:
    """Ten thousand connections that say nothing after their greeting, or as many as this process may open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    count = min(IDLE, hard - 500)
    try:
        with Server(*NO_CACHE) as server, Load(server.address) as load, ExitStack() as stack:
            for _ in range(count):
                _greeted(stack, server)
            time.sleep(seconds)
            # Connections made while these are open must find room, too.
            with nablad.Client(server.address) as client:
                served = client.healthy()
            files = len(list(Path(f"/proc/{server.pid}/fd").iterdir()))
            return _outcome(load, server, remark=f"{count} connections, server has {files} files", broken=not served)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _greeted(stack: ExitStack, server: Server) -> socket.socket:
    connection = stack.enter_context(socket.create_connection(("127.0.0.1", int(_port(server))), timeout=30))
    connection.sendall(PREFACE + bytes(3) + b"\x04\0" + bytes(4))  # and empty SETTINGS
    return connection


def slow_loris(seconds: float) -> Outcome:
    """Two hundred connections that send their greeting a byte at a time."""
    with Server(*NO_CACHE) as server, Load(server.address) as load, ExitStack() as stack:
        connections = [
            stack.enter_context(socket.create_connection(("127.0.0.1", int(_port(server))), timeout=30))
            for _ in range(200)
        ]
        for byte in PREFACE:
            for connection in connections:
                connection.sendall(bytes([byte]))
            time.sleep(seconds / len(PREFACE))
        return _outcome(load, server, remark="200 slow greetings", broken=not server.alive)


SCENARIOS: dict[str, Callable[[float], Outcome]] = {
    "kill": killed,
    "terminate": terminated,
    "full-disk": full_disk,
    "corrupt-cache": corrupt_cache,
    "clock-jump": clock_jump,
    "never-reads": never_reads,
    "idle-connections": idle_connections,
    "slow-loris": slow_loris,
}
