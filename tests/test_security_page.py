"""Every test that SECURITY.md leans on exists, and every option that it names."""

import ast
import re
from pathlib import Path

import pytest

from nablad_server.config import Settings

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "SECURITY.md").read_text()
CLAIMS = sorted(set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE)))


def test_claims_are_found() -> None:
    assert len(CLAIMS) > 30
    assert PAGE.count("::") == len(re.findall(r"`tests/[\w/]+\.py::\w+`", PAGE))


@pytest.mark.parametrize(("path", "name"), CLAIMS)
def test_the_test_behind_a_claim_exists(path: str, name: str) -> None:
    functions = {node.name for node in ast.parse((ROOT / path).read_text()).body if isinstance(node, ast.FunctionDef)}
    assert name in functions


def test_the_options_that_are_named_are_settings() -> None:
    own = {"role"}  # of nablad token
    named = {flag.removeprefix("no-") for flag in re.findall(r"`--([a-z-]+)", PAGE)} - own
    assert named <= {name.replace("_", "-") for name in Settings.model_fields}
