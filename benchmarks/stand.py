"""What the claims measure with: servers, floors and load, started when first needed and ended together."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from benchmarks.figures import highest, quickest
from benchmarks.floors import KINDS
from benchmarks.processes import ROOT, Echo, Server, Worker, cores
from benchmarks.workloads import WORKLOADS

Measurement = Callable[[], float]
IN_FLIGHT = 64
SHARED = "shared"
"""The compile cache of the server that all claims share."""

WARM_POINTS = tuple(2**k for k in range(11))


@dataclass(frozen=True)
class Pace:
    """How thorough a run is.

    Attributes:
        repeats: of every measurement.
        seconds: of one measurement.
        points: sent through a pipeline in one measurement.
        calls: of the claim about cancelled and malformed ones.
        restarts: of the server, cold and warm.
    """

    repeats: int
    seconds: float
    points: int
    calls: int
    restarts: int


QUICK = Pace(repeats=3, seconds=0.4, points=20_000, calls=2_000, restarts=1)
FULL = Pace(repeats=7, seconds=1.5, points=100_000, calls=10_000, restarts=3)


class Stand:
    """The parts of one run. Only what is being measured runs; the rest waits.

    Attributes:
        pace: how thorough the run is.
        scratch: a directory of this run's own.
        curves: for each workload and batch of points, the rates in process, in points/s.
    """

    def __init__(self, pace: Pace, scratch: Path, say: Callable[[str], None]) -> None:
        """`scratch` is an empty directory of this run's own; `say` shows what is being measured."""
        self.pace = pace
        self.curves: dict[str, dict[int, list[float]]] = {}
        self._best: dict[str, int] = {}
        self.scratch = scratch
        self._say = say
        self._answering, self._asking = cores()
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()

    def start_server(self, compile_cache: str, *more: str) -> Server:
        """A server with all that the claims call compiled, its cache in a directory of that name; `more` options."""
        options = ["--compile-cache", str(self.scratch / compile_cache), *more]
        for name in ("W1", "W2", "W3", "W4"):
            options += ["--warm", WORKLOADS[name].warm(*WARM_POINTS)]
        return Server(*options, str(ROOT / "benchmarks" / "functions.py"), core=self._answering)

    @cached_property
    def server(self) -> Server:
        """The server that all claims share. It starts with an empty compile cache."""
        self._say("starting a server with an empty compile cache")
        return self._stack.enter_context(self.start_server(SHARED))

    @cached_property
    def load(self) -> Worker:
        """What calls."""
        return self._worker("benchmarks.load", self._asking)

    @cached_property
    def other_load(self) -> Worker:
        """Another caller beside it, which gives way to it: their common core is not what is measured."""
        worker = self._worker("benchmarks.load", self._asking)
        worker.give_way()
        return worker

    @cached_property
    def in_process(self) -> Worker:
        """Where the executables run."""
        return self._worker("benchmarks.in_process", self._answering)

    @cached_property
    def echoes(self) -> dict[str, str]:
        """The addresses of the bare echo servers."""
        return {kind: self._stack.enter_context(Echo(kind, core=self._answering)).address for kind in KINDS}

    def response_length(self, workload: str, batch: int | None = None) -> int:
        """The bytes of one answer of nablad's, which is checked."""
        found: int = self.load.ask("response_length", address=self.server.address, workload=workload, batch=batch)
        return found

    def rate(self, do: str, workload: str, *, address: str = "", **job: Any) -> Measurement:
        """A measurement of the rate that a job of the load reports, of nablad if no other address is given."""
        job |= {"address": address or self.server.address, "workload": workload}
        return lambda: float(self.load.ask(do, **job))

    def median(self, workload: str, *, do: str = "one_at_a_time", address: str = "", **job: Any) -> Measurement:
        """A measurement of the median time of one call, one after the other, likewise."""
        job |= {"address": address or self.server.address, "workload": workload, "seconds": self.pace.seconds}
        return lambda: float(self.load.ask(do, **job)["p50"])

    def echo_seconds(self, workload: str, batch: int | None = None) -> dict[str, Measurement]:
        """For each echo server a measurement of the median time of one call."""
        length = self.response_length(workload, batch)
        return {
            f"echo ({kind}), s": self.median(workload, address=address, batch=batch, echo=length)
            for kind, address in self.echoes.items()
        }

    def in_flight(self, workload: str, *, address: str = "", echo: int | None = None) -> Measurement:
        """A measurement of calls a second with many in flight."""
        job = {"calls": IN_FLIGHT, "seconds": self.pace.seconds, "echo": echo}
        return self.rate("in_flight", workload, address=address, **job)

    def echo_rate(self, workload: str) -> dict[str, Measurement]:
        """For each echo server a measurement of its rate with many calls in flight."""
        length = self.response_length(workload)
        return {
            f"echo ({kind}), calls/s": self.in_flight(workload, address=address, echo=length)
            for kind, address in self.echoes.items()
        }

    def program_rate(self, workload: str, batch: int) -> float:
        """Points a second of the executable in process, with so many points a call."""
        found: float = self.in_process.ask("rate", workload=workload, batch=batch, seconds=min(self.pace.seconds, 1.0))
        self.curves.setdefault(workload, {}).setdefault(batch, []).append(found)
        return found

    def program_seconds(self, workload: str) -> dict[str, Measurement]:
        """A measurement of the time that the executable in process takes for one point."""
        return {"in process, s": lambda: 1 / self.program_rate(workload, 1)}

    def best_program(self, workload: str) -> dict[str, Measurement]:
        """A measurement of the executable's rate at the batch that serves it best."""
        if workload not in self._best:
            self._say(f"{workload}: in process, the best batch")
            rates = {batch: self.program_rate(workload, batch) for batch in WORKLOADS[workload].batches}
            self._best[workload] = max(rates, key=lambda batch: rates[batch])
        batch = self._best[workload]
        return {f"in process ({batch} at a time), points/s": lambda: self.program_rate(workload, batch)}

    def interleave(self, case: str, measurements: Mapping[str, Measurement]) -> dict[str, list[float]]:
        """Takes every measurement once, then every one once more, …: samples by name."""
        found: dict[str, list[float]] = {name: [] for name in measurements}
        for repeat in range(self.pace.repeats):
            for name, measure in measurements.items():
                self._say(f"{case}: {name.partition(',')[0]}, {repeat + 1} of {self.pace.repeats}")
                found[name].append(measure())
        return found

    def say(self, text: str) -> None:
        """Shows what is going on."""
        self._say(text)

    def _worker(self, module: str, core: set[int]) -> Worker:
        return self._stack.enter_context(Worker(module, core=core))


def echo_of(found: Mapping[str, list[float]]) -> list[float]:
    """The samples of the better echo: the quicker of times, the higher of rates."""
    times = [samples for name, samples in found.items() if name.startswith("echo") and name.endswith(", s")]
    rates = [samples for name, samples in found.items() if name.startswith("echo") and not name.endswith(", s")]
    return list(quickest(times) if times else highest(rates))


def program_of(found: Mapping[str, list[float]]) -> list[float]:
    """The samples of the executable in process."""
    return next(samples for name, samples in found.items() if name.startswith("in process"))
