import pytest
from hypothesis import given
from hypothesis import strategies as st

from clock import HandClock
from nablad.errors import NabladError, RateLimited, TooManyCalls
from nablad_server.serving.limits import MAX_ACCOUNTS, Accounts, Limits


def retry_after(refused: NabladError | None) -> float:
    assert isinstance(refused, RateLimited)
    assert refused.retry_after is not None
    return refused.retry_after


def test_calls_and_streams_are_counted_while_they_are_open() -> None:
    account = Accounts(Limits(calls=3, streams=1), HandClock()).of("one")
    assert account.enter(stream=True) is None
    assert account.enter(stream=False) is None

    assert "1 streams" in str(account.enter(stream=True))
    assert account.enter(stream=False) is None
    refused = account.enter(stream=False)
    assert isinstance(refused, TooManyCalls)
    assert refused.metadata == {"limit": "3"}

    account.leave(stream=True)
    assert account.enter(stream=True) is None


def test_nobody_is_refused_for_what_another_has_open() -> None:
    accounts = Accounts(Limits(calls=1), HandClock())
    assert accounts.of("one").enter(stream=False) is None

    assert accounts.of("other").enter(stream=False) is None
    assert isinstance(accounts.of("one").enter(stream=False), TooManyCalls)


def test_a_refusal_says_when_the_next_request_is_let_in() -> None:
    clock = HandClock()
    account = Accounts(Limits(rate=4.0), clock).of("one")
    assert [account.enter(stream=False) for _ in range(4)] == [None] * 4

    seconds = retry_after(account.enter(stream=False))

    assert seconds == pytest.approx(0.25)
    clock.advance(seconds * 0.99)
    assert retry_after(account.spend()) == pytest.approx(0.0025)
    clock.advance(seconds * 0.02)
    assert account.spend() is None


@given(
    st.floats(0.5, 50.0),
    st.lists(st.floats(0.0, 3.0), min_size=1, max_size=200),
)
def test_no_more_are_let_in_than_the_rate_and_one_burst(rate: float, pauses: list[float]) -> None:
    clock = HandClock()
    account = Accounts(Limits(rate=rate), clock).of("one")
    let_in = 0
    for pause in pauses:
        clock.advance(pause)
        let_in += account.spend() is None

    assert let_in <= max(1.0, rate) + rate * sum(pauses) + 1e-6


def test_who_does_not_read_is_told_to_read_first() -> None:
    account = Accounts(Limits(unread_bytes=100), HandClock()).of("one")
    account.unread_by(101)

    refused = account.enter(stream=False)

    assert isinstance(refused, TooManyCalls)
    assert "101 bytes" in refused.message
    account.unread_by(-101)
    assert account.enter(stream=False) is None


def test_limits_of_its_own_hold_from_now_on_and_what_is_open_still_counts() -> None:
    accounts = Accounts(Limits(calls=1), HandClock())
    assert accounts.of("one").enter(stream=False) is None

    own = Limits(calls=2, share=0.1)
    assert accounts.of("one", own).enter(stream=False) is None
    assert isinstance(accounts.of("one", own).enter(stream=False), TooManyCalls)
    assert accounts.of("one", own).owner.share == 0.1
    assert accounts.of("one").owner.share == 1.0


def test_callers_that_come_once_are_forgotten_and_those_with_something_open_or_spent_are_not() -> None:
    clock = HandClock()
    accounts = Accounts(Limits(calls=1, rate=1.0), clock)
    busy, hasty = accounts.of("busy"), accounts.of("hasty")
    assert busy.enter(stream=False) is None
    clock.advance(1.0)
    assert hasty.spend() is None

    for index in range(3 * MAX_ACCOUNTS):
        accounts.of(f"once {index}")

    assert len(accounts._accounts) <= MAX_ACCOUNTS
    assert isinstance(accounts.of("busy").enter(stream=False), TooManyCalls)
    assert isinstance(accounts.of("hasty").spend(), RateLimited)
