"""Refusals that wait: when they leave, and how close together, by a clock moved by hand."""

from typing import Any

import pytest

from nablad.errors import NabladError, TooManyCalls
from nablad_server.serving.refusals import MAX_HELD, PACE_SECONDS, REFUSAL_SECONDS, REFUSED_TOGETHER, Refusals

ERROR = TooManyCalls("enough")


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Asked:
    """What a Call is to Refusals."""

    ended: NabladError | None = None

    def end(self, error: NabladError) -> None:
        self.ended = error


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def refusals(clock: Clock) -> Refusals:
    return Refusals(clock)


def held(refusals: Refusals, count: int) -> list[Any]:
    calls: list[Any] = [Asked() for _ in range(count)]
    for call in calls:
        refusals.hold(call, ERROR)
    return calls


def gone(calls: list[Any]) -> int:
    count = sum(call.ended is ERROR for call in calls)
    assert all(call.ended is ERROR for call in calls[:count]), "in the order in which they came"
    return count


def test_none_leaves_before_its_time(refusals: Refusals, clock: Clock) -> None:
    calls = held(refusals, 1)
    assert refusals.patience() == pytest.approx(REFUSAL_SECONDS)
    refusals.send(all_=False)
    assert gone(calls) == 0
    clock.now += REFUSAL_SECONDS
    assert refusals.patience() == 0.0
    refusals.send(all_=False)
    assert (gone(calls), len(refusals)) == (1, 0)


def test_those_that_came_together_leave_apart(refusals: Refusals, clock: Clock) -> None:
    calls = held(refusals, 100)
    clock.now += REFUSAL_SECONDS
    refusals.send(all_=False)
    assert gone(calls) == REFUSED_TOGETHER, "after a pause"
    refusals.send(all_=False)
    assert gone(calls) == REFUSED_TOGETHER, "no others at the same moment"
    assert refusals.patience() == pytest.approx(PACE_SECONDS)
    for count in range(1, 50):
        clock.now += PACE_SECONDS * 1.001
        refusals.send(all_=False)
        assert gone(calls) == REFUSED_TOGETHER + count


def test_a_server_that_stops_waits_for_none(refusals: Refusals) -> None:
    calls = held(refusals, 3 * REFUSED_TOGETHER)
    for _ in range(3):
        refusals.send(all_=True)
    assert gone(calls) == len(calls)


def test_what_cannot_be_held_leaves_at_once(refusals: Refusals) -> None:
    calls = held(refusals, MAX_HELD + 1)
    assert [call.ended for call in calls[-2:]] == [None, ERROR]
