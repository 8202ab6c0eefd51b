"""The short forms of `python -m resilience fuzz`."""

import random
from pathlib import Path

import pytest
from click.testing import CliRunner

from nablad.framing import delimited
from nablad_server.serving.wire import Template
from resilience import guided
from resilience.__main__ import main
from resilience.fuzz import fuzz
from resilience.mutation import change_bytes
from resilience.reader import Disagreement
from resilience.readers import READERS
from resilience.secured import secured
from servers import ServerProcess


def check_seeds(name: str) -> None:
    for seed in READERS[name].seeds:
        READERS[name].check(seed)


def test_no_message_brings_a_server_to_more_than_a_refusal(server: ServerProcess, tmp_path: Path) -> None:
    findings = fuzz(server.address, messages=1000, seed=20, reproducers=tmp_path)
    assert findings.violations == []
    assert findings.checked > 4
    assert {"Gradient", "Pipeline", "Linearize", "Check", "Watch"} <= {rpc for rpc, _ in findings.statuses}


def test_nobody_is_answered_who_is_not_known_nor_about_what_they_may_not_use(tmp_path: Path) -> None:
    with secured(tmp_path) as (server, listed, strangers):
        for guise, messages in ((listed, 150), *((stranger, 100) for stranger in strangers)):
            findings = fuzz(server.address, messages, seed=21, reproducers=tmp_path, guise=guise)
            assert findings.violations == []
            assert bool(findings.checked) is guise.known
        assert server.defects == []


@pytest.mark.parametrize("name", READERS)
def test_what_readers_are_begun_with_is_read_right(name: str) -> None:
    check_seeds(name)


@pytest.mark.parametrize("name", READERS)
def test_what_is_broken_is_read_right(name: str) -> None:
    reader, chance = READERS[name], random.Random(22)  # noqa: S311 - repeatable, not secret
    for _ in range(100):
        for seed in reader.seeds:
            reader.check(seed[:1] + change_bytes(seed[1:], chance) if reader.numbered else change_bytes(seed, chance))


@pytest.mark.skipif(bool(guided.missing()), reason=guided.missing())
def test_what_is_found_by_its_coverage_is_read_right(tmp_path: Path) -> None:
    explored = guided.explore("requests", runs=400, seed=22, reproducers=tmp_path)  # the others are begun as it is
    assert (explored.finding, explored.where) == ("", "")
    assert explored.runs >= 400
    assert explored.reached > explored.seeded


def test_a_request_taken_for_another_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Template, "fits", lambda *_: True)  # a defect, planted
    with pytest.raises(Disagreement, match="read as one seen before"):
        check_seeds("requests")


def test_bytes_that_were_left_can_be_read_again(tmp_path: Path) -> None:
    left = tmp_path / "framing-crash-1"
    left.write_bytes(delimited(1, b"x"))
    arguments = ["fuzz", "--guided", "--replay", str(left)]

    assert CliRunner().invoke(main, arguments).exit_code == 0
    with pytest.raises(ValueError, match="expected READER-"):
        guided.read_again(tmp_path / "other")
