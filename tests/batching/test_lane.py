import gc
import weakref

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from nablad.errors import NabladError
from nablad_server.batching.lane import Lane
from nablad_server.batching.ticket import NOBODY, Outcome, Owner, State, Ticket

NEVER = float("inf")


OWNERS = (NOBODY, Owner("a"), Owner("b"))


def ticket(
    name: object = "t", points: int = 1, *, deadline: float = NEVER, alone: bool = False, size: int = 0,
    owner: Owner = NOBODY,
) -> Ticket:  # fmt: skip
    return Ticket("key", name, points, size, unanswered, alone=alone, deadline=deadline, owner=owner)


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
        owner=st.sampled_from(OWNERS),
    )
    def offer(self, points: int, size: int, delay: int | None, alone: bool, owner: Owner) -> Ticket:
        deadline = NEVER if delay is None else self.now + delay
        offered = ticket(points=points, deadline=deadline, alone=alone, size=size, owner=owner)
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

    @rule(max_points=st.integers(1, 8), first=st.none() | st.sampled_from(OWNERS))
    def take(self, max_points: int, first: Owner | None) -> None:
        self.leave(self.taken(max_points, first), State.RUNNING)

    @rule(max_points=st.integers(1, 8), first=st.none() | st.sampled_from(OWNERS))
    def take_and_put_back(self, max_points: int, first: Owner | None) -> None:
        batch = self.taken(max_points, first)
        self.leave(batch, State.RUNNING)
        self.lane.put_back(batch)
        self.waiting = batch + self.waiting
        assert all(t.state is State.WAITING for t in batch)

    def taken(self, max_points: int, first: Owner | None) -> list[Ticket]:
        """A batch, checked, as it was taken from the lane; what had expired has left."""
        order = {id(t): (t.deadline, arrival) for arrival, t in enumerate(self.waiting)}
        live = sorted((t for t in self.waiting if t.deadline > self.now), key=lambda t: order[id(t)])
        dead = [t for t in self.waiting if t.deadline <= self.now]
        left = {owner: [t for t in live if t.owner == owner] for owner in OWNERS}

        batch, expired = self.lane.take(self.now, max_points, first)

        assert all(t in dead for t in expired)
        assert bool(batch) == bool(live), "a batch was left although a ticket waits"
        if batch and first is not None and left[first]:
            assert batch[0].owner == first, "not the one whose turn it is"
        points = dict.fromkeys(OWNERS, 0)
        for taken in batch:
            assert taken is left[taken.owner].pop(0), "not the owner's earliest deadline"
            if taken is not batch[0]:
                room = max_points - sum(points.values())
                riding = [o for o in OWNERS if left[o] and not left[o][0].alone and left[o][0].points <= room]
                assert all(points[taken.owner] <= points[other] for other in riding), "one got ahead of another"
            points[taken.owner] += taken.points
        total = sum(points.values())
        assert total <= max_points or len(batch) == 1
        assert len(batch) == 1 or not any(t.alone for t in batch)
        if batch and not batch[0].alone:
            following = [tickets[0] for tickets in left.values() if tickets]
            assert all(t.alone or total + t.points > max_points for t in following), "room was left"
        self.leave(expired, State.DROPPED)
        return batch

    @rule(owner=st.sampled_from(OWNERS))
    def flush_one(self, owner: Owner) -> None:
        flushed = self.lane.flush(owner)
        assert {id(t) for t in flushed} == {id(t) for t in self.waiting if t.owner == owner}
        self.leave(flushed, State.DROPPED)

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
        assert set(self.lane.owners) == {t.owner for t in self.waiting}


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


def test_a_flood_of_one_owner_leaves_room_in_each_batch_for_another() -> None:
    lane, flood, other = Lane("key"), Owner("flood"), Owner("other")
    for index in range(100):
        lane.offer(ticket(f"flood {index}", owner=flood, deadline=1.0))
    for index in range(3):
        lane.offer(ticket(f"other {index}", owner=other, points=2))

    batch = lane.take(0.0, 8, flood).batch

    assert [t.payload for t in batch] == ["flood 0", "other 0", "flood 1", "flood 2", "other 1", "flood 3"]


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
