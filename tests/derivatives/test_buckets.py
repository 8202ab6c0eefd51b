"""The buckets that hold a batch: they hold all of it, and no simpler choice would cost less."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nablad_server.derivatives.buckets import EXECUTION_SECONDS, cheapest, power_of_two_from

BUCKETS = st.integers(0, 10).map(lambda exponent: 1 << exponent)
COSTS = st.dictionaries(BUCKETS, st.floats(0, 10), min_size=1)
POINTS = st.integers(1, 3000)
ROUNDING = 1 + 1e-9


@given(POINTS, COSTS)
def test_all_points_are_held_and_only_the_last_bucket_has_room_left(points: int, costs: dict[int, float]) -> None:
    chosen, _ = cheapest(points, costs)

    assert set(chosen) <= set(costs)
    assert sum(chosen[:-1]) < points <= sum(chosen)


@given(POINTS, COSTS)
def test_the_cost_is_that_of_the_buckets(points: int, costs: dict[int, float]) -> None:
    chosen, seconds = cheapest(points, costs)

    assert seconds == pytest.approx(sum(costs[bucket] + EXECUTION_SECONDS for bucket in chosen), rel=1e-9)


@given(POINTS, COSTS)
def test_no_single_bucket_that_holds_them_all_costs_less(points: int, costs: dict[int, float]) -> None:
    _, seconds = cheapest(points, costs)

    for bucket, cost in costs.items():
        if bucket >= points:
            assert seconds <= (cost + EXECUTION_SECONDS) * ROUNDING


@given(POINTS, COSTS, st.floats(0, 10))
def test_one_by_one_does_not_cost_less(points: int, costs: dict[int, float], one: float) -> None:
    _, seconds = cheapest(points, costs | {1: one})

    assert seconds <= points * (one + EXECUTION_SECONDS) * ROUNDING


@pytest.mark.parametrize(
    ("points", "chosen"),
    [(3, [4]), (4, [4]), (5, [4, 1]), (1024, [1024]), (2048, [1024, 1024]), (1, [1])],
)
def test_where_points_cost_alike_the_fewest_executions_are_best(points: int, chosen: list[int]) -> None:
    costs = {1: 1e-6, 4: 4e-6, 1024: 1024e-6}

    assert cheapest(points, costs)[0] == chosen


def test_a_bucket_that_is_dear_a_point_is_avoided() -> None:
    assert cheapest(8, {1: 1e-4, 8: 1.0})[0] == [1] * 8
    assert cheapest(6, {4: 1e-4, 8: 1.0})[0] == [4, 4]


@given(st.integers(1, 1 << 40))
def test_a_power_of_two_is_the_smallest_that_is_no_smaller(points: int) -> None:
    power = power_of_two_from(points)

    assert power.bit_count() == 1
    assert power // 2 < points <= power
