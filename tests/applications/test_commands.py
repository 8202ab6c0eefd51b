"""The examples as they are run: `python examples/NAME.py`."""

import subprocess
import sys
from pathlib import Path

import pytest

from connection import MODELS

EXAMPLES = MODELS.parent
SAYS = {
    "gradient_descent": "momentum 0.25: distance from (1.0, 3.0)",
    "newton": "step 6: distance from (1.0, 1.0)",
    "linear_layer": "furthest from the in-process run's loss",
    "digits": "% by served gradients",
    "saliency": "a 3, it says",
    "fgsm": "along the gradient's signs",
}


def run(name: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), *map(str, arguments)]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=150)


def test_every_example_is_run_here() -> None:
    commands = {file.stem for file in EXAMPLES.glob("*.py") if "@click.command" in file.read_text()}
    assert commands == set(SAYS)


@pytest.mark.parametrize(("name", "words"), SAYS.items())
def test_an_example_prints_and_draws_what_it_says(name: str, words: str, models_address: str, tmp_path: Path) -> None:
    picture = tmp_path / "picture.png"
    done = run(name, "--address", models_address, "--plot", picture)
    assert done.returncode == 0, done.stderr
    assert words in " ".join(done.stdout.split())
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_without_an_address_an_example_starts_a_server_of_its_own() -> None:
    done = run("newton")
    assert done.returncode == 0, done.stderr
    assert "step 6: distance from (1.0, 1.0)" in done.stdout


def test_a_server_without_the_functions_of_the_examples_is_an_error_that_says_so(server_address: str) -> None:
    done = run("digits", "--address", server_address)
    assert done.returncode == 1
    assert "digit_loss" in done.stderr


def test_nothing_to_draw_is_said(models_address: str, tmp_path: Path) -> None:
    done = run("fgsm", "--address", models_address, "--epsilon", "0", "--plot", tmp_path / "none.png")
    assert done.returncode == 1
    assert "nothing to draw" in done.stderr
