"""`nablad curvature` and `nablad layers` against a real server."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from nablad.cli import main

DEEP = ("layers", "deep_sigmoid", "-i", "x=0.3")
MINIMUM = ("curvature", "rosenbrock", "-i", "x=1,1")


@pytest.fixture
def run(server_address: str) -> Any:
    def invoke(*arguments: str) -> Result:
        return CliRunner().invoke(main, [*arguments, "--address", server_address])

    return invoke


def words(result: Result) -> str:
    assert result.exit_code == 0, result.output
    return " ".join(result.stdout.split())


def test_curvature(run: Any) -> None:
    text = words(run(*MINIMUM))
    assert "0 positive definite 0.3994 1002 2508 0/0/2 0 rosenbrock@1, 2 × 2" in text

    found = json.loads(run(*MINIMUM, "--json").stdout)
    assert (found["definiteness"], found["symmetric"], found["positive"]) == ("positive_definite", True, 2)


def test_curvature_at_several_points(run: Any) -> None:
    points = ("curvature", "rosenbrock", "-i", "x=[[0,0],[0,1]]", "--batched", "--wrt", "x")
    text = words(run(*points))
    assert "0 positive definite 2 200 100 0/0/2 2" in text
    assert "1 indefinite -398 200 1.99 1/0/1 200" in text

    found = json.loads(run(*points, "--json").stdout)
    assert [point["smallest_eigenvalue"] for point in found] == [2, -398]


def test_numbers_that_json_has_not_are_strings(run: Any) -> None:
    found = json.loads(run("curvature", "booth", "-i", "x=1e308,1e308", "--json").stdout)
    assert found["definiteness"] == "positive_definite"
    assert found["gradient_norm"] == "Infinity"


def test_layers(run: Any) -> None:
    text = words(run(*DEEP))
    assert "deep_sigmoid@1: vanishing" in text
    assert "the gradient shrinks from 1 at the last of 10 layers to 1.51e-06 at the first" in text
    assert text.count("sigmoid models.py:") == 10
    assert "gradients of inputs: x: 3.69e-07" in text

    found = json.loads(run(*DEEP, "--json").stdout)
    assert found["flow"] == "vanishing"
    assert [layer["shape"] for layer in found["layers"]] == [[]] * 10


def test_layers_are_drawn(run: Any, tmp_path: Path) -> None:
    file = tmp_path / "layers.png"

    assert "vanishing" in words(run(*DEEP, "--plot", str(file)))

    assert file.read_bytes().startswith(b"\x89PNG")


def test_a_plot_needs_matplotlib(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = run(*DEEP, "--plot", str(tmp_path / "layers.png"))
    assert result.exit_code == 1
    assert "--plot needs matplotlib: pip install matplotlib" in result.output


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("layers", "doubling_chain", "-i", "x=1"), "NotDifferentiable: the output of doubling_chain@1"),
        (("layers", "deep_sigmoid"), "also needs x"),
        ((*DEEP, "--plot", "/nowhere/layers.png"), "cannot draw into /nowhere/layers.png"),
        (("curvature", "softmax", "-i", "x=1,2"), "NotScalar"),
    ],
)
def test_errors_are_one_clear_line(run: Any, arguments: tuple[str, ...], says: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 1
    assert says in result.output
    assert "Traceback" not in result.output
