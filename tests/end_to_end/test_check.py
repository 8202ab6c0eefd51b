"""CheckGradient over the wire, and `nablad check`."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

import nablad
from nablad import cli, errors
from servers import ServerProcess

FUNCTIONS = Path(__file__).with_name("check_functions.py")


@pytest.fixture(scope="module")
def own() -> Iterator[nablad.Client]:
    """A client of a server with this folder's functions."""
    with ServerProcess(FUNCTIONS) as process, nablad.Client(process.address, timeout=120) as client:
        yield client
        assert process.errors() == []


def verdicts(check: nablad.GradientCheck) -> dict[tuple[int, str], str]:
    return {(part.order, part.mode): part.verdict for part in check.checks}


def test_both_modes_and_both_orders_of_a_scalar_are_checked(client: nablad.Client) -> None:
    check = client.check_gradient("rosenbrock", order=2)
    assert verdicts(check) == {(1, "reverse"): "pass", (1, "forward"): "pass", (2, "auto"): "pass"}
    assert check.passed
    assert check.function == "rosenbrock@1"
    assert check.inputs["x"].shape == (3, 3)  # three points, sampled
    assert check.evaluations > 1000
    for part in check.checks:
        (by_x,) = part.inputs
        assert (by_x.name, by_x.moved, part.directions.moved) == ("x", 3, 4)
        assert by_x.relative_error < 1e-10
        assert 1e-12 < np.nanmin(by_x.errors[:10]) < np.nanmax(by_x.errors[:10])  # truncation, falling with the step
        assert (np.diff(by_x.steps) < 0).all()


def test_the_same_request_has_the_same_answer_and_another_seed_another(client: nablad.Client) -> None:
    one, same, other = (client.check_gradient("ackley", seed=seed, points=2) for seed in (1, 1, 2))
    assert (one.inputs["x"] == same.inputs["x"]).all()
    assert not np.isclose(one.inputs["x"], other.inputs["x"]).any()
    assert [part.directions.relative_error for part in one.checks] == [
        part.directions.relative_error for part in same.checks
    ]


def test_points_sizes_and_dtype_are_as_asked(client: nablad.Client) -> None:
    check = client.check_gradient("rosenbrock", points=5, sizes={"n": 40}, coordinates=7, directions=2, dtype="float32")
    assert check.inputs["x"].shape == (5, 40)
    assert check.inputs["x"].dtype == np.float32
    (by_x,) = check.checks[0].inputs
    assert by_x.moved == 7
    assert check.checks[0].directions.moved == 2
    assert check.verdict in ("pass", "noisy")


def test_inputs_that_are_given_are_taken_and_the_others_sampled(client: nablad.Client) -> None:
    check = client.check_gradient("quadratic_form", A=np.eye(5), wrt="x")
    assert check.inputs["x"].shape == (3, 5)
    assert (check.inputs["A"] == np.eye(5)).all()
    assert [part.name for part in check.checks[0].inputs] == ["x"]
    batched = client.check_gradient("sum_of_squares", np.arange(8.0).reshape(4, 2), batched=True)
    assert batched.passed
    assert batched.inputs["x"].shape == (4, 2)


def test_a_function_with_several_outputs_of_any_shape(client: nablad.Client) -> None:
    assert client.check_gradient("softmax").passed
    check = client.check_gradient("polynomial_and_slope", outputs="slope")
    assert check.passed
    assert {worst.output for worst in check.checks[0].worst} == {"slope"}


@pytest.mark.parametrize("order", [1, 2])
def test_of_nothing_there_is_nothing_wrong(client: nablad.Client, order: int) -> None:
    check = client.check_gradient("sum_of_squares", np.zeros(0), order=order)
    assert check.passed
    assert check.checks[0].inputs[0].moved == 0


def test_a_corner_is_called_one(client: nablad.Client) -> None:
    check = client.check_gradient("relu", 0.0)
    assert check.verdict == "kink"
    assert check.reason.startswith("there is no derivative: ∂value/∂x along an element at point 0 is 0 by automatic")
    assert client.check_gradient("relu", 1e-3).passed


def test_an_undefined_value_is_no_wrong_derivative(client: nablad.Client) -> None:
    assert client.check_gradient("ln", -1.0).verdict == "kink"


def test_rules_for_one_mode_alone_are_checked_in_that_mode(own: nablad.Client) -> None:
    assert verdicts(own.check_gradient("cubes_in_reverse")) == {(1, "reverse"): "pass"}
    assert verdicts(own.check_gradient("halved_until_small")) == {(1, "forward"): "pass"}
    with pytest.raises(errors.NotDifferentiable, match="forward-mode"):
        own.check_gradient("cubes_in_reverse", mode="forward")


def test_a_wrong_hessian_shows_at_the_second_order_alone(own: nablad.Client) -> None:
    check = own.check_gradient("right_gradient_wrong_hessian", np.array([0.5, 1.0]), order=2)
    assert verdicts(check) == {(1, "reverse"): "pass", (1, "forward"): "pass", (2, "auto"): "wrong"}
    worst = check.checks[-1].worst[0]
    assert (worst.input, worst.output, worst.element, worst.output_element) == ("x", "x", 0, 0)
    assert worst.automatic == 0
    assert worst.numerical == pytest.approx(-np.sin(0.5), rel=1e-9)
    assert "it is wrong: ∂∂f/∂x[0]/∂x[0] along an element" in check.reason


def test_points_come_from_the_declared_domain(own: nablad.Client) -> None:
    check = own.check_gradient("in_its_domain", points=20)
    assert check.passed
    assert ((check.inputs["x"] >= 2) & (check.inputs["x"] <= 5)).all()
    assert set(check.inputs["k"]) == {1, 2, 3}
    assert own.check_gradient("tree").passed


def test_float32_inside_a_float64_function_is_pointed_at(own: nablad.Client) -> None:
    check = own.check_gradient("mixed_precision")
    assert check.verdict != "pass"
    assert "numbers are rounded to float32 at check_functions.py:" in check.reason
    assert own.check_gradient("mixed_precision", dtype="float32").passed


@pytest.mark.parametrize(
    ("function", "options", "error", "says"),
    [
        ("rosenbrock", {"order": 3}, errors.InvalidOption, "order is 3; expected 1 or 2"),
        ("rosenbrock", {"points": 65}, errors.InvalidOption, "points is 65; expected at most 64"),
        ("rosenbrock", {"directions": 65}, errors.InvalidOption, "directions is 65; expected at most 64"),
        ("rosenbrock", {"coordinates": 5000}, errors.InvalidOption, "coordinates is 5000; expected at most 4096"),
        ("rosenbrock", {"coordinates": -1}, errors.InvalidOption, "coordinates is -1"),
        ("rosenbrock", {"sizes": {"m": 3}}, errors.InvalidOption, "no symbol 'm'"),
        ("rosenbrock", {"sizes": {"n": 0}}, errors.InvalidOption, "expected 1 or more"),
        ("rosenbrock", {"dtype": "int32"}, errors.InvalidOption, "is no floating-point one"),
        ("rosenbrock", {"x": [1.0, 2.0], "points": 4}, errors.InvalidOption, "every input is given"),
        ("quadratic_form", {"x": [1.0, 2.0], "sizes": {"n": 5}}, errors.InvalidOption, "the inputs given have 2"),
        ("softmax", {"order": 2}, errors.NotScalar, "not a scalar"),
        ("rosenbrock", {"wrt": "y"}, errors.UnknownInput, "no input 'y'"),
        ("rosenbrock", {"sizes": {"n": 4000}, "coordinates": 4000, "points": 64}, errors.ResultTooLarge, "evaluations"),
        ("rosenbrock", {"sizes": {"n": 1 << 60}}, errors.ResultTooLarge, "bytes here; at most"),
        ("softmax", {"sizes": {"n": 2500}, "coordinates": 2500}, errors.ResultTooLarge, "numbers to compare"),
        ("no_such_function", {}, errors.FunctionNotFound, "no_such_function"),
    ],
)
def test_what_cannot_be_checked_is_refused_with_the_reason(
    client: nablad.Client, function: str, options: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        client.check_gradient(function, **options)
    assert client.check_gradient("sin").passed


def test_a_domain_that_gives_nothing_of_use_is_an_error_of_the_functions(own: nablad.Client) -> None:
    with pytest.raises(errors.FunctionFailed, match=r"the domain of input 'x' of homeless@1 gave no elements .* \[3\]"):
        own.check_gradient("homeless")


def test_an_input_of_any_shape_has_to_be_given(own: nablad.Client) -> None:
    with pytest.raises(errors.InvalidOption, match="has no declared shape; give it"):
        own.check_gradient("any_shape")
    assert own.check_gradient("any_shape", np.ones((2, 3))).passed


def test_the_domain_is_published(own: nablad.Client) -> None:
    domains = {spec.name: spec.domain for spec in own.describe("in_its_domain").inputs}
    assert domains == {"x": (2.0, 5.0), "k": (1.0, 3.0)}
    assert [spec.domain for spec in own.describe("any_shape").inputs] == [None]


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli.main, ["check", *map(str, arguments)])


def test_a_file_is_checked_in_a_server_of_its_own() -> None:
    result = run(FUNCTIONS, "--order", "2", "--json", "--size", "n=2")
    assert result.exit_code == 1  # a Hessian is wrong
    found = {each["function"].partition("@")[0]: each["verdict"] for each in json.loads(result.stdout)}
    assert found.pop("any_shape") == "skipped"
    assert found.pop("black_box") == "skipped"
    assert found.pop("homeless") == "skipped"
    assert found.pop("mixed_precision") != "pass"
    assert found.pop("right_gradient_wrong_hessian") == "wrong"
    assert set(found.values()) == {"pass"}


def test_functions_of_a_server_are_checked_by_name(server_address: str, tmp_path: Path) -> None:
    picture = tmp_path / "check.png"
    result = run("rosenbrock", "softmax", "--address", server_address, "--order", "2", "--plot", picture)
    assert result.exit_code == 0
    assert "2 checked: 2 pass" in result.output
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_strictly_only_a_pass_will_do(server_address: str) -> None:
    arguments = ("relu", "--input", "x=0", "--address", server_address)
    assert run(*arguments).exit_code == 0
    result = run(*arguments, "--strict")
    assert result.exit_code == 1
    assert "there is no derivative" in result.output


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("missing.py",), "there is no such file"),
        (("rosenbrock", "--size", "n"), "expected SYMBOL=N"),
        (("rosenbrock", "--plot", "/no/such/folder/check.png"), "cannot draw into"),
    ],
)
def test_what_the_command_cannot_do_is_said(arguments: tuple[str, ...], says: str, server_address: str) -> None:
    result = run(*arguments, "--address", server_address)
    assert result.exit_code != 0
    assert says in result.output
