from hypothesis import given
from hypothesis import strategies as st

from nablad_server.batching.policy import Policy

SECONDS = st.floats(1e-9, 1e3)


def test_a_call_of_unknown_cost_is_not_direct() -> None:
    assert not Policy().direct(None)


@given(SECONDS, SECONDS)
def test_calls_are_direct_up_to_the_threshold(threshold: float, seconds: float) -> None:
    assert Policy(direct_seconds=threshold).direct(seconds) == (seconds <= threshold)


def test_a_threshold_of_zero_batches_everything_that_takes_time() -> None:
    assert not Policy(direct_seconds=0.0).direct(1e-9)


@given(SECONDS)
def test_the_first_measurement_is_the_estimate(measured: float) -> None:
    assert Policy().blended(None, measured) == measured


@given(SECONDS, SECONDS)
def test_an_estimate_follows_a_fall_at_once_and_a_rise_in_part(estimate: float, measured: float) -> None:
    blended = Policy().blended(estimate, measured)

    if measured <= estimate:
        assert blended == measured
    else:
        assert estimate <= blended < measured


@given(SECONDS, SECONDS)
def test_a_rise_that_stays_is_believed_in_the_end(estimate: float, measured: float) -> None:
    policy = Policy()
    for _ in range(400):
        estimate = policy.blended(estimate, measured)

    assert abs(estimate - measured) <= 1e-9 * measured
