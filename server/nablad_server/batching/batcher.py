"""The Batcher: drives the lanes with a real clock and real threads.

A call either runs at once in its caller's thread (light work, nothing of its kind waiting) or waits in the lane of its
key. Worker threads take batches from the lanes in fair turns whenever they are free: an idle server adds no delay, and
a busy one batches by itself, because calls gather while the workers are busy.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import CancelledError

from nablad.errors import Cancelled, DeadlineExceeded, Draining, Internal, NabladError, QueueFull
from nablad_server.batching.lane import Lane
from nablad_server.batching.policy import Policy
from nablad_server.batching.ticket import Outcome, Prepared, Runner, State, Ticket
from nablad_server.batching.turns import Turns

MAX_COSTS = 16384


class Batcher:
    """Runs tickets, together where that helps."""

    def __init__(self, runner: Runner, policy: Policy, clock: Callable[[], float] = time.monotonic) -> None:
        """Starts the workers. `clock` is what the tickets' deadlines are on."""
        self._runner = runner
        self._policy = policy
        self._clock = clock
        self._condition = threading.Condition()
        self._lanes: dict[Hashable, Lane] = {}
        self._preparing: set[Hashable] = set()  # lanes whose program is being compiled
        self._costs: dict[tuple[Hashable, int], float] = {}  # seconds of a batch, by key and size class
        self._turns = Turns()
        self._tickets = 0
        self._size = 0
        self._closed = False
        self._workers = [
            threading.Thread(target=self._work, name=f"nablad-batch-{index}", daemon=True)
            for index in range(policy.workers)
        ]
        for worker in self._workers:
            worker.start()

    def call(self, ticket: Ticket, parked: contextlib.AbstractContextManager[object] | None = None) -> Outcome:
        """Runs a ticket and returns its outcome.

        `parked` is entered while the calling thread only waits.

        Raises:
            DeadlineExceeded: the deadline passed; if it did before the work began, no work was done.
            Cancelled: the ticket was cancelled while it waited.
            NabladError: the work failed, or cannot be taken on (QueueFull, Draining).
        """
        outcome = self._try_direct(ticket)
        if outcome is not None:
            return outcome
        self.submit(ticket)
        with parked or contextlib.nullcontext():
            timeout = None if ticket.deadline == float("inf") else max(0.0, ticket.deadline - self._clock())
            try:
                return ticket.future.result(timeout)
            except CancelledError:
                raise _cancelled() from None
            except NabladError:
                raise  # before TimeoutError: DeadlineExceeded is one
            except TimeoutError:
                self.cancel(ticket)
                raise _expired(ticket) from None

    def submit(self, ticket: Ticket) -> None:
        """Puts a ticket into its lane; its future tells the outcome.

        Raises:
            Draining: no new work is taken on.
            Cancelled: the ticket was cancelled already.
            QueueFull: too many tickets, or bytes, wait.
            DeadlineExceeded: the deadline has passed already.
        """
        ticket.arrived = self._clock()
        if ticket.deadline <= ticket.arrived:
            raise _expired(ticket)
        with self._condition:
            if self._closed:
                raise Draining("the server is shutting down; retry elsewhere")
            if ticket.state is State.DROPPED:
                raise _cancelled()
            policy = self._policy
            if self._tickets >= policy.max_tickets or self._size + ticket.size > policy.max_bytes:
                raise QueueFull(
                    f"{self._tickets} calls holding {self._size} bytes wait already; the limits are "
                    f"{policy.max_tickets} calls and {policy.max_bytes} bytes. Retry after {policy.retry_seconds} s",
                    retry_after=policy.retry_seconds,
                )
            lane = self._lanes.get(ticket.key)
            if lane is None:
                lane = self._lanes[ticket.key] = Lane(ticket.key)
            lane.offer(ticket)
            self._count(ticket, 1)
            self._condition.notify()

    def cancel(self, ticket: Ticket) -> bool:
        """Drops a ticket that is new or waits: no work will be done for it. False if it runs or has run."""
        with self._condition:
            if ticket.state is State.NEW:
                ticket.state = State.DROPPED
                return ticket.future.cancel()
            lane = self._lanes.get(ticket.key)
            if lane is None or not lane.cancel(ticket):
                return False
            self._count(ticket, -1)
            self._drop_if_empty(lane)
        return ticket.future.cancel()

    def waiting(self) -> int:
        """How many tickets wait."""
        with self._condition:
            return self._tickets

    def close(self, timeout: float | None = None) -> bool:
        """Takes on no new work, finishes what waits, ends the workers; False if some run on after `timeout` seconds.

        Work whose program is not ready waits for it: close what compiles first.
        """
        with self._condition:
            self._closed = True
            self._condition.notify_all()
        finish_by = None if timeout is None else time.monotonic() + timeout
        for worker in self._workers:
            worker.join(None if finish_by is None else max(0.0, finish_by - time.monotonic()))
        return not any(worker.is_alive() for worker in self._workers)

    def _try_direct(self, ticket: Ticket) -> Outcome | None:
        """Runs a light ticket in this thread if nothing of its lane waits; None if it is not for that."""
        key = ticket.key
        # Read without the lock: at worst a call that could have gone directly waits, or the other way round.
        if key in self._lanes or self._closed or not self._policy.direct(self._estimate(key, ticket.points)):
            return None
        started = self._clock()
        if ticket.deadline <= started:
            raise _expired(ticket)
        prepared = self._runner.prepare(key, ticket.points, _nobody_waits)
        if prepared is None:
            return None
        ticket.state = State.RUNNING
        results = prepared([ticket.payload])
        seconds = self._clock() - started
        self._learn(key, ticket.points, seconds)
        return Outcome(results[0], ticket.points, 0.0, 0.0, seconds)

    def _work(self) -> None:
        """A worker's life: wait for a lane that can run, take its batch, run it."""
        while True:
            with self._condition:
                lane = self._next_lane()
                while lane is None:
                    if self._closed and not self._lanes:
                        self._condition.notify_all()
                        return
                    self._condition.wait()
                    lane = self._next_lane()
                prepared = self._prepare(lane)
                if prepared is None:
                    continue
                batch, expired = lane.take(self._clock(), self._policy.max_points)
                for ticket in (*batch, *expired):
                    self._count(ticket, -1)
                self._drop_if_empty(lane)
                estimate = self._estimate(lane.key, sum(ticket.points for ticket in batch)) or 0.0
                self._turns.charge(lane.key, estimate)
            for ticket in expired:
                ticket.future.set_exception(_expired(ticket))
            if batch:
                started = self._clock()
                self._run(prepared, batch)
                with self._condition:
                    self._turns.charge(lane.key, self._clock() - started - estimate)

    def _next_lane(self) -> Lane | None:
        key = self._turns.next(key for key in self._lanes if key not in self._preparing)
        return None if key is None else self._lanes[key]

    def _prepare(self, lane: Lane) -> Prepared | None:
        """What runs the lane's next batch; None if it must wait, or if it failed and the lane was emptied."""
        key = lane.key
        self._preparing.add(key)
        try:
            prepared = self._runner.prepare(
                key,
                lane.next_points(self._policy.max_points),
                lambda error, seconds: self._prepared(key, error, seconds),
            )
        except Exception as error:
            self._preparing.discard(key)
            self._fail(lane, error if isinstance(error, NabladError) else _unexpected(error))
            return None
        if prepared is not None:
            self._preparing.discard(key)
        return prepared

    def _prepared(self, key: Hashable, error: NabladError | None, seconds: float) -> None:
        """A program that a lane waited for is ready, or never will be."""
        with self._condition:
            self._preparing.discard(key)
            lane = self._lanes.get(key)
            if lane is None:
                self._condition.notify_all()
                return
            for ticket in lane.waiting():
                ticket.compile_seconds = min(seconds, self._clock() - ticket.arrived)
            if error is not None:
                self._fail(lane, error)
            self._condition.notify_all()

    def _fail(self, lane: Lane, error: NabladError) -> None:
        for ticket in lane.flush():
            self._count(ticket, -1)
            ticket.future.set_exception(_copied(error))
        self._drop_if_empty(lane)

    def _run(self, prepared: Prepared, batch: Sequence[Ticket]) -> None:
        started = self._clock()
        points = sum(ticket.points for ticket in batch)
        try:
            results = prepared([ticket.payload for ticket in batch])
            if len(results) != len(batch):
                raise Internal(f"{len(results)} results for {len(batch)} calls")
        except Exception as error:
            if len(batch) == 1:
                batch[0].future.set_exception(error if isinstance(error, NabladError) else _unexpected(error))
                return
            for ticket in batch:  # somebody in this batch makes it fail: alone, only that one does
                self._run(prepared, [ticket])
            return
        seconds = self._clock() - started
        self._learn(batch[0].key, points, seconds)
        for ticket, result in zip(batch, results, strict=True):
            ticket.future.set_result(Outcome(result, points, started - ticket.arrived, ticket.compile_seconds, seconds))

    def _estimate(self, key: Hashable, points: int) -> float | None:
        return self._costs.get((key, points.bit_length()))

    def _learn(self, key: Hashable, points: int, seconds: float) -> None:
        if len(self._costs) > MAX_COSTS:
            self._costs.clear()  # estimates come back with the next calls
        size_class = (key, points.bit_length())
        self._costs[size_class] = self._policy.blended(self._costs.get(size_class), seconds)

    def _drop_if_empty(self, lane: Lane) -> None:
        if lane.tickets == 0 and self._lanes.get(lane.key) is lane:
            del self._lanes[lane.key]
            if self._closed:
                self._condition.notify_all()

    def _count(self, ticket: Ticket, sign: int) -> None:
        self._tickets += sign
        self._size += sign * ticket.size


def _nobody_waits(error: NabladError | None, seconds: float) -> None:
    """A direct call does not wait: it goes to its lane instead."""


def _cancelled() -> Cancelled:
    return Cancelled("the caller went away before the work was begun")


def _expired(ticket: Ticket) -> DeadlineExceeded:
    if ticket.state is State.RUNNING:
        return DeadlineExceeded("the deadline passed while the work was under way; allow more time")
    return DeadlineExceeded(
        "the deadline passed before the work was begun, and none was done. If these shapes are new, their program is "
        "being compiled and will be ready for a later call"
    )


def _copied(error: NabladError) -> NabladError:
    """An error of one's own for every caller: raising one object in many threads would mix their tracebacks."""
    return type(error)(error.message, field=error.field, metadata=error.metadata, retry_after=error.retry_after)


def _unexpected(error: Exception) -> NabladError:
    internal = Internal(f"running a batch failed: {type(error).__name__}")
    internal.__cause__ = error
    return internal
