"""A Runner whose every move the test decides."""

import threading
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

from clock import HandClock
from nablad.errors import NabladError
from nablad_server.batching.ticket import Done, Prepared

SAFETY = 30.0
"""Seconds after which something that must happen is taken not to happen. No test that passes waits for it."""


class Batch(NamedTuple):
    """One execution that the runner was asked for."""

    key: Hashable
    payloads: tuple[Any, ...]
    thread: int


class PuppetRunner:
    """Answers each payload with `("done", payload)`.

    Attributes:
        asked: what was to be prepared, key and points, in order.
        batches: the executions begun, in order.
        failing: payloads that make the whole execution raise, and what it raises.
        refusing: keys whose preparation raises, and what it raises.
        seconds: how far an execution of a key moves the clock.
    """

    def __init__(self, clock: HandClock | None = None) -> None:
        """`clock` is what executions move."""
        self.asked: list[tuple[Hashable, int]] = []
        self.batches: list[Batch] = []
        self.failing: dict[Any, Exception] = {}
        self.refusing: dict[Hashable, Exception] = {}
        self.seconds: dict[Hashable, float] = {}
        self._clock = clock
        self._condition = threading.Condition()
        self._cold: dict[Hashable, list[Done]] = {}
        self._held = False
        self._permits = 0

    def prepare(self, key: Any, points: int, done: Done) -> Prepared | None:
        """The Runner's method."""
        with self._condition:
            self.asked.append((key, points))
            if key in self.refusing:
                raise self.refusing[key]
            if key in self._cold:
                self._cold[key].append(done)
                self._condition.notify_all()
                return None
        return lambda payloads: self._execute(key, payloads)

    def hold(self) -> None:
        """From now on each execution waits for a release."""
        with self._condition:
            self._held, self._permits = True, 0

    def release(self, executions: int = 1) -> None:
        """Lets so many executions go on."""
        with self._condition:
            self._permits += executions
            self._condition.notify_all()

    def let_go(self) -> None:
        """Lets all executions go on, now and later."""
        with self._condition:
            self._held = False
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

    def await_demand(self, key: Hashable) -> None:
        """Waits until somebody waits for a cold key."""
        self._await(lambda: bool(self._cold.get(key)))

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
            if not self._condition.wait_for(lambda: not self._held or self._permits > 0, SAFETY):
                raise AssertionError("nobody released this execution")
            if self._held:
                self._permits -= 1
        if self._clock is not None:
            self._clock.advance(self.seconds.get(key, 0.0))
        for payload in payloads:
            if payload in self.failing:
                raise self.failing[payload]
        return [("done", payload) for payload in payloads]
