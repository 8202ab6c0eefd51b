"""What the log says of a defect, and what it does not."""

import json
import subprocess
import sys

import pytest

DEFECT = """
import structlog, sys
from nablad_server.telemetry import configure_logging

configure_logging("info", sys.argv[1])

def fail(token):
    raise ZeroDivisionError("a defect")

try:
    fail("-".join(["never", "to", "be", "read"]))
except ZeroDivisionError:
    structlog.get_logger("nablad").exception("internal error", rpc="test")
"""


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_defect_is_logged_with_its_traceback_and_no_values(form: str) -> None:
    done = subprocess.run([sys.executable, "-c", DEFECT, form], capture_output=True, text=True, check=True, timeout=60)

    assert "ZeroDivisionError" in done.stderr
    assert "a defect" in done.stderr
    assert "never-to-be-read" not in done.stderr
    if form == "json":
        (line,) = done.stderr.splitlines()
        (exception,) = json.loads(line)["exception"]
        assert [frame["name"] for frame in exception["frames"]] == ["<module>", "fail"]
