"""The arithmetic of the benchmark's table."""

import io

import pytest
from rich.console import Console

from benchmarks.figures import Figure, Target, ceiling, quickest, ratios, readable, with_spread
from benchmarks.report import summary, table

AT_MOST, AT_LEAST = Target("≤", 1.15), Target("≥", 0.85)


def figure(*samples: float, target: Target | None) -> Figure:
    return Figure("a_claim", "W1", "a ratio", samples, target, {"echo, s": [0.00025, 0.0003]})


def test_two_equal_stages_on_one_core_halve_the_rate() -> None:
    assert ceiling(1000, 1000) == pytest.approx(500)


def test_a_stage_that_costs_nothing_does_not_count() -> None:
    assert ceiling(1000, float("inf")) == pytest.approx(1000)


@pytest.mark.parametrize(
    ("target", "samples", "verdict"),
    [
        (AT_MOST, (1.15,), "pass"),
        (AT_MOST, (1.16,), "miss"),
        (AT_LEAST, (0.85,), "pass"),
        (AT_LEAST, (0.84,), "miss"),
        (AT_LEAST, (0.1, 0.9, 0.95), "pass"),  # the median counts
        (Target("≤", 0), (0.0,), "pass"),
        (Target("≤", 0), (1.0,), "miss"),
        (None, (7.0,), ""),
    ],
)
def test_verdicts(target: Target | None, samples: tuple[float, ...], verdict: str) -> None:
    assert figure(*samples, target=target).verdict == verdict


@pytest.mark.parametrize(("target", "better", "worse"), [(AT_MOST, 1.0, 2.0), (AT_LEAST, 0.9, 0.5)])
def test_more_than_the_whole_target_is_reached_exactly_when_it_is_met(
    target: Target, better: float, worse: float
) -> None:
    assert target.share(better) > 1 > target.share(worse)
    assert target.share(target.bound) == 1


def test_floors_are_compared_with_the_repeat_that_they_belong_to() -> None:
    assert ratios([2, 6], [1, 2]) == (2, 3)


def test_one_echo_is_the_floor_of_all_repeats() -> None:
    assert quickest([[1, 9, 9], [2, 2, 2]]) == [2, 2, 2]


def test_numbers_are_readable() -> None:
    assert [readable(v) for v in (0, 0.12345, 12.345, 12345.6)] == ["0", "0.123", "12.3", "12,346"]
    assert with_spread([3, 1, 2]) == "2 (1–3)"
    assert with_spread([3]) == "3"


def test_the_table_says_figure_spread_target_floor_and_verdict() -> None:
    written = io.StringIO()
    Console(width=150, file=written).print(table([figure(1.1, 1.0, 1.3, target=AT_MOST), figure(2.0, target=None)]))
    text = written.getvalue()
    assert "a claim" in text
    assert "1.1 (1–1.3)" in text
    assert "≤ 1.15" in text
    assert "echo 275 µs" in text
    assert text.count("pass") == 1


def test_the_summary_counts_targets_only() -> None:
    rows = [figure(1, target=AT_MOST), figure(2, target=AT_MOST), figure(3, target=None)]
    assert "1 of 2 targets met" in summary(rows)
