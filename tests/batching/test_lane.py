import gc
import weakref

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from nablad.errors import NabladError
from nablad_server.batching.lane import Lane
from nablad_server.batching.ticket import Outcome, State, Ticket

NEVER = float("inf")


def ticket(name: object = "t", points: int = 1, deadline: float = NEVER, alone: bool = False, size: int = 0) -> Ticket:
    return Ticket("key", name, points, size, unanswered, alone=alone, deadline=deadline)


def unanswered(answer: Outcome | NabladError) -> None:
    raise AssertionError("a lane answers nobody")


class LaneAgainstSet(RuleBasedStateMachine):
    """The lane beside a plain list of the tickets that wait, in order of arrival."""

    tickets = Bundle("tickets")

    def __init__(self) -> None:
        super().__init__()
        self.lane = Lane("key")
        self.waiting: list[Ticket] = []
        self.now = 0.0

    @rule(
        target=tickets,
        points=st.integers(1, 5),
        size=st.integers(0, 9),
        delay=st.none() | st.integers(-2, 6),
        alone=st.booleans(),
    )
    def offer(self, points: int, size: int, delay: int | None, alone: bool) -> Ticket:
        deadline = NEVER if delay is None else self.now + delay
        offered = ticket(points=points, deadline=deadline, alone=alone, size=size)
        self.lane.offer(offered)
        self.waiting.append(offered)
        return offered

    @rule(target=tickets)
    def keep_back(self) -> Ticket:
        return ticket(points=3, size=3)

    @rule(cancelled=tickets)
    def cancel(self, cancelled: Ticket) -> None:
        waited = cancelled in self.waiting
        assert self.lane.cancel(cancelled) == waited
        if waited:
            self.leave([cancelled], State.DROPPED)

    @rule(seconds=st.integers(1, 3))
    def let_time_pass(self, seconds: int) -> None:
        self.now += seconds

    @rule(max_points=st.integers(1, 8))
    def take(self, max_points: int) -> None:
        self.leave(self.taken(max_points), State.RUNNING)

    @rule(max_points=st.integers(1, 8))
    def take_and_put_back(self, max_points: int) -> None:
        batch = self.taken(max_points)
        self.leave(batch, State.RUNNING)
        self.lane.put_back(batch)
        self.waiting = batch + self.waiting
        assert all(t.state is State.WAITING for t in batch)

    def taken(self, max_points: int) -> list[Ticket]:
        """A batch, checked, as it was taken from the lane; what had expired has left."""
        order = {id(t): (t.deadline, arrival) for arrival, t in enumerate(self.waiting)}
        live = sorted((t for t in self.waiting if t.deadline > self.now), key=lambda t: order[id(t)])
        dead = [t for t in self.waiting if t.deadline <= self.now]

        batch, expired = self.lane.take(self.now, max_points)

        assert all(t in dead for t in expired)
        assert batch == live[: len(batch)], "not the earliest deadlines, in order"
        assert bool(batch) == bool(live), "a batch was left although a ticket waits"
        points = sum(t.points for t in batch)
        assert points <= max_points or len(batch) == 1
        assert len(batch) == 1 or not any(t.alone for t in batch)
        if batch and len(batch) < len(live):
            following = live[len(batch)]
            assert batch[0].alone or following.alone or points + following.points > max_points, "room was left"
        self.leave(expired, State.DROPPED)
        return batch

    @rule()
    def flush(self) -> None:
        flushed = self.lane.flush()
        assert sorted(map(id, flushed)) == sorted(map(id, self.waiting))
        self.leave(flushed, State.DROPPED)

    def leave(self, left: list[Ticket], state: State) -> None:
        for gone in left:
            self.waiting.remove(gone)
            assert gone.state is state

    @invariant()
    def counts_are_those_of_the_waiting(self) -> None:
        assert self.lane.tickets == len(self.waiting)
        assert self.lane.points == sum(t.points for t in self.waiting)
        assert self.lane.size == sum(t.size for t in self.waiting)
        assert {id(t) for t in self.lane.waiting()} == {id(t) for t in self.waiting}


TestLaneAgainstSet = LaneAgainstSet.TestCase
TestLaneAgainstSet.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def test_earliest_deadline_is_taken_first_and_arrival_decides_among_equals() -> None:
    lane = Lane("key")
    for name, deadline in [("late", 9.0), ("first", 5.0), ("second", 5.0), ("never", NEVER), ("soon", 2.0)]:
        lane.offer(ticket(name, deadline=deadline))

    assert [t.payload for t in lane.take(0.0, 100).batch] == ["soon", "first", "second", "late", "never"]


def test_a_deadline_that_is_now_has_passed() -> None:
    lane = Lane("key")
    lane.offer(ticket("now", deadline=3.0))
    lane.offer(ticket("later", deadline=3.5))

    taken = lane.take(3.0, 100)

    assert [t.payload for t in taken.expired] == ["now"]
    assert [t.payload for t in taken.batch] == ["later"]


def test_a_ticket_larger_than_a_batch_goes_by_itself() -> None:
    lane = Lane("key")
    lane.offer(ticket("large", points=50, deadline=1.0))
    lane.offer(ticket("small"))

    assert [t.payload for t in lane.take(0.0, 8).batch] == ["large"]


def test_what_is_put_back_is_the_first_of_its_deadline_and_of_no_other() -> None:
    lane = Lane("key")
    for name, deadline in [("a", 5.0), ("b", 5.0), ("c", 5.0)]:
        lane.offer(ticket(name, deadline=deadline))
    batch = lane.take(0.0, 2).batch
    lane.offer(ticket("sooner", deadline=1.0))
    lane.offer(ticket("later", deadline=9.0))

    lane.put_back(batch)

    assert [t.payload for t in lane.take(0.0, 100).batch] == ["sooner", "a", "b", "c", "later"]


@pytest.mark.parametrize("alone_first", [True, False])
def test_a_ticket_that_must_be_alone_is(alone_first: bool) -> None:
    lane = Lane("key")
    lane.offer(ticket("one", alone=alone_first))
    lane.offer(ticket("two", alone=not alone_first))

    assert [[t.payload for t in lane.take(0.0, 100).batch] for _ in range(3)] == [["one"], ["two"], []]


def test_a_ticket_that_was_never_offered_cannot_be_cancelled() -> None:
    lane = Lane("key")
    lane.offer(ticket("waits"))

    assert lane.cancel(ticket("elsewhere")) is False
    assert lane.tickets == 1


class Payload:
    pass


def test_cancelled_tickets_are_let_go_while_others_wait() -> None:
    lane = Lane("key")
    lane.offer(ticket("waits", deadline=-1.0))  # it surfaces first, so that no other is swept on the way
    cancelled = [ticket(Payload()) for _ in range(1000)]
    payloads = [weakref.ref(t.payload) for t in cancelled]
    for t in cancelled:
        lane.offer(t)
    for t in cancelled:
        lane.cancel(t)
    del t, cancelled
    gc.collect()

    assert sum(payload() is not None for payload in payloads) <= 64
    assert [t.payload for t in lane.waiting()] == ["waits"]
