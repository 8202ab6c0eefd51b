"""A Ticket: one call that waits for its result."""

import enum
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from nablad.errors import NabladError


class State(enum.Enum):
    """Where a ticket is on its way; it only ever moves down this list."""

    NEW = enum.auto()
    """Not in a lane: about to run directly, or to be offered, or refused."""
    WAITING = enum.auto()
    RUNNING = enum.auto()
    DROPPED = enum.auto()
    """Cancelled, or past its deadline, before it ran."""


class Outcome(NamedTuple):
    """What a ticket's future resolves to."""

    result: Any
    batch_points: int
    queue_seconds: float
    compile_seconds: float
    compute_seconds: float


@dataclass(eq=False)
class Ticket:
    """One call.

    Attributes:
        key: calls with equal keys may run together.
        payload: what the runner takes.
        points: how many points it holds.
        size: bytes that it keeps in memory.
        alone: it must not share a batch.
        deadline: on the batcher's clock; infinite if it has none.
        arrived: on the batcher's clock.
        compile_seconds: how long the compilation took that it waited for.
        future: resolves to an Outcome.
        state: kept by the lane, once it is in one.
    """

    key: Hashable
    payload: Any
    points: int
    size: int
    alone: bool = False
    deadline: float = float("inf")
    arrived: float = 0.0
    compile_seconds: float = 0.0
    future: "Future[Outcome]" = field(default_factory=Future)
    state: State = State.NEW


Done = Callable[[NabladError | None, float], None]
Prepared = Callable[[Sequence[Any]], Sequence[Any]]


class Runner(Protocol):
    """What executes batches: the seam between batching and what is computed."""

    def prepare(self, key: Any, points: int, done: Done) -> Prepared | None:
        """Something that turns the payloads of a batch into their results, in order.

        None if it is not ready yet: then `done(error, seconds)` is called once, from any thread, when it is.
        Raises NabladError if it never will be.
        """
