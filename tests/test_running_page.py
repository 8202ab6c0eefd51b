"""docs/running.md names every setting with its default, every alert, and nothing that is not there."""

import re
import subprocess
import sys
from pathlib import Path

from containers.sizing import PROCESS_BYTES, PROGRAM_BYTES, memory_bytes
from nablad_server.config import Settings

ROOT = Path(__file__).resolve().parent.parent
PATH = ROOT / "docs" / "running.md"
PAGE = PATH.read_text()
ROW = re.compile(r"^\| `(\w+)`<br>.*?<br>`NABLAD_(\w+)` \| (.+?) \|", re.MULTILINE)
TABLES = {name: (variable, default) for name, variable, default in ROW.findall(PAGE)}
MIB = 1 << 20


def test_the_tables_are_those_that_the_settings_give() -> None:
    done = subprocess.run([sys.executable, ROOT / "docs" / "settings.py", "--check"], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_every_setting_is_there_once_with_its_variable() -> None:
    assert sorted(TABLES) == sorted(Settings.model_fields)
    assert len(ROW.findall(PAGE)) == len(TABLES)
    assert all(variable == name.upper() for name, (variable, _) in TABLES.items())


def test_defaults_are_those_of_a_server_that_is_told_nothing() -> None:
    for name, (_, shown) in TABLES.items():
        field = Settings.model_fields[name]
        found = re.match(r"[\d.]+", shown)
        if found and field.default_factory is None and not isinstance(field.default, str):
            assert float(found[0]) == field.default, name
    assert (TABLES["address"][1], TABLES["plaintext"][1], TABLES["builtin"][1]) == ("`127.0.0.1:50051`", "off", "on")
    assert TABLES["queue_bytes"][1] == "1073741824 bytes (1 GiB)"
    assert TABLES["drain_seconds"][1] == "25 s"


def test_every_alert_is_there_and_none_that_is_not_one() -> None:
    rules = set(re.findall(r"- alert: (\w+)", (ROOT / "monitoring" / "alerts.yaml").read_text()))
    assert set(re.findall(r"`(Nablad[A-Z]\w+)`", PAGE)) == rules


def test_the_sum_is_the_one_that_the_manifests_are_tested_with() -> None:
    settings = Settings(
        programs=1000, queue_bytes=256 * MIB, memory_bytes=512 * MIB, linearization_bytes=256 * MIB,
        unread_bytes_per_caller=256 * MIB,
    )  # fmt: skip
    assert (PROCESS_BYTES, PROGRAM_BYTES) == (300 * MIB, MIB)
    assert f"| {memory_bytes(settings, 256 * MIB, workers=2) // MIB} |" in PAGE


def test_links_lead_somewhere() -> None:
    headings = {re.sub(r"[^\w -]", "", text).lower().replace(" ", "-") for text in re.findall(r"^#+ (.+)$", PAGE, re.M)}
    for target in re.findall(r"\]\(([^)]+)\)", PAGE):
        path, _, heading = target.partition("#")
        assert (PATH.parent / path).exists(), target
        assert not heading or heading in headings, target
