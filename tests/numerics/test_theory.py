"""The theory of automatic differentiation, as the service shows it: dual numbers, both modes, and what they cost.

Costs are the floating-point operations that the compiler counts, as `explain` gives them: nothing is timed.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import pytest
from numpy.testing import assert_allclose
from numpy.typing import NDArray

import nablad
from scenarios import SCENARIOS
from servers import ServerProcess

FUNCTIONS = Path(__file__).with_name("theory_functions.py")
BY_NAME = {scenario.function: scenario for scenario in SCENARIOS}

HIDDEN = 256
"""Rows of the hidden layer: so many that little but its matrix product counts."""
SIZES = np.array([8, 16, 32, 64, 128])

WIDTH = 1000
"""Elements of the state of a chain: so many that little but the states counts."""
DEPTHS = np.array([10, 100, 1000])

Mode = Literal["auto", "forward", "reverse"]
MODES: tuple[Mode, ...] = ("forward", "reverse")

Array = NDArray[np.float64]


@pytest.fixture(scope="module")
def networks() -> Iterator[nablad.Client]:
    """A client of a server with the catalogue and this folder's networks."""
    with ServerProcess(FUNCTIONS) as process, nablad.Client(process.address, timeout=120) as client:
        yield client
        assert process.errors() == []


# Dual numbers


@dataclass(frozen=True)
class Dual:
    """v + dε with ε² = 0: a value and its derivative, computed side by side."""

    v: float
    d: float = 0.0

    def __add__(self, other: Self) -> "Dual":
        return Dual(self.v + other.v, self.d + other.d)

    def __mul__(self, other: Self) -> "Dual":
        return Dual(self.v * other.v, self.d * other.v + self.v * other.d)

    def __truediv__(self, other: Self) -> "Dual":
        return Dual(self.v / other.v, (self.d * other.v - self.v * other.d) / other.v**2)

    def sin(self) -> "Dual":
        return Dual(math.sin(self.v), math.cos(self.v) * self.d)


def test_the_dual_number_example_step_by_step(client: nablad.Client) -> None:
    """The text's f(x) = x² at 3: (3 + ε)² = 9 + 6ε + ε², and ε² is 0. A Jvp with the tangent 1 carries that pair."""
    x = Dual(3.0, 1.0)
    assert x * x == Dual(9.0, 6.0)

    answer = client.jvp("integer_power", 3.0, 2, tangent=1.0)

    assert Dual(float(answer.value), float(answer.jvp)) == x * x


@pytest.mark.parametrize(
    ("function", "by_hand"),
    [
        ("sum_rule", lambda x: x * x + x.sin()),
        ("product_rule", lambda x: x * x * x.sin()),
        ("quotient_rule", lambda x: x / (Dual(1.0) + x * x)),
        ("chain_rule", lambda x: (x * x).sin()),
        ("cubic", lambda x: x * x * x + Dual(-2.0) * x + Dual(1.0)),
    ],
)
@pytest.mark.parametrize(("x", "along"), [(1.5, 1.0), (-0.7, 2.5)])
def test_whole_programs_in_dual_numbers_are_what_a_jvp_computes(
    client: nablad.Client, function: str, by_hand: Callable[[Dual], Dual], x: float, along: float
) -> None:
    expected = by_hand(Dual(x, along))

    answer = client.jvp(function, x, tangent=along)

    assert_allclose((answer.value, answer.jvp), (expected.v, expected.d), rtol=1e-14)


# Two modes, one derivative


@pytest.mark.parametrize(
    "function", ["rosenbrock", "logsumexp", "x2y_3xy2", "quadratic_form", "gaussian_logpdf", "linear_layer_loss", "det"]
)
def test_gradients_of_both_modes_are_the_closed_form(client: nablad.Client, function: str) -> None:
    scenario = BY_NAME[function]
    for point in scenario.points:
        expected = {leaf: block for (_, leaf), block in scenario.jacobian(point).items()}
        arguments: dict[str, Any] = dict(point)
        for mode in MODES:
            found = client.gradient(function, **arguments, wrt=list(expected), mode=mode).gradient
            for leaf, gradient in expected.items():
                assert_allclose(found[leaf], gradient, rtol=1e-11, atol=1e-11, err_msg=f"{mode}, by {leaf}")
            assert client.explain("gradient", function, **arguments, mode=mode).mode == mode


@pytest.mark.parametrize("function", ["softmax", "matvec", "quadratic_product", "polar_to_cartesian", "inverse"])
def test_jacobians_of_both_modes_are_the_closed_form(client: nablad.Client, function: str) -> None:
    scenario = BY_NAME[function]
    for point in scenario.points:
        expected = scenario.jacobian(point)
        outputs, inputs = (list(dict.fromkeys(names)) for names in zip(*expected, strict=True))
        arguments: dict[str, Any] = dict(point)
        for mode in MODES:
            found = client.jacobian(function, **arguments, wrt=inputs, mode=mode).jacobian
            for (output, leaf), block in expected.items():
                by_leaf = found[output] if len(outputs) > 1 else found
                assert_allclose(by_leaf[leaf], block, rtol=1e-11, atol=1e-11, err_msg=f"{mode}, {output} by {leaf}")
            assert client.explain("jacobian", function, **arguments, mode=mode).mode == mode


def test_a_hessian_names_how_its_two_derivatives_are_nested(client: nablad.Client) -> None:
    x = np.array([-1.2, 1.0])
    expected = [[1330, 480], [480, 200]]
    nested: dict[Mode, str] = {
        "auto": "forward over reverse",
        "forward": "forward over forward",
        "reverse": "reverse over reverse",
    }
    for mode, name in nested.items():
        assert_allclose(client.hessian("rosenbrock", x, mode=mode).hessian, expected, rtol=1e-12)
        assert client.explain("hessian", "rosenbrock", x, mode=mode).mode == name


def test_a_jacobian_is_made_of_jvps_by_columns_or_of_vjps_by_rows(networks: nablad.Client) -> None:
    x, W, V = np.linspace(-1, 1, 3), np.arange(15.0).reshape(5, 3) / 8, np.arange(10.0).reshape(2, 5) / 4
    expected = V @ ((1 + 2 * (W @ x))[:, None] * W)

    columns = networks.jvp("perceptron", x, W, V, tangent={"x": np.eye(3)}, stacked=True).jvp
    rows = networks.vjp("perceptron", x, W, V, cotangent=np.eye(2), stacked=True, wrt="x").vjp

    assert_allclose(columns.T, expected, rtol=1e-13)
    assert_allclose(rows, expected, rtol=1e-13)


# The table of costs: operations of the derivative over those of the function


def ratios(client: nablad.Client, operator: str, **options: Any) -> Array:
    """Of Σ sq(Wx) with n inputs, for each n of SIZES."""
    return np.array(
        [client.explain(operator, "energy", x, np.ones((HIDDEN, x.size)), **options).flops_ratio for x in vectors()]
    )


def vectors() -> Iterator[Array]:
    return (np.ones(int(n)) for n in SIZES)


def test_the_operations_counted_are_those_of_the_matrix_product(networks: nablad.Client) -> None:
    """The measure itself: 2hn for Wx, and a few for each row of the hidden layer."""
    for x in vectors():
        cost = networks.explain("evaluate", "energy", x, np.ones((HIDDEN, x.size))).function_cost
        assert 2 * HIDDEN * x.size <= cost.flops <= 2 * HIDDEN * (x.size + 4)


def test_a_gradient_in_reverse_costs_one_sweep_back_however_many_inputs(networks: nablad.Client) -> None:
    assert_allclose(ratios(networks, "gradient", wrt="x"), 2, rtol=0.1)


def test_a_gradient_in_forward_mode_costs_a_sweep_for_each_input(networks: nablad.Client) -> None:
    assert_allclose(ratios(networks, "gradient", wrt="x", mode="forward"), SIZES + 1, rtol=0.1)


def test_a_directional_derivative_forward_costs_one_sweep(networks: nablad.Client) -> None:
    """As a Jvp: the value and one derivative beside it, whatever n."""
    found = [
        networks.explain("jvp", "energy", x, np.ones((HIDDEN, x.size)), tangent={"x": x}).flops_ratio for x in vectors()
    ]
    assert_allclose(found, 2, rtol=0.1)


def test_a_hessian_vector_product_costs_a_few_sweeps_and_never_a_hessian(networks: nablad.Client) -> None:
    """The gradient's two, each with its derivative along the vector: four."""
    found = [
        networks.explain("hvp", "energy", x, np.ones((HIDDEN, x.size)), tangent={"x": x}, wrt="x").flops_ratio
        for x in vectors()
    ]
    assert_allclose(found, 4, rtol=0.15)


@pytest.mark.parametrize("mode", ["auto", "forward", "reverse"])
def test_a_hessian_costs_a_gradient_for_each_input(networks: nablad.Client, mode: str) -> None:
    """Two sweeps for each of the n columns or rows, in every nesting: O(n) times the function."""
    found = ratios(networks, "hessian", wrt="x", mode=mode)
    slope, _ = np.polyfit(SIZES, found, 1)
    assert_allclose(slope, 2, rtol=0.1)
    assert_allclose(found, 2 * SIZES, rtol=0.15)


@pytest.mark.parametrize(("m", "n"), [(4, 64), (64, 4), (16, 16), (16, 128), (128, 16)])
def test_a_jacobian_costs_a_sweep_for_each_input_forward_and_for_each_output_in_reverse(
    networks: nablad.Client, m: int, n: int
) -> None:
    x, W, V = np.ones(n), np.ones((HIDDEN, n)), np.ones((m, HIDDEN))

    forward = networks.explain("jacobian", "perceptron", x, W, V, wrt="x", mode="forward")
    reverse = networks.explain("jacobian", "perceptron", x, W, V, wrt="x", mode="reverse")
    chosen = networks.explain("jacobian", "perceptron", x, W, V, wrt="x")

    assert_allclose(forward.flops_ratio, n + 1, rtol=0.1)
    assert_allclose(reverse.flops_ratio, m + 1, rtol=0.1)
    assert chosen.cost.flops == min(forward.cost.flops, reverse.cost.flops)
    assert chosen.mode == ("forward" if n <= m else "reverse")


def test_what_is_counted_is_what_is_computed(networks: nablad.Client) -> None:
    """The cheap gradient is the whole one."""
    x, W = np.linspace(-1, 1, 8), np.linspace(0, 1, 8 * HIDDEN).reshape(HIDDEN, 8)
    expected = (1 + 2 * (W @ x)) @ W
    for mode in MODES:
        assert_allclose(networks.gradient("energy", x, W, wrt="x", mode=mode).gradient, expected, rtol=1e-12)


# The memory of a sweep back


def extra_values(client: nablad.Client, operator: str, depth: int, **options: Any) -> float:
    """How many vectors of its state a derivative of a chain of so many steps holds, besides what the chain takes."""
    found = client.explain(operator, "chain", np.ones(WIDTH), np.ones(depth), **options)
    return (found.cost.memory_bytes - found.function_cost.memory_bytes) / (8 * WIDTH)


def test_a_sweep_back_keeps_what_every_operation_gave(networks: nablad.Client) -> None:
    """Its memory is proportional to the number of operations: here to the steps, one or two vectors for each."""
    held = [extra_values(networks, "gradient", depth, wrt="x") for depth in DEPTHS]
    slope, _ = np.polyfit(DEPTHS, held, 1)
    assert 0.99 <= slope <= 2.01
    assert_allclose(np.diff(held) / np.diff(DEPTHS), slope, rtol=0.05)


def test_a_sweep_forward_keeps_nothing(networks: nablad.Client) -> None:
    held = [extra_values(networks, "jvp", depth, tangent={"x": np.ones(WIDTH)}) for depth in DEPTHS]
    assert max(held) - min(held) < 1
    assert max(held) < 8
