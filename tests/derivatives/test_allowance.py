"""How much of the compile thread's time an asker may have."""

import pytest

from nablad_server.derivatives.allowance import WINDOW_SECONDS, Allowance


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_who_used_more_than_allowed_waits_until_it_has_worn_off_and_others_do_not() -> None:
    clock = Clock()
    allowance = Allowance(6.0, clock)
    assert allowance.patience("a") == 0.0
    allowance.charge("a", 6.0)
    assert allowance.patience("a") == 0.0, "no more than allowed"
    allowance.charge("a", 3.0)
    assert allowance.patience("a") == pytest.approx(30.0)
    assert allowance.patience("b") == 0.0
    clock.now += 29.0
    assert allowance.patience("a") == pytest.approx(1.0)
    clock.now += 1.0
    assert allowance.patience("a") == pytest.approx(0.0)


def test_over_time_nobody_gets_more_than_allowed() -> None:
    clock = Clock()
    allowance = Allowance(6.0, clock)
    worked = 0.0
    while clock.now < 100.0 + 100 * WINDOW_SECONDS:
        if allowance.patience("a"):
            clock.now += allowance.patience("a") + 1e-6
        else:
            clock.now += 0.5
            worked += 0.5
            allowance.charge("a", 0.5)
    assert worked == pytest.approx(100 * 6.0, rel=0.02)


def test_without_a_limit_nobody_waits() -> None:
    allowance = Allowance(0.0)
    allowance.charge("a", 1e9)
    assert allowance.patience("a") == 0.0
