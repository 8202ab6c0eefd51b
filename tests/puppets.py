"""A Runner whose every move the test decides."""

import threading
from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from clock import HandClock
from nablad.errors import NabladError
from nablad_server.batching.ticket import Done, Owner

SAFETY = 30.0
"""Seconds after which something that must happen is taken not to happen. No test that passes waits for it."""

MEDIUM = 1e-3
"""Seconds: too much to run where calls arrive, and not heavy, by the policy's defaults."""


class Batch(NamedTuple):
    """One execution that the runner was asked for."""

    key: Hashable
    payloads: tuple[Any, ...]
    thread: int


@dataclass(frozen=True)
class PuppetPrepared:
    """What the runner says of a batch, and what runs it."""

    points: int
    computed: int
    first: int
    seconds: float
    calls_back: bool
    aside: Hashable
    execute: Callable[[Sequence[Any]], Sequence[Any]]

    def __call__(self, payloads: Sequence[Any], /) -> Sequence[Any]:
        return self.execute(payloads)


class PuppetRunner:
    """Answers each payload with `("done", payload)`.

    Attributes:
        asked: what was to be prepared, key and points, in order.
        askers: in whose turn, likewise.
        batches: the executions begun, in order.
        failing: payloads that make the whole execution raise, and what it raises.
        refusing: keys whose preparation raises, and what it raises.
        estimates: how long an execution of a key is said to take; MEDIUM if it is not here.
        calling_back: keys said to call back.
        aside: what executions of a key are said to wait for.
        first: for each number of points of a key, how many the first of several executions is said to hold at most.
        padding: how many points more than asked for an execution of a key is said to compute.
        seconds: how far an execution of a key moves the clock.
    """

    def __init__(self, clock: HandClock | None = None) -> None:
        """`clock` is what executions move."""
        self.asked: list[tuple[Hashable, int]] = []
        self.askers: list[tuple[Hashable, Owner]] = []
        self.batches: list[Batch] = []
        self.failing: dict[Any, Exception] = {}
        self.refusing: dict[Hashable, Exception] = {}
        self.estimates: dict[Hashable, float] = {}
        self.calling_back: set[Hashable] = set()
        self.aside: dict[Hashable, Hashable] = {}
        self.first: dict[Hashable, dict[int, int]] = {}
        self.padding: dict[Hashable, int] = {}
        self.seconds: dict[Hashable, float] = {}
        self._clock = clock
        self._condition = threading.Condition()
        self._cold: dict[Hashable, list[Done]] = {}
        self._holds: Callable[[Hashable], bool] = lambda _: False

    def prepare(self, key: Any, points: int, done: Done, owner: Owner, /) -> PuppetPrepared | None:
        """The Runner's method."""
        with self._condition:
            self.asked.append((key, points))
            self.askers.append((key, owner))
            if key in self.refusing:
                raise self.refusing[key]
            if key in self._cold:
                self._cold[key].append(done)
                self._condition.notify_all()
                return None
        return PuppetPrepared(
            points=points,
            first=min(points, self.first.get(key, {}).get(points, points)),
            computed=points + self.padding.get(key, 0),
            seconds=self.estimates.get(key, MEDIUM),
            calls_back=key in self.calling_back,
            aside=self.aside.get(key),
            execute=lambda payloads: self._execute(key, payloads),
        )

    def hold(self, keys: Collection[Hashable] | None = None) -> None:
        """From now on executions of these keys, or of all, wait until they are let go; no others do."""
        with self._condition:
            self._holds = (lambda _: True) if keys is None else (lambda key: key in keys)
            self._condition.notify_all()

    def let_go(self) -> None:
        """Lets all executions go on, now and later."""
        with self._condition:
            self._holds = lambda _: False
            self._condition.notify_all()

    def make_cold(self, key: Hashable) -> None:
        """The key is not ready until `finish`."""
        with self._condition:
            self._cold[key] = []

    def finish(self, key: Hashable, error: NabladError | None = None, seconds: float = 0.0) -> None:
        """The key becomes ready, or turns out never to be; those who wait for it are told."""
        with self._condition:
            waiting = self._cold.pop(key)
        for done in waiting:
            done(error, seconds)

    def await_batches(self, count: int) -> list[Batch]:
        """Waits until so many executions have begun."""
        self._await(lambda: len(self.batches) >= count)
        return self.batches[:count]

    def await_demand(self, key: Hashable, count: int) -> None:
        """Waits until a cold key was asked for so many times."""
        self._await(lambda: len(self._cold.get(key, ())) >= count)

    def executed(self) -> list[Any]:
        """The payloads of all executions, in order."""
        return [payload for batch in self.batches for payload in batch.payloads]

    def _await(self, happened: Callable[[], bool]) -> None:
        with self._condition:
            if not self._condition.wait_for(happened, SAFETY):
                raise AssertionError("what the test waits for did not happen")

    def _execute(self, key: Hashable, payloads: Sequence[Any]) -> Sequence[Any]:
        with self._condition:
            self.batches.append(Batch(key, tuple(payloads), threading.get_ident()))
            self._condition.notify_all()
            if not self._condition.wait_for(lambda: not self._holds(key), SAFETY):
                raise AssertionError("nobody let this execution go")
        if self._clock is not None:
            self._clock.advance(self.seconds.get(key, 0.0))
        for payload in payloads:
            if payload in self.failing:
                raise self.failing[payload]
        return [("done", payload) for payload in payloads]
