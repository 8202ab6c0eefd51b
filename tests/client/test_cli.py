"""The command line against a real server."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from nablad.cli import main


@pytest.fixture
def run(server_address: str) -> Any:
    def invoke(*arguments: str) -> Result:
        return CliRunner().invoke(main, [*arguments, "--address", server_address])

    return invoke


def answer(result: Result) -> Any:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_list_and_describe(run: Any) -> None:
    names = [info["name"] for info in answer(run("list", "--json"))]
    assert names == sorted(names)
    info = answer(run("describe", "x2y_3xy2", "--json"))
    assert [spec["name"] for spec in info["inputs"]] == ["x", "y"]
    assert "rosenbrock@1" in run("list").stdout


def test_a_sparse_matrix_is_shown_in_coordinates(run: Any) -> None:
    call = ("hessian", "sum_of_squares", "-i", "x=1,1", "--sparse")
    assert answer(run(*call, "--json"))["sparse"] == {
        "shape": [2, 2], "rows": [0, 1], "columns": [0, 1], "values": [2.0, 2.0],
    }  # fmt: skip
    assert "sparse[values]" in run(*call).stdout


def test_the_command_that_describe_offers_works(run: Any) -> None:
    for name in ("rosenbrock", "mlp_loss", "masked_sum_of_squares", "quadratic_form", "softmax"):
        text = " ".join(run("describe", name).stdout.split())
        command = text[text.index("try nablad ") + len("try nablad ") :].split()
        assert run(*command).exit_code == 0, command


@pytest.mark.parametrize(
    ("arguments", "part", "expected"),
    [
        (("evaluate", "rosenbrock", "-i", "x=1,2,3"), "value", 201.0),
        (("gradient", "rosenbrock", "-i", "x=1,2,3"), "gradient", [-400.0, 1002.0, -200.0]),
        (("gradient", "sin", "-i", "x=[0, 0]", "--batched"), "gradient", [1.0, 1.0]),
        (("gradient", "x2y_3xy2", "-i", "x=1", "-i", "y=2", "--wrt", "y"), "gradient", 13.0),
        (("jacobian", "quadratic_product", "-i", "x=1,2", "--mode", "reverse"), "jacobian", [[2.0, 1.0], [2.0, 1.0]]),
        (("hessian", "sum_of_squares", "-i", "x=1,1", "--diagonal"), "hessian", [2.0, 2.0]),
        (("laplacian", "sum_of_squares", "-i", "x=1,1", "--samples", "4"), "standard_error", 0.0),
        (
            ("gradient", "sum_of_squares", "-i", "x=1,2", "--differences", "forward", "--step", "0.25"),
            "gradient",
            [2.25, 4.5],
        ),
        (
            (
                "gradient",
                "sum_of_squares",
                "-i",
                "x=1,2",
                "--differences",
                "forward",
                "--step",
                "0.25",
                "--absolute-step",
            ),
            "gradient",
            [2.25, 4.25],
        ),
        (("derivative", "sum_of_squares", "-i", "x=1,1", "--order", "2", "--direction", "1,2"), "derivatives", [6, 10]),
        (("hvp", "sum_of_squares", "-i", "x=1,2", "--tangent", "1,0"), "hvp", [2.0, 0.0]),
        (("jvp", "x2y_3xy2", "-i", "x=1", "-i", "y=2", "--tangent", "x=1", "--tangent", "y=1"), "jvp", 29.0),
        (("vjp", "quadratic_product", "-i", "x=1,2", "--cotangent", "1,1"), "vjp", [4.0, 2.0]),
        (("directional-derivative", "sum_of_squares", "-i", "x=1,1", "--direction", "3,4"), "derivative", 2.8),
        (("derivative", "cubic", "-i", "x=2", "--order", "4"), "derivatives", [10.0, 12.0, 6.0, 0.0]),
    ],
)
def test_every_operator(run: Any, arguments: tuple[str, ...], part: str, expected: Any) -> None:
    found = answer(run(*arguments, "--json"))
    assert np.allclose(found[part], expected, rtol=1e-14)
    assert found["execution"]["function"].endswith("@1")
    assert part in run(*arguments).stdout


def test_inputs_from_files(run: Any, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([1.0, 2.0, 3.0]))
    (tmp_path / "x.json").write_text("[1, 2, 3]")
    for name in ("x.npy", "x.json"):
        found = answer(run("gradient", "rosenbrock", "-i", f"x={tmp_path / name}", "--json"))
        assert found["gradient"] == [-400.0, 1002.0, -200.0]


def test_pickled_files_are_not_opened(run: Any, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    result = run("gradient", "rosenbrock", "-i", f"x={tmp_path / 'x.npy'}")
    assert result.exit_code == 2
    assert "allow_pickle=False" in result.output


def test_a_gradient_is_shown_with_its_norms_and_clipped(run: Any) -> None:
    call = ("gradient", "x2y_3xy2", "-i", "x=1", "-i", "y=2")  # ∇ = (2xy + 3y², x² + 6xy) = (16, 13)
    plain, scaled = answer(run(*call, "--json")), answer(run(*call, "--clip-norm", "1", "--json"))
    assert plain["norms"] == {"x": 16.0, "y": 13.0}
    assert plain["norm"] == scaled["norm"] == pytest.approx(np.hypot(16, 13), rel=1e-15)
    assert np.hypot(*scaled["gradient"].values()) == pytest.approx(1, rel=1e-15)
    assert answer(run(*call, "--clip-value", "14", "--json"))["gradient"] == {"x": 14.0, "y": 13.0}
    assert "norms[x]" in run(*call).stdout
    alone = run("gradient", "sin", "-i", "x=0").stdout
    assert "norm " in alone
    assert "norms" not in alone


def test_where_a_gradient_is_not_finite_is_said(run: Any) -> None:
    call = ("gradient", "ln", "-i", "x=1,0", "--batched")
    found = answer(run(*call, "--json"))
    assert found["first_non_finite"] == {"field": "values[0]", "name": "value", "index": [1]}
    assert "the first is values[0] (value) at [1]" in " ".join(run(*call).stdout.split())
    assert "first_non_finite" not in answer(run("gradient", "ln", "-i", "x=1", "--json"))


def test_not_finite_numbers_are_named_in_json(run: Any) -> None:
    found = answer(run("derivative", "ln", "-i", "x=0", "--json"))
    assert found["non_finite"] is True
    assert found["value"] == "-Infinity"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("gradient", "rosenbrok", "-i", "x=1"), "did you mean rosenbrock?"),
        (("gradient", "rosenbrock"), "also needs x"),
        (("gradient", "rosenbrock", "-i", "x"), "expected NAME=VALUE"),
        (("gradient", "rosenbrock", "-i", "x=one"), "cannot read 'one'"),
        (("gradient", "rosenbrock", "-i", "x=1", "-i", "x=2"), "given twice"),
        (("gradient", "softmax", "-i", "x=1,2"), "NotScalar"),
        (("hvp", "rosenbrock", "-i", "x=1,2"), "give the tangent"),
        (("gradient", "rosenbrock", "-i", "x=1,2", "--step", "0.5"), "say which with --differences"),
        (("gradient", "sin", "-i", "x=1", "--clip-norm", "1", "--clip-value", "1"), "give one of them"),
        (("gradient", "sin", "-i", "x=1", "--clip-norm", "-1"), "expected a positive number"),
    ],
)
def test_errors_are_one_clear_line(run: Any, arguments: tuple[str, ...], says: str) -> None:
    result = run(*arguments)
    assert result.exit_code in (1, 2)
    assert says in result.output
    assert "Traceback" not in result.output


def test_health(run: Any) -> None:
    assert run("health").exit_code == 0
    assert answer(run("health", "--json")) == {"serving": True}
    nobody = CliRunner().invoke(main, ["health", "--address", "127.0.0.1:1"])
    assert (nobody.exit_code, nobody.stdout) == (1, "NOT SERVING\n")


def test_help_justifies_every_setting() -> None:
    text = CliRunner().invoke(main, ["serve", "--help"]).output
    assert text.count("NABLAD_") >= 20
    assert text.count("default:") >= 20


def test_the_demo_shows_results_beside_exact_values() -> None:
    result = CliRunner().invoke(main, ["demo"], catch_exceptions=False)
    assert result.exit_code == 0
    for part in ("sigmoid", "2.828427", "[[1330.,", "16 results"):
        assert part in result.output


def test_explain(run: Any) -> None:
    call = ("explain", "rosenbrock", "--operator", "hessian", "-i", "x=1,2,3", "-o", "diagonal=true")
    found = answer(run(*call, "--json"))
    assert (found["operator"], found["mode"]) == ("hessian", "forward over reverse")
    text = " ".join(run("explain", "x2y_3xy2", "-i", "x=1", "-i", "y=2", "-o", "wrt=y").stdout.split())
    assert "gradient of x2y_3xy2@1" in text
    assert "single" in text
