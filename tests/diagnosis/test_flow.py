"""What is said of gradients whose norms are given."""

import math

import numpy as np
import pytest

from nablad_server.diagnosis.flow import Flow, over_points, ratio_of, verdict_on


def names(count: int) -> list[str]:
    return [f"layer {number}" for number in range(1, count + 1)]


@pytest.mark.parametrize(
    ("gradients", "flow", "ratio", "factor"),
    [
        ([1.0, 1.0, 1.0], Flow.STEADY, 1.0, 1.0),
        ([1.1e-3, 1.0], Flow.STEADY, 1.1e-3, 1.1e-3),
        ([0.9e-3, 1.0], Flow.VANISHING, 0.9e-3, 0.9e-3),
        ([999.0, 1.0], Flow.STEADY, 999.0, 999.0),
        ([1001.0, 1.0], Flow.EXPLODING, 1001.0, 1001.0),
        ([1e-8, 3.0, 1e-4, 1.0, 1.0], Flow.VANISHING, 1e-8, 1e-2),
        ([0.0, 1.0], Flow.VANISHING, 0.0, 0.0),
        ([1.0, 0.0], Flow.EXPLODING, math.inf, math.inf),
        ([0.0, 0.0], Flow.STEADY, math.nan, math.nan),
        ([5.0], Flow.STEADY, 1.0, 1.0),
        ([1e-308, 1e308], Flow.VANISHING, 0.0, 0.0),
        ([1.0, math.nan, 1.0], Flow.NON_FINITE, 1.0, 1.0),
        ([math.inf, 1.0], Flow.NON_FINITE, math.inf, math.inf),
    ],
)
def test_the_first_layer_is_compared_with_the_last(
    gradients: list[float], flow: Flow, ratio: float, factor: float
) -> None:
    found = verdict_on(gradients, [1.0], [0.0] * len(gradients), names(len(gradients)))

    assert found.flow is flow
    assert found.ratio == pytest.approx(ratio, nan_ok=True)
    assert found.factor == pytest.approx(factor, nan_ok=True)


def test_the_inputs_count_where_all_must_be_finite() -> None:
    found = verdict_on([1.0, 1.0], [math.nan], [0.0, 0.0], names(2))

    assert found.flow is Flow.NON_FINITE
    assert found.reason == "the gradient is NaN or infinite at an input, and finite at all layers"


def test_the_reason_names_the_layer_that_is_most_saturated() -> None:
    found = verdict_on([2.1e-14, 0.2, 0.31], [1.0], [0.2, 0.95, 0.6], names(3))

    assert found.reason == (
        "the gradient shrinks from 0.31 at the last of 3 layers to 2.1e-14 at the first, by a factor of 2.6e-07 a "
        "layer; 95% of the units of layer 2 are saturated"
    )


def test_root_mean_squares_over_points_neither_vanish_nor_overflow() -> None:
    norms = np.array([[3e-200, 3e200, 0.0, 1.0], [4e-200, 4e200, 0.0, math.inf]])
    expected = [math.sqrt(12.5) * 1e-200, math.sqrt(12.5) * 1e200, 0.0, math.inf]
    assert over_points(norms) == pytest.approx(expected, rel=1e-14)
    assert math.isnan(over_points(np.array([[math.nan], [1.0]]))[0])


def test_ratios_over_zero() -> None:
    assert ratio_of(1.0, 0.0) == math.inf
    assert math.isnan(ratio_of(0.0, 0.0))
    assert ratio_of(0.0, 2.0) == 0
