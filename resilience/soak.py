"""Mixed traffic for a long time, and whether the server's process grows under it."""

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import nablad
from nablad import errors
from resilience.load import ByClient, Load
from resilience.server import Server
from resilience.trend import BLOCKS, Trend, trend

WARM_BLOCKS = 2
"""As long as so many blocks caches fill and allocators settle: nothing of it is judged."""
SAMPLES = 12
"""In each block."""
BYTES_PER_CALL = 16
"""The least that an allocator gives out. A run means something if it would show that much kept of every call."""
CALLS_PER_PIECE = 1000
"""And a thread, a file or a map of memory kept of every so many calls."""

WARM = tuple(
    f"--warm={operator} rosenbrock n={n} points={points}"
    for operator, n, points in (
        ("gradient", 3, "1,2,4,8"), ("gradient", 4, "1"), ("gradient", 5, "1"),
        ("jacobian", 3, "1"), ("jacobian", 4, "1"), ("jacobian", 5, "1"),
        ("hessian", 3, "1,2,4,8"), ("hessian", 4, "1,2,4,8"), ("hessian", 5, "1,2,4,8"),
        ("hessian", 20, "64,128,256,512,1024"),
    )
)  # fmt: skip
"""Every program that this traffic can need. Most batches are small: without this, programs of rare larger ones would be
compiled minutes later, some megabytes and memory maps each, and look like growth."""


@dataclass(frozen=True, slots=True)
class Soak:
    """What came of it.

    Attributes:
        trends: what was measured.
        seconds: how long the part took that is judged.
        calls: with known answers, in all.
        others: refused, cancelled and other calls, in all.
        wrong: answers that were wrong.
        lost: calls with known answers that were not answered, and defects that the server logged.
    """

    trends: list[Trend]
    seconds: float
    calls: int
    others: int
    wrong: int
    lost: int

    @property
    def fine(self) -> bool:
        """Whether nothing grew and every answer was right."""
        flat = all(each.verdict == "flat" for each in self.trends)
        return self.calls > 0 and flat and not (self.wrong or self.lost)

    def report(self) -> dict[str, Any]:
        """As JSON has it."""
        return {**asdict(self), "fine": self.fine,
                "trends": [{**asdict(each), "verdict": each.verdict} for each in self.trends]}  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Sample:
    """What the process holds at one time, and how long calls took shortly before."""

    at: float
    calls: int
    resident: int
    threads: int
    files: int
    maps: int
    latency: float


def soak(seconds: float) -> Soak:
    """Runs mixed traffic against a server of its own for so long."""
    samples: list[_Sample] = []
    others = Others()
    with Server("--compile-cache", "none", *WARM) as server, Load(lambda: ByClient(server.address), 2, 0.002) as load:
        with others.asking(server.address), nablad.Client(server.address) as client:
            began = time.monotonic()
            windows = (BLOCKS + WARM_BLOCKS) * SAMPLES
            for window in range(windows):
                latencies = _latencies(client, began + (window + 1) * seconds / windows)
                samples.append(_sample(server, load.calls + others.calls, latencies))
        load.stop()
        defects = len(server.defects)
    judged = samples[WARM_BLOCKS * SAMPLES :]
    return Soak(
        _trends(judged), judged[-1].at - judged[0].at, load.calls, others.calls, load.wrong, len(load.lost) + defects
    )


def _sample(server: Server, calls: int, latencies: NDArray[np.float64]) -> _Sample:
    maps = Path(f"/proc/{server.pid}/maps").read_bytes().count(b"\n")
    return _Sample(
        time.monotonic(), calls, server.status("VmRSS"), server.status("Threads"), server.files, maps,
        float(np.quantile(latencies, 0.99)),
    )  # fmt: skip


def _trends(samples: list[_Sample]) -> list[Trend]:
    at = [sample.at for sample in samples]
    hours = (at[-1] - at[0]) / 3600
    calls = (samples[-1].calls - samples[0].calls) / hours
    latencies = [sample.latency * 1e3 for sample in samples]
    pieces = calls / CALLS_PER_PIECE
    return [
        trend("RSS, MB", at, [sample.resident / 1024 for sample in samples], 4 / 1024, calls * BYTES_PER_CALL / 2**20),
        trend("threads", at, [sample.threads for sample in samples], 1, pieces),
        trend("files", at, [sample.files for sample in samples], 1, pieces),
        trend("memory maps", at, [sample.maps for sample in samples], 1, pieces),
        # It may not double within the run.
        trend("p99, ms", at, latencies, 1e-3, float(np.mean(latencies)) / hours),
    ]


def _latencies(client: nablad.Client, until: float) -> NDArray[np.float64]:
    """Seconds that calls take one after the other, until then."""
    taken: list[float] = []
    while not taken or time.monotonic() < until:
        began = time.perf_counter()
        client.gradient("rosenbrock", x=np.ones(3))
        taken.append(time.perf_counter() - began)
        time.sleep(0.005)
    return np.array(taken)


class Others:
    """Threads whose calls are refused, cancelled, and of all sizes and kinds.

    Attributes:
        calls: how many they have made.
    """

    def __init__(self) -> None:
        self.calls = 0
        self._lock = threading.Lock()
        self._stopped = threading.Event()

    @contextlib.contextmanager
    def asking(self, address: str) -> Iterator[None]:
        """Has them call a server meanwhile."""
        threads = [threading.Thread(target=act, args=(address,)) for act in (self._err, self._cancel, self._vary)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._stopped.set()
            for thread in threads:
                thread.join()

    def _count(self, calls: int) -> None:
        with self._lock:
            self.calls += calls

    def _err(self, address: str) -> None:
        """Requests that are refused."""
        with nablad.Client(address) as client:
            while not self._stopped.wait(0.01):
                for name, point in (("nothing-of-this-name", np.ones(3)), ("rosenbrock", np.ones((2, 2)))):
                    with contextlib.suppress(errors.NabladError):
                        client.gradient(name, x=point)
                self._count(2)

    def _cancel(self, address: str) -> None:
        """Calls given up long before their answers."""
        with nablad.Client(address, retries=False) as client:
            while not self._stopped.wait(0.01):
                with contextlib.suppress(errors.NabladError):
                    client.hessian("rosenbrock", x=np.ones((64, 20)), batched=True, timeout=0.001)
                self._count(1)

    def _vary(self, address: str) -> None:
        """Operators, sizes, streams, in turn; the same few for ever, so that programs are found again."""
        turn = 0
        while not self._stopped.is_set():
            with nablad.Client(address) as client:  # connections come and go
                for _ in range(20):
                    turn += 1
                    x = np.ones((1 + turn % 8, 3 + turn % 3))
                    client.hessian("rosenbrock", x=x, batched=True)
                    client.jacobian("rosenbrock", x=x[0])
                    with client.pipeline() as pipeline:
                        pipeline.gradient("rosenbrock", x=x[0]).result()
                    self._count(3)
                    if self._stopped.wait(0.02):
                        return
