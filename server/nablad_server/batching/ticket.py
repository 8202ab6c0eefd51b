"""A Ticket: one call that waits for its result."""

import enum
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple, Protocol

from nablad.errors import NabladError


class State(enum.Enum):
    """Where a ticket is on its way: down this list, but for what a worker puts back, which waits again."""

    NEW = enum.auto()
    """Not in a lane: about to run directly, or to be offered, or refused."""
    WAITING = enum.auto()
    RUNNING = enum.auto()
    DROPPED = enum.auto()
    """Cancelled, or past its deadline, before it ran."""


class Outcome(NamedTuple):
    """What came of a ticket that ran."""

    result: Any
    batch_points: int
    queue_seconds: float
    compile_seconds: float
    compute_seconds: float


class Owner(NamedTuple):
    """Whose a ticket is. Turns are shared among owners, and so is the queue once it is full.

    Attributes:
        name: which owner.
        share: the part of a full queue that is its own; what it holds beyond makes room for others.
    """

    name: Hashable
    share: float = 1.0


NOBODY = Owner("")
"""Owns what the server does of its own accord."""


class Ticket:
    """One call.

    Attributes:
        key: calls with equal keys may run together.
        payload: what the runner takes.
        points: how many points it holds.
        size: bytes that it keeps in memory.
        done: called once with the Outcome, or with the error, in whichever thread it came about; never called if the
            ticket is cancelled first.
        alone: it must not share a batch.
        deadline: on the batcher's clock; infinite if it has none.
        owner: whose it is.
        arrived: on the batcher's clock.
        compile_seconds: how long the compilation took that it waited for.
        state: kept by the batcher.
    """

    __slots__ = (
        "alone", "arrived", "compile_seconds", "deadline", "done", "key", "owner", "payload", "points", "size", "state",
    )  # fmt: skip

    def __init__(
        self,
        key: Hashable,
        payload: Any,
        points: int,
        size: int,
        done: Callable[[Outcome | NabladError], None],
        *,
        alone: bool = False,
        deadline: float = float("inf"),
        owner: Owner = NOBODY,
    ) -> None:
        self.key = key
        self.payload = payload
        self.points = points
        self.size = size
        self.done = done
        self.alone = alone
        self.deadline = deadline
        self.owner = owner
        self.arrived = 0.0
        self.compile_seconds = 0.0
        self.state = State.NEW


Done = Callable[[NabladError | None, float], None]


class Prepared(Protocol):
    """A batch of a known number of points that can run now.

    Attributes:
        points: how many it is for.
        computed: how many points it computes, padding included.
        first: how many of its points are computed first, before some others; all, if all are computed at once.
        seconds: an estimate of what that takes.
        calls_back: whether it may take longer than any estimate, because it calls code that is not ours.
        aside: what it waits for without using this process, if it does: such batches keep off the other workers, and of
            two that wait for the same only one runs at a time.
    """

    @property
    def points(self) -> int: ...  # noqa: D102 - described above
    @property
    def computed(self) -> int: ...  # noqa: D102 - described above
    @property
    def first(self) -> int: ...  # noqa: D102 - described above
    @property
    def seconds(self) -> float: ...  # noqa: D102 - described above
    @property
    def calls_back(self) -> bool: ...  # noqa: D102 - described above
    @property
    def aside(self) -> Hashable: ...  # noqa: D102 - described above

    def __call__(self, payloads: Sequence[Any], /) -> Sequence[Any]:
        """Turns the payloads of a batch into their results, in order. Raises NabladError if the batch fails."""


class Runner(Protocol):
    """What executes batches: the seam between batching and what is computed."""

    def prepare(self, key: Any, points: int, done: Done, owner: Owner, /) -> Prepared | None:
        """What runs a batch of so many points.

        None if it is not ready yet: then `done(error, seconds)` is called once, from any thread, when it is. What makes
        it ready is done in the owner's turn.
        Raises NabladError if it never will be; ResourceExhausted if it cannot be made ready now for this owner.
        """


class Observer(Protocol):
    """Who wants to know of executions."""

    def executed(self, key: Any, points: int, computed: int, seconds: float, /) -> None:
        """A batch of `points` points of one key ran as `computed`, padding included, in so many seconds."""
