"""A batcher between a puppet runner and a hand clock, and what its tests say to it."""

from collections.abc import Callable
from typing import Any

from clock import HandClock
from nablad.errors import Draining
from nablad_server.batching.batcher import Batcher
from nablad_server.batching.policy import Policy
from nablad_server.batching.ticket import Outcome, Ticket
from puppets import SAFETY, PuppetRunner

NEVER = float("inf")


class Bench:
    """A batcher between a puppet runner and a clock that stands still."""

    def __init__(self, **policy: Any) -> None:
        self.clock = HandClock()
        self.runner = PuppetRunner(self.clock)
        self.policy = Policy(**{"workers": 1, "direct_seconds": 0.0} | policy)
        self.batcher = Batcher(self.runner, self.policy, self.clock)

    def submit(self, payload: Any, key: str = "key", **options: Any) -> Ticket:
        ticket = self.ticket(payload, key, **options)
        self.batcher.submit(ticket)
        return ticket

    def ticket(self, payload: Any, key: str = "key", points: int = 1, size: int = 1, **options: Any) -> Ticket:
        return Ticket(key, payload, points, size, **options)

    def occupy(self) -> Ticket:
        """Makes every worker busy until the runner lets go."""
        self.runner.hold()
        before = len(self.runner.batches)
        blockers = [self.submit("blocker", f"blocker {worker}") for worker in range(self.policy.workers)]
        self.runner.await_batches(before + len(blockers))
        return blockers[0]

    def batches(self) -> list[tuple[Any, ...]]:
        """The payloads of each execution, the blockers' aside."""
        return [batch.payloads for batch in self.runner.batches if batch.payloads != ("blocker",)]


def outcome(ticket: Ticket) -> Outcome:
    """What a ticket came to."""
    return ticket.future.result(SAFETY)


def error(ticket: Ticket) -> BaseException | None:
    """Why a ticket failed, if it did."""
    return ticket.future.exception(SAFETY)


class Until:
    """Parks a call once its execution has begun."""

    def __init__(self, runner: PuppetRunner) -> None:
        self._runner = runner

    def __enter__(self) -> None:
        self._runner.await_batches(1)

    def __exit__(self, *_: object) -> None:
        pass


Make = Callable[..., Bench]


def draining(b: Bench) -> bool:
    """Whether the batcher takes on nothing new."""
    try:
        probe = b.submit("probe", "probe")
    except Draining:
        return True
    b.batcher.cancel(probe)
    return False
