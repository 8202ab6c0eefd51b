"""The judgement of `python -m resilience soak`, on measures whose growth is known."""

import numpy as np
import pytest

from resilience.soak import trend

SECONDS = list(np.arange(60.0))


@pytest.mark.parametrize(
    ("growth", "flat"), [(0.0, True), (1.0, False), (-1.0, True)], ids=["none", "some", "shrinking"]
)
@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_growth_is_told_from_noise(growth: float, flat: bool, noise: float) -> None:
    values = 100 + growth * np.array(SECONDS) + noise * np.random.default_rng(1).standard_normal(60)
    found = trend("x", SECONDS, list(values))
    assert found.flat is flat
    assert found.low - 1e-6 <= growth * 3600 <= found.high + 1e-6
