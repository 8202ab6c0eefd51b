"""The judgement of `python -m resilience soak`, on measures whose growth is known; and the soak itself, for seconds."""

import json

import numpy as np
import pytest

from resilience.soak import soak
from resilience.trend import BLOCKS, trend

SECONDS = list(np.arange(96) * 5.0)
HOURS = np.array(SECONDS) / 3600
ALWAYS = float("inf")


def alike(seed: int, correlation: float) -> np.ndarray:
    """Noise of variance 1 whose neighbours are alike."""
    steps = np.random.default_rng(seed).standard_normal(400)
    noise = np.zeros(400)
    for k in range(1, 400):
        noise[k] = correlation * noise[k - 1] + np.sqrt(1 - correlation**2) * steps[k]
    return noise[-96:]


@pytest.mark.parametrize(
    ("growth", "verdict"), [(0.0, "flat"), (60.0, "grows"), (-60.0, "flat")], ids=["none", "some", "shrinking"]
)
@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_growth_is_told_from_noise(growth: float, verdict: str, noise: float) -> None:
    values = 100 + growth * HOURS + noise * np.random.default_rng(1).standard_normal(96)
    found = trend("x", SECONDS, list(values), 1e-6, ALWAYS)
    assert found.verdict == verdict
    assert found.low <= growth <= found.high


def test_noise_whose_neighbours_are_alike_is_not_taken_for_growth() -> None:
    verdicts = [trend("x", SECONDS, list(alike(seed, 0.8)), 1e-6, ALWAYS).verdict for seed in range(400)]
    assert verdicts.count("grows") <= 400 * 0.03


def test_what_is_called_detectable_is_detected() -> None:
    grown = []
    for seed in range(400):
        noise = alike(seed, 0.5)
        least = trend("x", SECONDS, list(noise), 1e-6, ALWAYS).detectable
        grown.append(trend("x", SECONDS, list(noise + least * HOURS), 1e-6, ALWAYS).verdict == "grows")
    assert sum(grown) >= 400 * 0.85


def test_a_count_that_never_changes_is_as_sure_as_counting_makes_it() -> None:
    found = trend("x", SECONDS, [44] * 96, 1.0, ALWAYS)
    assert found.low < 0 < found.high
    assert 0 < found.detectable < 10
    assert trend("x", SECONDS, [44] * 96, 1.0, found.detectable / 2).verdict == "too noisy"


def test_too_few_samples_are_refused() -> None:
    with pytest.raises(ValueError, match=f"do not make {BLOCKS} blocks"):
        trend("x", [0.0], [1.0], 1.0, ALWAYS)


def test_some_seconds_of_soak_make_a_report() -> None:
    result = soak(6.0)
    assert (result.wrong, result.lost) == (0, 0)
    assert min(result.calls, result.others) > 10
    report = json.loads(json.dumps(result.report()))
    assert [each["name"] for each in report["trends"]] == ["RSS, MB", "threads", "files", "memory maps", "p99, ms"]
