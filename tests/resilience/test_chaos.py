"""The short form of `python -m resilience chaos`; the full one has scenarios that need more time and more files."""

import json

import pytest

from resilience.chaos import SCENARIOS, run
from resilience.outcome import Outcome

SHORT = ("kill", "terminate", "terminate-stubs", "full-disk", "corrupt-cache", "certificate-swap", "slow-loris")
# The others take long, need 10,500 open files or libfaketime, or are tests of their own in end_to_end/test_connections.
LONG = ("clock-jump", "never-reads", "idle-connections")


@pytest.mark.parametrize("name", SHORT)
def test_callers_notice_no_more_than_a_wait(name: str) -> None:
    (made,) = run([name], seconds=1.0)
    if made.outcome.skipped:
        pytest.skip(made.outcome.skipped)
    assert made.outcome.verdict == "fine", made.outcome
    report = json.loads(json.dumps(made.report()))
    assert report["scenario"] == name
    assert report["recovery_seconds"] > 0


GOOD = Outcome(calls=3, recovery_seconds=0.1, evidence="it broke")


@pytest.mark.parametrize(
    ("outcome", "verdict"),
    [
        (GOOD, "fine"),
        (Outcome(evidence="it broke"), "fault not met"),
        (Outcome(calls=3, missing=("it breaks",)), "fault not met"),
        (Outcome(calls=3, lost=1), "broken"),
        (Outcome(calls=3, wrong=1), "broken"),
        (Outcome(calls=3, violations=("exit status 1",)), "broken"),
        (Outcome(skipped="no such tool"), "skipped"),
    ],
    ids=["fine", "no calls", "no fault", "lost", "wrong", "violation", "skipped"],
)
def test_only_a_fault_that_was_met_and_harmed_nobody_is_fine(outcome: Outcome, verdict: str) -> None:
    assert outcome.verdict == verdict


def test_no_scenario_is_forgotten() -> None:
    assert {*SHORT, *LONG} == set(SCENARIOS)
