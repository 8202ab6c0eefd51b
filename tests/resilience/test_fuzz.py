"""The short form of `python -m resilience fuzz`."""

from pathlib import Path

from resilience.fuzz import fuzz
from servers import ServerProcess


def test_no_message_brings_a_server_to_more_than_a_refusal(server: ServerProcess, tmp_path: Path) -> None:
    findings = fuzz(server.address, messages=2000, seed=20, reproducers=tmp_path)
    assert findings.violations == []
    assert findings.checked > 4
    assert {"Gradient", "Pipeline", "Linearize", "Check", "Watch"} <= {rpc for rpc, _ in findings.statuses}
