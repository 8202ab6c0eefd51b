"""The Batcher: drives the lanes with a real clock and real threads.

Calls that arrive together and ask the same run together. Light batches run at once in the thread that they arrived in;
others wait in the lane of their key, from which workers take batches in fair turns whenever they are free. So an idle
server adds no delay, and a busy one batches by itself, because calls gather while it is busy.
"""

import contextlib
import enum
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

from nablad.errors import DeadlineExceeded, Draining, Internal, NabladError, QueueFull, ResourceExhausted
from nablad_server.batching.held import Held
from nablad_server.batching.lane import Lane
from nablad_server.batching.policy import Policy
from nablad_server.batching.ticket import Observer, Outcome, Owner, Prepared, Runner, State, Ticket
from nablad_server.turns import Turns

HEAVY_NICENESS = 10


class Waiting(NamedTuple):
    """What waits: calls, the bytes that they hold, and in how many lanes."""

    calls: int
    size: int
    lanes: int


class Worker(enum.Enum):
    """What batches a worker takes."""

    LIGHT = enum.auto()
    ANY = enum.auto()  # all but those set aside
    ASIDE = enum.auto()


class Batcher:
    """Runs tickets, together where that helps."""

    def __init__(
        self, runner: Runner, policy: Policy, observer: Observer, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Starts the workers. `clock` is what the tickets' deadlines are on."""
        self._runner = runner
        self._policy = policy
        self._observer = observer
        self._clock = clock
        lock = threading.RLock()
        self._condition = threading.Condition(lock)
        # Those who take what was set aside are not woken for anything else: waking a thread costs more than light work.
        self._set_aside = threading.Condition(lock)
        self._lanes: dict[Hashable, Lane] = {}
        self._preparing: set[Hashable] = set()  # lanes whose program is being compiled
        self._turns = Turns()  # of lanes
        self._owners = Turns()  # of owners, which go before those of lanes: asking for many kinds earns no more turns
        self._failed: deque[tuple[Ticket, NabladError]] = deque()
        self._held = Held(policy.max_tickets, policy.max_bytes)
        self._closed = False
        self._aside: set[Hashable] = set()  # what batches that run wait for
        kinds = [Worker.LIGHT] + [Worker.ANY] * policy.heavy_workers + [Worker.ASIDE] * policy.aside_workers
        self._workers = [
            threading.Thread(target=self._work, args=(kind,), name=f"nablad-batch-{index}", daemon=True)
            for index, kind in enumerate(kinds)
        ]
        for worker in self._workers:
            worker.start()

    def take(self, tickets: Sequence[Ticket]) -> None:
        """Takes on tickets that arrived together. What is light runs before this returns.

        Their `done` is called with the Outcome, or with DeadlineExceeded (no work was done), QueueFull, Draining, or
        whatever error the work gave.
        """
        now = self._clock()
        # Others wait while this thread computes: not longer than for one heavy batch.
        until = now + self._policy.heavy_seconds
        groups: dict[Hashable, list[Ticket]] = {}
        for ticket in tickets:
            if ticket.state is not State.NEW:
                continue
            ticket.arrived = now
            if ticket.alone:
                self._take([ticket], until)
            elif ticket.key in groups:
                groups[ticket.key].append(ticket)
            else:
                groups[ticket.key] = [ticket]
        for group in groups.values():
            while group:
                taken = self._take(group[: _fitting(group, self._policy.max_points)], until)
                group = group[taken:]  # noqa: PLW2901 - what is left of it

    def cancel(self, ticket: Ticket) -> bool:
        """Drops a ticket that is new or waits: no work will be done for it. False if it runs or has run."""
        if ticket.state is State.RUNNING:  # most are, when their caller is answered and says goodbye
            return False
        with self._condition:
            if ticket.state is State.NEW:
                ticket.state = State.DROPPED
                return True
            lane = self._lanes.get(ticket.key)
            if lane is None or not lane.cancel(ticket):
                return False
            self._held.remove(ticket)
            self._drop_if_empty(lane)
        return True

    def waiting(self) -> int:
        """How many tickets wait."""
        with self._condition:
            return self._held.tickets

    def held(self) -> Waiting:
        """What waits now."""
        with self._condition:
            return Waiting(self._held.tickets, self._held.size, len(self._lanes))

    def forget(self, gone: Callable[[Hashable], bool]) -> None:
        """Lets go of keys that no tickets will come for any more. Where some wait nothing is lost but their turn."""
        with self._condition:
            self._turns.forget(gone)

    def close(self, timeout: float | None = None) -> bool:
        """Takes on no new work, finishes what waits, ends the workers; False if some run on after `timeout` seconds.

        Work whose program is not ready waits for it: close what compiles first.
        """
        with self._condition:
            self._closed = True
            self._wake_all()
        finish_by = None if timeout is None else time.monotonic() + timeout
        for worker in self._workers:
            worker.join(None if finish_by is None else max(0.0, finish_by - time.monotonic()))
        return not any(worker.is_alive() for worker in self._workers)

    def _take(self, group: Sequence[Ticket], until: float) -> int:
        """Runs the first of a group of one key if they are light and nothing of their lane waits, else lets all wait.

        How many were dealt with.
        """
        key = group[0].key
        # Read without the lock: at worst a group that could have run at once waits, or the other way round.
        if key not in self._lanes and not self._closed:
            try:
                prepared = self._runner.prepare(key, _points(group), _nobody_waits, group[0].owner)
                if prepared is not None and prepared.first < prepared.points and len(group) > 1:
                    # Several executions: whoever rides in the first need not wait for the others.
                    group = group[: _fitting(group, prepared.first)]
                    prepared = self._runner.prepare(key, _points(group), _nobody_waits, group[0].owner)
            except Exception as error:
                refused = _ours(error)
                for ticket in group:
                    if isinstance(refused, ResourceExhausted) and ticket.owner != group[0].owner:
                        self.offer(ticket)  # what there is too much of is so for the owner that was asked for
                    else:
                        _refuse(ticket, _copied(refused))
                return len(group)
            if prepared is not None and self._policy.direct(prepared, len(group)) and self._clock() <= until:
                self._run_directly(prepared, group, until)
                return len(group)
        for ticket in group:
            self.offer(ticket)
        return len(group)

    def _run_directly(self, prepared: Prepared, group: Sequence[Ticket], until: float) -> None:
        now = self._clock()
        for ticket in group:
            if ticket.deadline <= now:
                rest = [other for other in group if other.deadline > now]
                for late in group:
                    if late.deadline <= now:
                        _refuse(late, _expired())
                while rest:
                    rest = rest[self._take(rest, until) :]
                return
        for ticket in group:
            ticket.state = State.RUNNING
        self._run(prepared, group)

    def offer(self, ticket: Ticket) -> None:
        """Puts a ticket into its lane, or refuses it: DeadlineExceeded, Draining, QueueFull. From any thread.

        Once the queue is full, owners beyond their share make room for others: their newest tickets are refused.
        """
        leaving: list[Ticket] = []
        joins = False
        with self._condition:
            if ticket.state is State.DROPPED:  # cancelled meanwhile, in another thread
                return
            refusal: NabladError | None = None
            if ticket.deadline <= self._clock():
                refusal = _expired()
            elif self._closed:
                refusal = Draining("the server is shutting down; retry elsewhere")
            else:
                while not self._held.fits(ticket):
                    most = self._held.makes_room(ticket)
                    if most is None:
                        refusal = self._full()
                        break
                    self._withdraw(most)
                    leaving.append(most)
            if refusal is None:
                lane = self._lanes.get(ticket.key)
                if lane is None:
                    lane = self._lanes[ticket.key] = Lane(ticket.key)
                joins = ticket.key in self._preparing and ticket.owner not in lane.owners
                lane.offer(ticket)
                self._held.add(ticket)
                # Of two kinds of workers one may be unable to take it.
                (self._condition if lane.aside is None else self._set_aside).notify_all()
            else:
                ticket.state = State.DROPPED
        if refusal is not None:
            ticket.done(refusal)
        for left in leaving:
            left.done(self._full())
        if joins:  # what the lane waits for is made ready in this owner's turn, if that comes before another's
            with contextlib.suppress(NabladError):
                self._runner.prepare(ticket.key, ticket.points, _nobody_waits, ticket.owner)

    def _full(self) -> QueueFull:
        policy, held = self._policy, self._held
        return QueueFull(
            f"{held.tickets} calls holding {held.size} bytes wait already; the limits are {policy.max_tickets} calls "
            f"and {policy.max_bytes} bytes. Retry after {policy.retry_seconds} s",
            retry_after=policy.retry_seconds,
        )

    def _withdraw(self, ticket: Ticket) -> None:
        """Takes a ticket that waits out of its lane."""
        lane = self._lanes[ticket.key]
        lane.cancel(ticket)
        self._held.remove(ticket)
        self._drop_if_empty(lane)

    def refuse(self, ticket: Ticket, error: NabladError) -> None:
        """Answers a ticket with an error that is not yet in a lane, unless it has been cancelled. From any thread."""
        with self._condition:
            if ticket.state is not State.NEW:
                return
            ticket.state = State.DROPPED
        ticket.done(error)

    def _work(self, kind: Worker) -> None:
        """A worker's life."""
        if kind is Worker.ANY and hasattr(os, "setpriority"):
            # Whoever waits for the processor for microseconds is let past whoever keeps it for milliseconds.
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), HEAVY_NICENESS)
        while self._serve(kind):
            continue  # what it held has been let go of, before the next wait

    def _serve(self, kind: Worker) -> bool:
        """Waits for a batch and runs it; False once there will be none."""
        with self._condition:
            turn = self._next_turn(kind)
            while turn is None:
                if self._closed and not self._lanes:
                    self._wake_all()
                    return False
                (self._set_aside if kind is Worker.ASIDE else self._condition).wait()
                turn = self._next_turn(kind)
            lane, owner = turn
            batch, expired = lane.take(self._clock(), self._policy.max_points, owner)
            for ticket in expired:
                self._held.remove(ticket)
            prepared = self._prepare(lane, batch, kind) if batch else None
            if prepared is not None:
                if prepared.aside is not None:
                    self._aside.add(prepared.aside)
                for ticket in batch:
                    self._held.remove(ticket)
                self._charge(lane, batch, prepared.seconds)
            self._drop_if_empty(lane)
        self._tell_failed()
        for ticket in expired:
            ticket.done(_expired())
        if prepared is not None:
            started = self._clock()
            self._run(prepared, batch)
            with self._condition:
                self._charge(lane, batch, self._clock() - started - prepared.seconds)
                if prepared.aside is not None:
                    self._aside.discard(prepared.aside)
                    self._set_aside.notify_all()  # others may wait for the same
        return True

    def _wake_all(self) -> None:
        self._condition.notify_all()
        self._set_aside.notify_all()

    def _next_turn(self, kind: Worker) -> tuple[Lane, Owner] | None:
        """The lane to take a batch from, and whose ticket it begins with; None if there is nothing to do."""
        lanes = [lane for key, lane in self._lanes.items() if key not in self._preparing and self._may_take(kind, lane)]
        owner = self._owners.next({owner: None for lane in lanes for owner in lane.owners})
        if owner is None:
            return None
        key = self._turns.next(lane.key for lane in lanes if owner in lane.owners)
        return self._lanes[key], owner  # type: ignore[return-value]  # what is next is one of those given

    def _charge(self, lane: Lane, batch: Sequence[Ticket], seconds: float) -> None:
        """Adds executor time to the accounts of a lane and of the owners of its batch, by their points."""
        self._turns.charge(lane.key, seconds)
        owners: dict[Owner, int] = {}
        for ticket in batch:
            owners[ticket.owner] = owners.get(ticket.owner, 0) + ticket.points
        total = _points(batch)
        for owner, points in owners.items():
            self._owners.charge(owner, seconds * points / total)

    def _may_take(self, kind: Worker, lane: Lane) -> bool:
        if lane.aside is not None:
            return kind is Worker.ASIDE and lane.aside not in self._aside
        return kind is Worker.ANY or (kind is Worker.LIGHT and not lane.heavy)

    def _prepare(self, lane: Lane, batch: list[Ticket], kind: Worker) -> Prepared | None:
        """What runs a batch just taken from its lane; None if it went back there, or failed together with the lane."""
        key = lane.key
        self._preparing.add(key)

        def ready(error: NabladError | None, seconds: float) -> None:
            self._prepared(key, error, seconds)

        try:
            prepared = self._runner.prepare(key, _points(batch), ready, batch[0].owner)
            if prepared is not None and prepared.first < prepared.points and len(batch) > 1:
                # What would be computed later than the rest waits here, where it may still be cancelled or expire.
                count = _fitting(batch, prepared.first)
                lane.put_back(batch[count:])
                del batch[count:]
                prepared = self._runner.prepare(key, _points(batch), ready, batch[0].owner)
        except Exception as error:
            self._preparing.discard(key)
            lane.put_back(batch)
            # What there is too much of is so for this owner.
            self._fail(lane, _ours(error), batch[0].owner if isinstance(error, ResourceExhausted) else None)
            return None
        if prepared is None:
            lane.put_back(batch)
            return None
        self._preparing.discard(key)
        if prepared.aside is not lane.aside or (self._policy.heavy(prepared) and kind is Worker.LIGHT):
            # Found out now what it is: it goes back, for a worker of that kind.
            lane.heavy, lane.aside = True, prepared.aside
            lane.put_back(batch)
            self._wake_all()
            return None
        return prepared

    def _prepared(self, key: Hashable, error: NabladError | None, seconds: float) -> None:
        """A program that a lane waited for is ready, or never will be."""
        with self._condition:
            self._preparing.discard(key)
            lane = self._lanes.get(key)
            if lane is None:
                self._wake_all()
                return
            for ticket in lane.waiting():
                ticket.compile_seconds = min(seconds, self._clock() - ticket.arrived)
            if error is not None:
                self._fail(lane, error)
            self._wake_all()
        self._tell_failed()

    def _fail(self, lane: Lane, error: NabladError, owner: Owner | None = None) -> None:
        """Empties a lane, of all or of one owner's; its callers are told by `_tell_failed`, once the lock is free."""
        for ticket in lane.flush(owner):
            self._held.remove(ticket)
            self._failed.append((ticket, error))
        self._drop_if_empty(lane)

    def _tell_failed(self) -> None:
        while self._failed:
            ticket, error = self._failed.popleft()
            ticket.done(_copied(error))

    def _run(self, prepared: Prepared, batch: Sequence[Ticket]) -> None:
        started = self._clock()
        points = _points(batch)
        try:
            results = prepared([ticket.payload for ticket in batch])
            if len(results) != len(batch):
                raise Internal(f"{len(results)} results for {len(batch)} calls")
        except Exception as error:
            if len(batch) == 1:
                batch[0].done(_ours(error))
                return
            for ticket in batch:  # somebody in this batch makes it fail: alone, only that one does
                self._run_alone(ticket)
            return
        seconds = self._clock() - started
        for ticket, result in zip(batch, results, strict=True):
            ticket.done(Outcome(result, points, started - ticket.arrived, ticket.compile_seconds, seconds))
        self._observer.executed(batch[0].key, points, prepared.computed, seconds)

    def _run_alone(self, ticket: Ticket) -> None:
        if ticket.deadline <= self._clock():
            ticket.done(_expired())
            return
        try:
            prepared = self._runner.prepare(ticket.key, ticket.points, _nobody_waits, ticket.owner)
        except Exception as error:
            ticket.done(_ours(error))
            return
        if prepared is None:  # a program of this size is compiled first
            self.offer(ticket)
        else:
            self._run(prepared, [ticket])

    def _drop_if_empty(self, lane: Lane) -> None:
        if lane.tickets == 0 and self._lanes.get(lane.key) is lane:
            del self._lanes[lane.key]
            if self._closed:
                self._wake_all()


def _refuse(ticket: Ticket, error: NabladError) -> None:
    """Answers a ticket that will not run: from now on it cannot be cancelled, either."""
    ticket.state = State.DROPPED
    ticket.done(error)


def _points(batch: Sequence[Ticket]) -> int:
    return batch[0].points if len(batch) == 1 else sum([ticket.points for ticket in batch])


def _fitting(batch: Sequence[Ticket], limit: int) -> int:
    """How many of the first tickets have no more points together; one at least."""
    count, points = 1, batch[0].points
    while count < len(batch) and points + batch[count].points <= limit:
        points += batch[count].points
        count += 1
    return count


def _nobody_waits(error: NabladError | None, seconds: float) -> None:
    """What is not ready goes to its lane, and is waited for there."""


def _expired() -> DeadlineExceeded:
    return DeadlineExceeded(
        "the deadline passed before the work was begun, and none was done. If these shapes are new, their program is "
        "being compiled and will be ready for a later call"
    )


def _copied(error: NabladError) -> NabladError:
    """An error of one's own for every caller: raising one object in many threads would mix their tracebacks."""
    return type(error)(error.message, field=error.field, metadata=error.metadata, retry_after=error.retry_after)


def _ours(error: Exception) -> NabladError:
    if isinstance(error, NabladError):
        return error
    internal = Internal(f"running a batch failed: {type(error).__name__}")
    internal.__cause__ = error
    return internal
