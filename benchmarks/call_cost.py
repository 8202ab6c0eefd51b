"""What a call costs beside the bare transport.

    python benchmarks/call_cost.py

A real server process on one core and this client on another: the gradient of Rosenbrock, n = 100, float64, one at a
time, 64 in flight, and 4096 points in one request; and in the same run the floor, a gRPC server that answers the same
requests with ready-made bytes of the same length. Medians of interleaved repeats; read the ratios, not the times.
"""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
import numpy as np
from rich.console import Console
from rich.table import Table

import nablad
from nablad.tensors import to_tensor
from nablad.v1 import differentiation_pb2 as pb
from nablad.v1 import tensor_pb2

N, IN_FLIGHT, POINTS, REPEATS = 100, 64, 4096, 5

ECHO = """
import sys, grpc
from concurrent.futures import ThreadPoolExecutor
reply = bytes(int(sys.argv[1]))
handler = grpc.unary_unary_rpc_method_handler(lambda request, context: reply)
server = grpc.server(ThreadPoolExecutor(8))
server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("echo.Echo", {"Echo": handler}),))
print(server.add_insecure_port("127.0.0.1:0"), flush=True)
server.start()
server.wait_for_termination()
"""


@contextmanager
def on_core(core: int, *command: str) -> Iterator[subprocess.Popen[str]]:
    """A child process on one core, if this system can pin processes; ended on leaving."""
    mine = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    if mine is not None and core in mine:
        os.sched_setaffinity(0, {core})
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)  # noqa: S603 - ours
    if mine is not None:
        os.sched_setaffinity(0, mine - {core} or mine)
    try:
        yield child
    finally:
        child.terminate()
        child.communicate()
        if mine is not None:
            os.sched_setaffinity(0, mine)


def microseconds(call: Callable[[], object], times: int = 1000) -> float:
    """The median time of one call, one after the other."""
    spent = []
    for _ in range(times):
        started = time.perf_counter()
        call()
        spent.append(time.perf_counter() - started)
    return statistics.median(spent) * 1e6


def rate(call: Callable[[], object], times: int = 4000) -> float:
    """Calls a second with IN_FLIGHT threads calling."""
    with ThreadPoolExecutor(IN_FLIGHT) as pool:
        started = time.perf_counter()
        list(pool.map(lambda _: call(), range(times)))
        return times / (time.perf_counter() - started)


def spread(values: list[float]) -> str:
    """Median, and the least and greatest."""
    return f"{statistics.median(values):,.0f} ({min(values):,.0f} to {max(values):,.0f})"


def main() -> None:
    """Measures and prints the table; fails if an answer is wrong."""
    x = np.linspace(-1, 1, N)
    exact = np.zeros(N)
    exact[:-1] += -400 * x[:-1] * (x[1:] - x[:-1] ** 2) - 2 * (1 - x[:-1])
    exact[1:] += 200 * (x[1:] - x[:-1] ** 2)
    request = pb.GradientRequest(
        function="rosenbrock", inputs=[tensor_pb2.NamedTensor(name="x", tensor=to_tensor(x))]
    ).SerializeToString()
    serve = (sys.executable, "-m", "nablad_server", "--address", "127.0.0.1:0", "--log-format", "json")
    with on_core(0, *serve) as server:
        address = next(line.split('"address": "')[1].split('"')[0] for line in server.stderr or () if "serving" in line)
        with nablad.Client(address) as client, grpc.insecure_channel(address) as channel:
            bare: Callable[[bytes], bytes] = channel.unary_unary("/nablad.v1.DifferentiationService/Gradient")  # type: ignore[assignment]
            reply = bare(request)
            with on_core(0, sys.executable, "-c", ECHO, str(len(reply))) as echo:
                port = int((echo.stdout or sys.stdin).readline())
                with grpc.insecure_channel(f"127.0.0.1:{port}") as echo_channel:
                    floor: Callable[[bytes], bytes] = echo_channel.unary_unary("/echo.Echo/Echo")  # type: ignore[assignment]
                    measure(x, exact, client=client, request=request, bare=bare, floor=floor)


def measure(
    x: np.ndarray,
    exact: np.ndarray,
    *,
    client: nablad.Client,
    request: bytes,
    bare: Callable[[bytes], bytes],
    floor: Callable[[bytes], bytes],
) -> None:
    """Interleaves the measurements and prints them."""
    many = np.tile(x, (POINTS, 1))
    client.gradient("rosenbrock", many, batched=True)
    found: dict[str, list[float]] = {}
    with Console().status("measuring"):
        for _ in range(REPEATS):
            for name, figure in (
                ("echo, one at a time, µs", microseconds(lambda: floor(request))),
                ("nablad, one at a time, µs", microseconds(lambda: bare(request))),
                ("nablad through its Python client, µs", microseconds(lambda: client.gradient("rosenbrock", x))),
                (f"echo, {IN_FLIGHT} in flight, calls/s", rate(lambda: floor(request))),
                (f"nablad, {IN_FLIGHT} in flight, calls/s", rate(lambda: bare(request))),
            ):
                found.setdefault(name, []).append(figure)
            started = time.perf_counter()
            result = client.gradient("rosenbrock", many, batched=True)
            seconds = time.perf_counter() - started
            found.setdefault(f"nablad, {POINTS} points in one request, points/s", []).append(POINTS / seconds)
            if np.max(np.abs(result.gradient - exact)) > 1e-12 * np.max(np.abs(exact)):
                raise SystemExit("a gradient is wrong")
    table = Table("figure", "median (least to greatest)", box=None, header_style="bold")
    for name, values in found.items():
        table.add_row(name, spread(values))
    Console().print(table)


if __name__ == "__main__":
    main()
