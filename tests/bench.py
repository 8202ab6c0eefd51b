"""A batcher between a puppet runner and a hand clock, and what its tests say to it."""

import queue
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

from clock import HandClock
from nablad.errors import Draining, NabladError
from nablad_server.batching.batcher import Batcher
from nablad_server.batching.policy import Policy
from nablad_server.batching.ticket import Outcome, Ticket
from puppets import SAFETY, PuppetRunner

NEVER = float("inf")


class Asked(Ticket):
    """A ticket that keeps what it came to.

    Attributes:
        answers: every Outcome or error that it was told: one, if all is well.
    """

    def __init__(self, key: Hashable, payload: Any, points: int = 1, size: int = 1, **options: Any) -> None:
        self.answers: queue.SimpleQueue[Outcome | NabladError] = queue.SimpleQueue()
        super().__init__(key, payload, points, size, self.answers.put, **options)


class Execution(NamedTuple):
    """What an observer was told."""

    key: Hashable
    points: int
    computed: int
    seconds: float


class Observed:
    """An observer that keeps what it was told."""

    def __init__(self) -> None:
        self.executions: list[Execution] = []

    def executed(self, key: Any, points: int, computed: int, seconds: float) -> None:
        """The Observer's method."""
        self.executions.append(Execution(key, points, computed, seconds))


class Bench:
    """A batcher between a puppet runner and a clock that stands still.

    Unless the policy says otherwise it has the light worker alone, so that the order of executions is certain.
    """

    def __init__(self, **policy: Any) -> None:
        self.clock = HandClock()
        self.runner = PuppetRunner(self.clock)
        self.observed = Observed()
        self.policy = Policy(**{"heavy_workers": 0} | policy)
        self.batcher = Batcher(self.runner, self.policy, self.observed, self.clock)

    def submit(self, payload: Any, key: str = "key", **options: Any) -> Asked:
        """A ticket that arrives by itself."""
        ticket = self.ticket(payload, key, **options)
        self.batcher.take([ticket])
        return ticket

    def ticket(self, payload: Any, key: str = "key", **options: Any) -> Asked:
        return Asked(key, payload, **options)

    def occupy(self) -> Asked:
        """Makes every worker busy until the runner lets go."""
        self.runner.hold()
        before = len(self.runner.batches)
        blockers = [self.submit("blocker", f"blocker {worker}") for worker in range(1 + self.policy.heavy_workers)]
        self.runner.await_batches(before + len(blockers))
        return blockers[0]

    def await_lane(self, key: str) -> None:
        """Waits until a worker has found a key not ready: asked for where it arrived, and again from its lane."""
        self.runner.await_demand(key, 2)

    def batches(self) -> list[tuple[Any, ...]]:
        """The payloads of each execution, the blockers' aside."""
        return [batch.payloads for batch in self.runner.batches if batch.payloads != ("blocker",)]


def outcome(ticket: Asked) -> Outcome:
    """What a ticket came to."""
    answer = ticket.answers.get(timeout=SAFETY)
    if isinstance(answer, NabladError):
        raise answer
    return answer


def error(ticket: Asked) -> NabladError | None:
    """Why a ticket failed, if it did."""
    answer = ticket.answers.get(timeout=SAFETY)
    return answer if isinstance(answer, NabladError) else None


Make = Callable[..., Bench]


def draining(b: Bench) -> bool:
    """Whether the batcher takes on nothing new."""
    probe = b.submit("probe", "probe")
    b.batcher.cancel(probe)
    return not probe.answers.empty() and isinstance(error(probe), Draining)
