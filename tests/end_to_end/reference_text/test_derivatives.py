"""The reference text's sections Derivatives, Basic Derivative Rules and Common Derivatives."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

import nablad
from end_to_end.reference_text.numerical import Array
from end_to_end.reference_text.properties import REALS, property_test

POINTS = np.array([-3.0, -1.25, -0.5, 0.0, 0.3, 1.0, 2.5])
POSITIVE = np.array([0.05, 0.5, 1.0, 2.0, 10.0, 250.0])


def slope(client: nablad.Client, function: str, *arguments: Any) -> float:
    """The derivative by x at one point."""
    return float(client.derivative(function, *arguments, wrt="x").derivatives[0])


def slopes(client: nablad.Client, function: str, *arguments: Any, batched: str = "x") -> Array:
    """The derivative by x at many points."""
    found: Array = client.derivative(function, *arguments, wrt="x", batched=batched).derivatives[:, 0]
    return found


# Derivatives: Definition, Geometric Interpretation


@pytest.mark.parametrize(
    ("function", "x", "expected"),
    [
        ("cubic", 1.5, 3 * 1.5**2 - 2),
        ("exp", -0.5, math.exp(-0.5)),
        ("ln", 2.0, 0.5),
        ("sin", 0.7, math.cos(0.7)),
        ("tanh", 0.3, 1 - math.tanh(0.3) ** 2),
    ],
)
def test_definition_the_difference_quotient_tends_to_the_derivative_with_order_h(
    client: nablad.Client, function: str, x: float, expected: float
) -> None:
    h = 2.0 ** -np.arange(6, 15)
    answer = client.derivative(function, x, order=2)
    first, second = answer.derivatives
    assert_allclose(first, expected, rtol=1e-14)
    error = (client.evaluate(function, x + h, batched=True).value - answer.value) / h - first
    assert_allclose(error[:-1] / error[1:], 2, rtol=0.02)  # half the step, half the error
    assert_allclose(error[-1] / h[-1], second / 2, rtol=1e-3)  # by Taylor's theorem


@pytest.mark.parametrize("function", ["cubic", "exp", "cos", "sigmoid"])
@property_test
@given(x=REALS)
def test_geometric_interpretation_the_tangent_line_touches_the_curve(
    client: nablad.Client, function: str, x: float
) -> None:
    distance = np.array([-1e-3, -1e-4, -1e-5, -1e-6, 1e-6, 1e-5, 1e-4, 1e-3])
    at = client.derivative(function, x)
    line = at.value + at.derivatives[0] * distance
    curve = client.evaluate(function, x + distance, batched=True).value
    assert np.all(np.abs(curve - line) <= 11 * distance**2 + 1e-14)  # ½|f″| stays below 11 around [−3, 3]


@property_test
@given(x=REALS.filter(lambda x: abs(3 * x**2 - 2) > 1e-2))
def test_geometric_interpretation_the_sign_of_the_derivative_is_the_direction_of_ascent(
    client: nablad.Client, x: float
) -> None:
    uphill = np.sign(slope(client, "cubic", x)) * 1e-4
    behind, here, ahead = client.evaluate("cubic", np.array([x - uphill, x, x + uphill]), batched=True).value
    assert behind < here < ahead


# Basic Derivative Rules


def test_power_rule_for_whole_exponents(client: nablad.Client) -> None:
    n, x = (grid.ravel() for grid in np.meshgrid([-3, -1, 0, 1, 2, 3, 7, 10], [-2.0, -0.5, 1.0, 1.75]))
    found = client.derivative("integer_power", x, n, batched=True).derivatives[:, 0]
    assert_allclose(found, n * x ** (n - 1), rtol=1e-13, atol=0)


def test_power_rule_at_zero(client: nablad.Client) -> None:
    n = np.array([0, 1, 2, 3])
    assert_array_equal(slopes(client, "integer_power", 0.0, n, batched="n"), [0, 1, 0, 0])


@property_test
@given(x=st.floats(0.1, 10), n=st.floats(-4, 4, allow_subnormal=False))
def test_power_rule_for_real_exponents(client: nablad.Client, x: float, n: float) -> None:
    assert_allclose(slope(client, "power", x, n), n * x ** (n - 1), rtol=1e-12, atol=1e-300)


def test_constant_rule(client: nablad.Client) -> None:
    assert_array_equal(slopes(client, "constant", np.array([*POINTS, -1e300, 1e300])), 0)


@property_test
@given(x=REALS)
def test_constant_multiple_rule(client: nablad.Client, x: float) -> None:
    found = slope(client, "constant_multiple", x)
    assert_allclose(found, 3 * slope(client, "sin", x), rtol=1e-12)
    assert_allclose(found, 3 * math.cos(x), rtol=1e-12, atol=1e-14)


@property_test
@given(x=REALS)
def test_sum_rule(client: nablad.Client, x: float) -> None:
    found = slope(client, "sum_rule", x)
    assert_allclose(found, slope(client, "integer_power", x, 2) + slope(client, "sin", x), rtol=1e-12, atol=1e-14)
    assert_allclose(found, 2 * x + math.cos(x), rtol=1e-12, atol=1e-14)


@property_test
@given(x=REALS)
def test_difference_rule(client: nablad.Client, x: float) -> None:
    found = slope(client, "difference_rule", x)
    assert_allclose(found, slope(client, "exp", x) - slope(client, "integer_power", x, 3), rtol=1e-12, atol=1e-13)
    assert_allclose(found, math.exp(x) - 3 * x**2, rtol=1e-12, atol=1e-13)


@property_test
@given(x=REALS)
def test_product_rule(client: nablad.Client, x: float) -> None:
    f, g = client.derivative("integer_power", x, 2), client.derivative("sin", x)
    by_rule = f.derivatives[0] * g.value + f.value * g.derivatives[0]
    found = slope(client, "product_rule", x)
    assert_allclose(found, by_rule, rtol=1e-12, atol=1e-14)
    assert_allclose(found, 2 * x * math.sin(x) + x**2 * math.cos(x), rtol=1e-12, atol=1e-14)


@property_test
@given(x=REALS)
def test_quotient_rule(client: nablad.Client, x: float) -> None:
    f, square = client.derivative("integer_power", x, 1), client.derivative("integer_power", x, 2)
    g, g_slope = 1 + square.value, square.derivatives[0]
    found = slope(client, "quotient_rule", x)
    assert_allclose(found, (f.derivatives[0] * g - f.value * g_slope) / g**2, rtol=1e-12, atol=1e-14)
    assert_allclose(found, (1 - x**2) / (1 + x**2) ** 2, rtol=1e-12, atol=1e-14)


@property_test
@given(x=REALS)
def test_chain_rule(client: nablad.Client, x: float) -> None:
    inner = client.derivative("integer_power", x, 2)
    found = slope(client, "chain_rule", x)
    assert_allclose(found, slope(client, "sin", inner.value) * inner.derivatives[0], rtol=1e-12, atol=1e-14)
    assert_allclose(found, math.cos(x**2) * 2 * x, rtol=1e-12, atol=1e-14)


# Common Derivatives: Exponential & Logarithmic


def test_exponential_is_its_own_derivative(client: nablad.Client) -> None:
    answer = client.derivative("exp", POINTS, order=4, batched=True)
    assert_allclose(answer.derivatives, np.repeat(np.exp(POINTS)[:, None], 4, axis=1), rtol=1e-13)


@pytest.mark.parametrize("a", [0.5, 1.0, 2.0, math.e, 10.0])
def test_exponential_with_another_base(client: nablad.Client, a: float) -> None:
    assert_allclose(slopes(client, "exponential", a, POINTS), a**POINTS * math.log(a), rtol=1e-13)


def test_natural_logarithm(client: nablad.Client) -> None:
    assert_allclose(slopes(client, "ln", POSITIVE), 1 / POSITIVE, rtol=1e-15)


@pytest.mark.parametrize("a", [0.5, 2.0, math.e, 10.0])
def test_logarithm_with_another_base(client: nablad.Client, a: float) -> None:
    """The text prints the base as 1, a misprint: log₁ does not exist, and its right-hand side has the base a."""
    assert_allclose(slopes(client, "log", a, POSITIVE), 1 / (POSITIVE * math.log(a)), rtol=1e-14)


# Common Derivatives: Trigonometric


@pytest.mark.parametrize(
    ("function", "expected"),
    [("sin", np.cos), ("cos", lambda x: -np.sin(x)), ("tan", lambda x: 1 / np.cos(x) ** 2)],
)
def test_trigonometric(client: nablad.Client, function: str, expected: Callable[[Array], Array]) -> None:
    assert_allclose(slopes(client, function, POINTS), expected(POINTS), rtol=1e-12, atol=1e-15)


# Common Derivatives: Activation Functions (AI/ML)


@property_test
@given(x=st.floats(-20, 20, allow_subnormal=False))
def test_activation_sigmoid(client: nablad.Client, x: float) -> None:
    answer = client.derivative("sigmoid", x)
    assert_allclose(answer.derivatives[0], answer.value * (1 - answer.value), rtol=1e-12, atol=1e-15)
    assert_allclose(answer.derivatives[0], math.exp(-x) / (1 + math.exp(-x)) ** 2, rtol=1e-12, atol=1e-15)


@property_test
@given(x=REALS)
def test_activation_tanh(client: nablad.Client, x: float) -> None:
    answer = client.derivative("tanh", x)
    assert_allclose(answer.derivatives[0], 1 - answer.value**2, rtol=1e-10)
    assert_allclose(answer.derivatives[0], 1 / math.cosh(x) ** 2, rtol=1e-12)


def test_activation_relu_on_both_sides(client: nablad.Client) -> None:
    x = np.array([-1e3, -1.0, -1e-6, 0.0, 1e-6, 1.0, 1e3])
    assert_array_equal(slopes(client, "relu", x), [0, 0, 0, 0, 1, 1, 1])


@pytest.mark.parametrize("alpha", [0.0, 0.01, 0.25])
def test_activation_leaky_relu_on_both_sides(client: nablad.Client, alpha: float) -> None:
    """At the corner, where no derivative exists, the text chooses α and the catalogue 1: it is left out here."""
    x = np.array([-1e3, -1.0, -1e-6, 1e-6, 1.0, 1e3])
    assert_array_equal(slopes(client, "leaky_relu", x, alpha), [alpha, alpha, alpha, 1, 1, 1])
