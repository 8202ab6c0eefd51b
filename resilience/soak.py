"""Mixed traffic for a long time, and whether the server's process grows under it."""

import math
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import stats

import nablad
from nablad import errors
from resilience.load import Load
from resilience.server import Server

WINDOWS = 60
WARM_PART = 0.2
"""The part of the time in which caches fill and allocators settle; not in the fit."""
NEGLIGIBLE = 0.02
"""A slope that adds up to less than this part of the mean over the run is flat even if it is certain."""


@dataclass(frozen=True, slots=True)
class Trend:
    """How one measure went: its first and last values in the fit and the 99 % interval of its slope an hour."""

    name: str
    first: float
    last: float
    low: float
    high: float
    flat: bool


@dataclass(frozen=True, slots=True)
class Soak:
    """What came of it."""

    trends: list[Trend]
    calls: int
    wrong: int
    lost: int

    @property
    def fine(self) -> bool:
        """Whether nothing grew and every answer was right."""
        return self.calls > 0 and not (self.wrong or self.lost) and all(trend.flat for trend in self.trends)


def trend(name: str, seconds: Sequence[float], values: Sequence[float]) -> Trend:
    """The least-squares line through at least three samples; flat if growth cannot be told from none."""
    x, y = np.asarray(seconds), np.asarray(values, np.float64)
    fit = stats.linregress(x, y)
    # Samples that follow each other are alike: as many count as would, were they independent.
    residuals = y - (fit.intercept + fit.slope * x)
    spread = float(residuals @ residuals)
    alike = max(0.0, float(residuals[1:] @ residuals[:-1]) / spread) if spread > 0 else 0.0
    # Not the fit's own: that is NaN for a constant.
    alone = math.sqrt(spread / (len(x) - 2) / float(((x - x.mean()) ** 2).sum()))
    error = alone * math.sqrt((1 + alike) / (1 - min(alike, 0.95)))
    margin = float(stats.t.ppf(0.995, len(x) - 2)) * error
    low, high = (float(fit.slope) - margin) * 3600, (float(fit.slope) + margin) * 3600
    grown = float(fit.slope) * float(x[-1] - x[0])
    return Trend(name, float(y[0]), float(y[-1]), low, high, low <= 0 or grown < NEGLIGIBLE * float(y.mean()))


def soak(seconds: float) -> Soak:
    """Runs mixed traffic against a server of its own for so long."""
    times: list[float] = []
    samples: dict[str, list[float]] = {name: [] for name in ("RSS, MB", "threads", "files", "memory maps", "p99, ms")}
    stopped = threading.Event()
    with Server("--compile-cache", "none") as server, Load(server.address, 2, 0.002) as load:
        others = [threading.Thread(target=act, args=(server.address, stopped)) for act in (_err, _cancel, _vary)]
        for other in others:
            other.start()
        began = time.monotonic()
        with nablad.Client(server.address) as client:
            for window in range(WINDOWS):
                latencies = _latencies(client, began + (window + 1) * seconds / WINDOWS)
                times.append(time.monotonic() - began)
                process = Path(f"/proc/{server.pid}")
                samples["RSS, MB"].append(server.status("VmRSS") / 1024)
                samples["threads"].append(server.status("Threads"))
                samples["files"].append(len(list((process / "fd").iterdir())))
                samples["memory maps"].append((process / "maps").read_bytes().count(b"\n"))
                samples["p99, ms"].append(float(np.quantile(latencies, 0.99)) * 1e3)
        stopped.set()
        for other in others:
            other.join()
        defects = len(server.defects)
    skip = int(WINDOWS * WARM_PART)
    trends = [trend(name, times[skip:], values[skip:]) for name, values in samples.items()]
    return Soak(trends, load.calls, load.wrong, len(load.lost) + defects)


def _latencies(client: nablad.Client, until: float) -> NDArray[np.float64]:
    """Seconds that calls take one after the other, until then."""
    taken: list[float] = []
    while not taken or time.monotonic() < until:
        began = time.perf_counter()
        client.gradient("rosenbrock", x=np.ones(3))
        taken.append(time.perf_counter() - began)
        time.sleep(0.005)
    return np.array(taken)


def _err(address: str, stopped: threading.Event) -> None:
    """Requests that are refused."""
    with nablad.Client(address) as client:
        while not stopped.wait(0.01):
            for name, point in (("nothing-of-this-name", np.ones(3)), ("rosenbrock", np.ones((2, 2)))):
                try:
                    client.gradient(name, x=point)
                except errors.NabladError:
                    continue


def _cancel(address: str, stopped: threading.Event) -> None:
    """Calls given up long before their answers."""
    with nablad.Client(address, retries=False) as client:
        while not stopped.wait(0.01):
            try:
                client.hessian("rosenbrock", x=np.ones((64, 20)), batched=True, timeout=0.001)
            except errors.NabladError:
                continue


def _vary(address: str, stopped: threading.Event) -> None:
    """Operators, sizes, streams of both kinds, in turn; the same few for ever, so that programs are found again."""
    turn = 0
    while not stopped.is_set():
        with nablad.Client(address) as client:  # connections come and go
            for _ in range(20):
                turn += 1
                x = np.ones((1 + turn % 8, 3 + turn % 3))
                client.hessian("rosenbrock", x=x, batched=True)
                client.jacobian("rosenbrock", x=x[0])
                with client.pipeline() as pipeline:
                    pipeline.gradient("rosenbrock", x=x[0]).result()
                if stopped.wait(0.02):
                    return
