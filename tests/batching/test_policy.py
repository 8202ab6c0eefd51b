import pytest
from hypothesis import given
from hypothesis import strategies as st

from nablad_server.batching.policy import Policy
from puppets import PuppetPrepared

SECONDS = st.floats(1e-9, 1e3)


def batch(seconds: float, calls_back: bool = False) -> PuppetPrepared:
    return PuppetPrepared(1, 1, 1, seconds, calls_back, None, list)


@given(SECONDS, SECONDS, SECONDS, st.integers(1, 1000))
def test_a_batch_is_direct_up_to_so_much_a_call_and_never_when_heavy(
    direct: float, heavy: float, seconds: float, calls: int
) -> None:
    policy = Policy(direct_seconds=direct, heavy_seconds=heavy)

    assert policy.heavy(batch(seconds)) == (seconds > heavy)
    assert policy.direct(batch(seconds), calls) == (seconds <= direct * calls and not policy.heavy(batch(seconds)))


def test_a_threshold_of_zero_batches_everything_that_takes_time() -> None:
    assert not Policy(direct_seconds=0.0).direct(batch(1e-9), 1000)


@pytest.mark.parametrize("seconds", [0.0, 1e-9, 1.0])
def test_what_calls_back_may_take_any_time_whatever_its_estimate(seconds: float) -> None:
    assert Policy().heavy(batch(seconds, calls_back=True))
    assert not Policy().direct(batch(seconds, calls_back=True), 1000)
