"""The reference text's section Advanced Topics.

Its Jacobians in Matrix Calculus have the axes of the input first (the gradient layout), while the service puts those of
the output first, as the text itself does under Jacobian and Hessian-Vector Products. Each is the other's transpose.
"""

import math
from dataclasses import dataclass
from typing import Self

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

import nablad
from end_to_end.reference_text import numerical
from end_to_end.reference_text.numerical import Array
from end_to_end.reference_text.properties import ANGLES, REALS, property_test, tensors
from nablad.errors import ResultTooLarge

# Matrix Calculus


@property_test
@given(A=tensors(2, 3), x=tensors(3), c=tensors(2))
def test_matrix_calculus_rule_1_matrix_times_vector(client: nablad.Client, A: Array, x: Array, c: Array) -> None:
    """∂(Ax)/∂x = Aᵀ in the gradient layout: the transpose of the Jacobian, and what a Vjp multiplies by."""
    jacobian = client.jacobian("matvec", A, x, wrt="x").jacobian
    assert_array_equal(jacobian, A)
    assert_array_equal(jacobian.T, A.T)
    assert_allclose(client.vjp("matvec", A, x, cotangent=c, wrt="x").vjp, A.T @ c, rtol=1e-12, atol=1e-13)


@property_test
@given(x=tensors(2), A=tensors(2, 3), c=tensors(3))
def test_matrix_calculus_rule_2_vector_times_matrix(client: nablad.Client, x: Array, A: Array, c: Array) -> None:
    """∂(xᵀA)/∂x = A in the gradient layout: the transpose of the Jacobian Aᵀ, and what a Vjp multiplies by."""
    jacobian = client.jacobian("vecmat", x, A, wrt="x").jacobian
    assert_array_equal(jacobian, A.T)
    assert_array_equal(jacobian.T, A)
    assert_allclose(client.vjp("vecmat", x, A, cotangent=c, wrt="x").vjp, A @ c, rtol=1e-12, atol=1e-13)


@property_test
@given(x=tensors(3), A=tensors(3, 3))
def test_matrix_calculus_rule_3_quadratic_form(client: nablad.Client, x: Array, A: Array) -> None:
    answer = client.hessian("quadratic_form", x, A, wrt="x")
    assert_allclose(answer.gradient, (A + A.T) @ x, rtol=1e-11, atol=1e-12)
    assert_allclose(answer.hessian, A + A.T, rtol=1e-13, atol=1e-14)


@property_test
@given(A=tensors(2, 3), B=tensors(3, 2))
def test_matrix_calculus_rule_4_trace_of_a_product(client: nablad.Client, A: Array, B: Array) -> None:
    answer = client.gradient("trace_product", A, B, wrt="A")
    assert_allclose(answer.value, np.trace(A @ B), rtol=1e-11, atol=1e-12)
    assert_array_equal(answer.gradient, B.T)


@pytest.mark.parametrize("n", [2, 3, 5])
@property_test
@given(data=st.data())
def test_matrix_calculus_rule_5_determinant(client: nablad.Client, n: int, data: st.DataObject) -> None:
    A = data.draw(tensors(n, n)) + 4 * np.eye(n)
    assume(np.linalg.cond(A) < 1e4)
    answer = client.gradient("det", A)
    assert_allclose(answer.value, np.linalg.det(A), rtol=1e-10)
    expected = np.linalg.det(A) * np.linalg.inv(A).T
    assert_allclose(answer.gradient, expected, rtol=1e-9, atol=1e-11 * np.max(np.abs(expected)))


# Matrix Calculus: Linear Layer Gradient


def linear_layer_gradients(W: Array, x: Array, b: Array, y_true: Array) -> tuple[Array, Array, Array]:
    """By W, b and x, as the text has them."""
    error = W @ x + b - y_true
    return np.outer(error, x), error, W.T @ error


@property_test
@given(W=tensors(2, 3), x=tensors(3), b=tensors(2), y_true=tensors(2))
def test_linear_layer_gradients_are_those_of_half_the_squared_error(
    client: nablad.Client, W: Array, x: Array, b: Array, y_true: Array
) -> None:
    answer = client.gradient("linear_layer_loss", W, x, b, y_true, wrt=["W", "b", "x"])
    dW, db, dx = linear_layer_gradients(W, x, b, y_true)
    assert_allclose(answer.value, 0.5 * np.sum(db**2), rtol=1e-11, atol=1e-13)
    assert_allclose(answer.gradient["W"], dW, rtol=1e-11, atol=1e-12)
    assert_allclose(answer.gradient["b"], db, rtol=1e-11, atol=1e-12)
    assert_allclose(answer.gradient["x"], dx, rtol=1e-11, atol=1e-12)


@property_test
@given(W=tensors(2, 3), x=tensors(3), y_true=tensors(2))
def test_linear_layer_gradients_of_the_whole_squared_error_are_twice_as_large(
    client: nablad.Client, W: Array, x: Array, y_true: Array
) -> None:
    """The text writes the loss ‖y − y_true‖² but the gradients of half of it: in truth ∂L/∂y = 2(y − y_true)."""
    y = client.evaluate("matvec", W, x).value
    back = client.vjp("matvec", W, x, cotangent=2 * (y - y_true)).vjp
    dW, _, dx = linear_layer_gradients(W, x, np.zeros(2), y_true)
    assert_allclose(back["A"], 2 * dW, rtol=1e-11, atol=1e-12)
    assert_allclose(back["x"], 2 * dx, rtol=1e-11, atol=1e-12)


# Jacobian and Hessian-Vector Products


def test_jacobian_example(client: nablad.Client) -> None:
    answer = client.jacobian("quadratic_product", [1.0, 2.0])
    assert_array_equal(answer.value, [3, 2])
    assert_array_equal(answer.jacobian, [[2, 1], [2, 1]])


@property_test
@given(x=tensors(2))
def test_jacobian_has_a_row_for_each_output_and_a_column_for_each_input(client: nablad.Client, x: Array) -> None:
    assert_array_equal(client.jacobian("quadratic_product", x).jacobian, [[2 * x[0], 1], [x[1], x[0]]])


def test_hessian_vector_product_example_is_the_first_column(client: nablad.Client) -> None:
    x = [1.0, 2.0, 3.0]
    product = client.hvp("sum_of_squares", x, tangent=[1.0, 0.0, 0.0]).hvp
    assert_array_equal(product, [2, 0, 0])
    assert_array_equal(product, client.hessian("sum_of_squares", x).hessian[:, 0])


@property_test
@given(x=tensors(4), v=tensors(4))
def test_hessian_vector_product_is_the_hessian_times_the_vector(client: nablad.Client, x: Array, v: Array) -> None:
    """Of the log of the sum of exponentials, whose Hessian is diag(s) − ssᵀ."""
    s = numerical.softmax(x)
    product = client.hvp("logsumexp", x, tangent=v).hvp
    assert_allclose(product, s * v - s * (s @ v), rtol=1e-11, atol=1e-13)
    assert_allclose(product, client.hessian("logsumexp", x).hessian @ v, rtol=1e-11, atol=1e-13)


def test_hessian_vector_product_is_served_where_the_hessian_would_be_too_large(client: nablad.Client) -> None:
    """The text's reason for it: n numbers instead of n², here 0.8 MB instead of 80 GB."""
    x, v = np.linspace(-1, 1, 100_000), np.linspace(0, 3, 100_000)
    assert_array_equal(client.hvp("sum_of_squares", x, tangent=v).hvp, 2 * v)
    with pytest.raises(ResultTooLarge):
        client.hessian("sum_of_squares", x)


# Automatic Differentiation Theory: Forward Mode AD


@dataclass(frozen=True)
class Dual:
    """A value and its derivative: v + dε with ε² = 0."""

    v: float
    d: float = 0.0

    def __add__(self, other: Self) -> "Dual":
        return Dual(self.v + other.v, self.d + other.d)

    def __mul__(self, other: Self) -> "Dual":
        return Dual(self.v * other.v, self.d * other.v + self.v * other.d)


def test_dual_numbers_example(client: nablad.Client) -> None:
    x = Dual(3.0, 1.0)
    assert x * x == Dual(9.0, 6.0)
    answer = client.jvp("integer_power", 3.0, 2, tangent=1.0)
    assert (answer.value, answer.jvp) == (9, 6)


@property_test
@given(x=REALS, y=REALS, along_x=REALS, along_y=REALS)
def test_dual_numbers_are_what_a_jvp_carries_along(
    client: nablad.Client, x: float, y: float, along_x: float, along_y: float
) -> None:
    a, b = Dual(x, along_x), Dual(y, along_y)
    by_hand = a * a * b + Dual(3.0) * a * b * b
    answer = client.jvp("x2y_3xy2", x, y, tangent={"x": along_x, "y": along_y})
    assert_allclose((answer.value, answer.jvp), (by_hand.v, by_hand.d), rtol=1e-11, atol=1e-12)


# Automatic Differentiation Theory: Reverse Mode AD (Backpropagation)


@property_test
@given(x=REALS, y=REALS, cotangent=REALS)
def test_reverse_mode_by_hand_gives_all_inputs_in_one_vjp(
    client: nablad.Client, x: float, y: float, cotangent: float
) -> None:
    """Of x²y + 3xy² = xy · (x + 3y): intermediate results forward, the chain rule backward."""
    product, factor = x * y, x + 3 * y
    value = product * factor
    to_product, to_factor = cotangent * factor, cotangent * product
    to_x, to_y = to_product * y + to_factor, to_product * x + 3 * to_factor

    answer = client.vjp("x2y_3xy2", x, y, cotangent=cotangent)
    assert_allclose(answer.value, value, rtol=1e-11, atol=1e-12)
    assert_allclose(answer.vjp["x"], to_x, rtol=1e-11, atol=1e-12)
    assert_allclose(answer.vjp["y"], to_y, rtol=1e-11, atol=1e-12)


@property_test
@given(r=st.floats(0.5, 3), theta=ANGLES, v=tensors(2), c=tensors(2))
def test_reverse_and_forward_mode_are_transposes(
    client: nablad.Client, r: float, theta: float, v: Array, c: Array
) -> None:
    """Whatever the vectors, cᵀ(Jv) = (cᵀJ)v; J is [[cos θ, −r sin θ], [sin θ, r cos θ]]."""
    J = np.array([[math.cos(theta), -r * math.sin(theta)], [math.sin(theta), r * math.cos(theta)]])
    forward = client.jvp("polar_to_cartesian", r, theta, tangent={"r": v[0], "theta": v[1]}).jvp
    reverse = client.vjp("polar_to_cartesian", r, theta, cotangent={"x": c[0], "y": c[1]}).vjp
    assert_allclose([forward["x"], forward["y"]], J @ v, rtol=1e-11, atol=1e-12)
    assert_allclose([reverse["r"], reverse["theta"]], c @ J, rtol=1e-11, atol=1e-12)
    assert_allclose(
        c[0] * forward["x"] + c[1] * forward["y"], reverse["r"] * v[0] + reverse["theta"] * v[1], atol=1e-11
    )
