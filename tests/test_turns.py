import gc
import itertools
import weakref
from collections import Counter
from collections.abc import Mapping, Sequence

from hypothesis import given
from hypothesis import strategies as st

from nablad_server.turns import MAX_TAGS, Turns

COSTS = st.floats(0.001, 10.0)


def used(turns: Turns, costs: Mapping[str, float], picks: int) -> Counter[str]:
    """Executor seconds that each of the lanes, all of them always waiting, gets in so many turns."""
    seconds: Counter[str] = Counter()
    for _ in range(picks):
        key = str(turns.next(costs))
        turns.charge(key, costs[key])
        seconds[key] += costs[key]  # type: ignore[assignment]  # a counter counts anything
    return seconds


def test_nobody_waiting_is_nobodys_turn() -> None:
    assert Turns().next([]) is None


def test_an_expensive_lane_does_not_starve_a_cheap_one() -> None:
    turns = Turns()
    costs = {"hessian": 10.0, "gradient": 0.1}

    order = []
    for _ in range(204):
        key = str(turns.next(costs))
        turns.charge(key, costs[key])
        order.append(key)

    assert order.count("hessian") in (2, 3)


@given(st.dictionaries(st.sampled_from("abcde"), COSTS, min_size=2), st.integers(1, 200))
def test_lanes_that_always_wait_get_equal_time_to_within_one_turn_each(costs: dict[str, float], picks: int) -> None:
    seconds = used(Turns(), costs, picks)

    for (one, cost), (other, other_cost) in itertools.permutations(costs.items(), 2):
        assert seconds[one] - seconds[other] <= cost + other_cost + 1e-9


@given(COSTS, COSTS, st.integers(1, 50), st.integers(1, 200))
def test_resting_saves_up_no_claim(busy: float, rested: float, alone: int, together: int) -> None:
    turns = Turns()
    used(turns, {"rested": rested}, 1)
    used(turns, {"busy": busy}, alone)

    seconds = used(turns, {"busy": busy, "rested": rested}, together)

    assert seconds["rested"] - seconds["busy"] <= busy + 2 * rested + 1e-9


@given(st.lists(st.floats(0.0, 5.0), min_size=1, max_size=30))
def test_a_charge_that_was_estimated_too_high_is_given_back(corrections: Sequence[float]) -> None:
    turns, exact = Turns(), Turns()
    for key in ("a", "b"):
        turns.next([key])
        exact.next([key])
    for seconds in corrections:
        turns.charge("a", 100.0)
        turns.charge("a", seconds - 100.0)
        exact.charge("a", seconds)
    turns.charge("b", 1.0)
    exact.charge("b", 1.0)

    if abs(sum(corrections) - 1.0) > 1e-6:
        assert turns.next(["a", "b"]) == exact.next(["a", "b"])


def test_a_charge_counts_from_the_present() -> None:
    turns = Turns()
    used(turns, {"busy": 10.0}, 5)

    turns.charge("unknown", 1.0)

    assert turns.next(["unknown", "newcomer"]) == "newcomer"


class Key:
    pass


def test_lanes_that_come_once_are_forgotten() -> None:
    turns = Turns()
    seen = []
    for _ in range(3 * MAX_TAGS):
        key = Key()
        seen.append(weakref.ref(key))
        turns.next([key])
        turns.charge(key, 1.0)
    del key
    gc.collect()

    assert sum(key() is not None for key in seen) <= MAX_TAGS


def test_the_largest_debts_are_remembered() -> None:
    turns = Turns()
    turns.next(["debtor"])
    turns.charge("debtor", 1e6)
    for index in range(3 * MAX_TAGS):
        turns.next([index])
        turns.charge(index, 1.0)

    assert turns.next(["debtor", "newcomer"]) == "newcomer"
