"""The reference text's sections Computational Complexity and Numerical Stability."""

import math
from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

import nablad
from end_to_end.reference_text import numerical
from end_to_end.reference_text.numerical import Array
from end_to_end.reference_text.properties import property_test, tensors

Mode = Literal["auto", "forward", "reverse"]
MODES: tuple[Mode, ...] = ("auto", "forward", "reverse")

# Computational Complexity: Gradient Computation Complexity


@pytest.mark.parametrize(("n", "m"), [(1, 1), (3, 2), (5, 7)])
def test_complexity_table_numbers_in_a_gradient_a_hessian_and_a_jacobian(client: nablad.Client, n: int, m: int) -> None:
    """What each row of the table is the price of; the operations themselves are counted in numerics/test_theory.py."""
    x = np.linspace(1, 2, n)
    assert client.derivative("cubic", x[0]).derivatives.shape == (1,)
    assert client.gradient("sum_of_squares", x).gradient.shape == (n,)
    assert client.hessian("sum_of_squares", x).hessian.shape == (n, n)
    assert client.jacobian("matvec", np.ones((m, n)), x, wrt="x").jacobian.shape == (m, n)


# Computational Complexity: Automatic Differentiation


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("outputs", "inputs"), [(1000, 10), (10, 1000), (6, 6)])
def test_forward_and_reverse_mode_agree_on_a_jacobian(
    client: nablad.Client, outputs: int, inputs: int, mode: Mode
) -> None:
    A = np.random.default_rng(outputs).normal(size=(outputs, inputs))
    x = np.random.default_rng(inputs).normal(size=inputs)
    answer = client.jacobian("matvec", A, x, wrt="x", mode=mode)
    assert_allclose(answer.value, A @ x, rtol=1e-10, atol=1e-12)
    assert_allclose(answer.jacobian, A, rtol=1e-14)


@pytest.mark.parametrize("mode", MODES)
def test_forward_and_reverse_mode_agree_on_a_gradient_of_1000_variables(client: nablad.Client, mode: Mode) -> None:
    x = np.random.default_rng(7).normal(size=1000)
    expected = np.zeros(1000)  # of Σ 100(xᵢ₊₁ − xᵢ²)² + (1 − xᵢ)², by hand
    valley = x[1:] - x[:-1] ** 2
    expected[1:] += 200 * valley
    expected[:-1] += -400 * x[:-1] * valley - 2 * (1 - x[:-1])
    assert_allclose(client.gradient("rosenbrock", x, mode=mode).gradient, expected, rtol=1e-11, atol=1e-10)


@property_test
@given(x=tensors(4))
def test_forward_and_reverse_mode_agree_on_a_hessian(client: nablad.Client, x: Array) -> None:
    s = numerical.softmax(x)
    for mode in MODES:
        answer = client.hessian("logsumexp", x, mode=mode)
        assert_allclose(answer.gradient, s, rtol=1e-12)
        assert_allclose(answer.hessian, np.diag(s) - np.outer(s, s), rtol=1e-11, atol=1e-14)


# Numerical Stability: Vanishing Gradients


def test_vanishing_gradients_of_the_sigmoid(client: nablad.Client) -> None:
    x = np.array([-10.0, -5.0, 0.0, 5.0, 10.0])
    found = client.gradient("sigmoid", x, batched=True).gradient
    assert_array_equal(np.round(found, 3), [0, 0.007, 0.25, 0.007, 0])
    assert_allclose(found, numerical.sigmoid(x) * (1 - numerical.sigmoid(x)), rtol=1e-11)


@property_test
@given(x=st.floats(5, 1e6), sign=st.sampled_from([-1.0, 1.0]))
def test_vanishing_gradients_beyond_5(client: nablad.Client, x: float, sign: float) -> None:
    found = client.gradient("sigmoid", np.array([sign * x, 0.0]), batched=True)
    assert not found.non_finite
    assert 0 <= found.gradient[0] < 0.00665 < found.gradient[1] == 0.25


def test_vanishing_gradients_multiply_through_ten_layers(client: nablad.Client) -> None:
    value, expected = 0.5, 1.0
    for _ in range(10):
        value = 1 / (1 + math.exp(-value))
        expected *= value * (1 - value)
    found = float(client.gradient("deep_sigmoid", 0.5).gradient)
    assert_allclose(found, expected, rtol=1e-12)
    assert 0 < found < 4.0**-10


def test_vanishing_gradients_do_not_happen_to_relu(client: nablad.Client) -> None:
    assert_array_equal(client.gradient("relu", np.array([5.0, 10.0, 1e6]), batched=True).gradient, 1)


# Numerical Stability: Exploding Gradients


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_exploding_gradient_of_a_hundred_doublings(client: nablad.Client, dtype: type[np.floating]) -> None:
    """The text calls 2¹⁰⁰ ≈ 1.27·10³⁰ an overflow; float64 and float32 still hold it, and exactly."""
    answer = client.gradient("doubling_chain", dtype(1))
    assert answer.gradient == np.prod(np.full(100, 2.0)) == 2.0**100
    assert not answer.non_finite


def test_exploding_gradient_overflows_where_the_dtype_is_narrow(client: nablad.Client) -> None:
    answer = client.gradient("doubling_chain", np.float16(1))
    assert answer.gradient == math.inf
    assert answer.non_finite


@property_test
@given(x=tensors(3), max_norm=st.sampled_from([1.0, 10.0]))
def test_exploding_gradients_are_tamed_by_clipping(client: nablad.Client, x: Array, max_norm: float) -> None:
    gradient = client.gradient("sum_of_squares", x).gradient
    clipped = gradient
    if np.linalg.norm(gradient) > max_norm:
        clipped = gradient * (max_norm / np.linalg.norm(gradient))
    length = float(2 * np.linalg.norm(x))
    assert_allclose(np.linalg.norm(clipped), min(length, max_norm), rtol=1e-12, atol=1e-150)
    assert_allclose(clipped * length, gradient * min(length, max_norm), rtol=1e-12, atol=1e-150)  # same direction


# Numerical Stability: Numerical Gradient Checking

CHECKED = [
    ("sum_of_squares", [1.0, 2.0, 3.0]),  # the text's example
    ("rosenbrock", [-1.2, 1.0, 0.5]),
    ("logsumexp", [0.5, -1.0, 2.0]),
    ("beale", [1.0, 0.25]),
    ("levy", [0.5, -2.0, 3.0, 1.5]),
]
THRESHOLD = 1e-5


@pytest.mark.parametrize(("function", "x"), CHECKED)
def test_gradient_check_passes_for_served_gradients(client: nablad.Client, function: str, x: list[float]) -> None:
    error = numerical.gradient_check(
        lambda points: client.evaluate(function, points, batched=True).value,
        lambda point: client.gradient(function, point).gradient,
        np.array(x),
    )
    assert error < THRESHOLD


def test_gradient_check_passes_for_the_example_computed_without_the_server(client: nablad.Client) -> None:
    error = numerical.gradient_check(
        lambda points: np.sum(points**2, axis=1),
        lambda point: client.gradient("sum_of_squares", point).gradient,
        np.array([1.0, 2.0, 3.0]),
    )
    assert error < THRESHOLD


@pytest.mark.parametrize("wrong", [-1.0, 0.0, 0.5, 0.999])
@pytest.mark.parametrize(("function", "x"), CHECKED)
def test_gradient_check_fails_for_a_wrong_gradient(
    client: nablad.Client, function: str, x: list[float], wrong: float
) -> None:
    error = numerical.gradient_check(
        lambda points: client.evaluate(function, points, batched=True).value,
        lambda point: wrong * client.gradient(function, point).gradient,
        np.array(x),
    )
    assert error > 10 * THRESHOLD


def test_gradient_check_fails_for_the_gradient_of_another_function(client: nablad.Client) -> None:
    error = numerical.gradient_check(
        lambda points: client.evaluate("himmelblau", points, batched=True).value,
        lambda point: client.gradient("booth", point).gradient,
        np.array([1.0, 2.0]),
    )
    assert error > 10 * THRESHOLD


# Numerical Stability: Softmax Numerical Stability


def test_softmax_of_large_values_is_finite_where_the_unstable_formula_is_not(client: nablad.Client) -> None:
    x = np.array([1000.0, 1001.0, 1002.0])
    with np.errstate(over="ignore", invalid="ignore"):
        unstable = np.exp(x) / np.sum(np.exp(x))
    assert np.all(np.isnan(unstable))
    answer = client.evaluate("softmax", x)
    assert not answer.non_finite
    assert_allclose(answer.value, numerical.softmax(x), rtol=1e-14)
    assert_allclose(answer.value, np.exp([0.0, 1.0, 2.0]) / (1 + math.e + math.e**2), rtol=1e-14)


def test_softmax_of_large_values_has_a_finite_jacobian(client: nablad.Client) -> None:
    x = np.array([1000.0, 1001.0, 1002.0])
    s = numerical.softmax(x)
    for mode in MODES:
        answer = client.jacobian("softmax", x, mode=mode)
        assert not answer.non_finite
        assert_allclose(answer.jacobian, np.diag(s) - np.outer(s, s), rtol=1e-12)


@property_test
@given(x=tensors(3), shift=st.sampled_from([-1000.0, 500.0, 1000.0]))
def test_softmax_is_that_of_the_shifted_values(client: nablad.Client, x: Array, shift: float) -> None:
    assert_allclose(client.evaluate("softmax", x + shift).value, numerical.softmax(x), rtol=1e-11)


def test_softmax_inside_a_loss_is_stable_too(client: nablad.Client) -> None:
    logits, labels = np.array([[1000.0, 1001.0, 1002.0]]), np.array([0])
    answer = client.gradient("softmax_cross_entropy", logits, labels)
    s = numerical.softmax(logits[0])
    assert_allclose(answer.value, -math.log(s[0]), rtol=1e-12)
    assert_allclose(answer.gradient, [[s[0] - 1, s[1], s[2]]], rtol=1e-12)
