"""The reference text's sections Partial Derivatives, Gradient, Directional Derivative and Higher-Order Derivatives."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

import nablad
from end_to_end.reference_text.numerical import Array
from end_to_end.reference_text.properties import ANGLES, REALS, property_test, tensors

PAIRS = tensors(2)
NOT_SHORT = PAIRS.filter(lambda x: np.linalg.norm(x) > 0.1)


def himmelblau_gradient(x: Array) -> Array:
    """By hand."""
    first, second = x[0] ** 2 + x[1] - 11, x[0] + x[1] ** 2 - 7
    return np.array([4 * x[0] * first + 2 * second, 2 * first + 4 * x[1] * second])


def compass() -> Array:
    """Unit vectors in 360 directions of the plane."""
    angles = np.radians(np.arange(360))
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


# Partial Derivatives


@pytest.mark.parametrize(("x", "y"), [(1.0, 2.0), (0.0, 0.0), (-1.5, 0.5), (2.0, -3.0), (10.0, 0.25)])
def test_partial_derivatives_of_the_example(client: nablad.Client, x: float, y: float) -> None:
    answer = client.gradient("x2y_3xy2", x, y)
    assert_allclose(answer.value, x**2 * y + 3 * x * y**2, rtol=1e-14)
    assert_allclose(answer.gradient["x"], 2 * x * y + 3 * y**2, rtol=1e-14)
    assert_allclose(answer.gradient["y"], x**2 + 6 * x * y, rtol=1e-14)
    for name in ("x", "y"):  # each alone, the other variable held
        assert_array_equal(client.gradient("x2y_3xy2", x, y, wrt=name).gradient, answer.gradient[name])


@property_test
@given(x=REALS, y=REALS)
def test_partial_derivatives_are_limits_with_the_other_variable_held(client: nablad.Client, x: float, y: float) -> None:
    """The polynomial is quadratic in each variable, so that its quotient is off by half its second derivative times h.

    That is yh in x, and 3xh in y.
    """
    h = 2.0 ** -np.arange(2, 12)
    here = client.gradient("x2y_3xy2", x, y)
    in_x = (client.evaluate("x2y_3xy2", x + h, y, batched="x").value - here.value) / h
    in_y = (client.evaluate("x2y_3xy2", x, y + h, batched="y").value - here.value) / h
    assert_allclose(in_x - here.gradient["x"], y * h, atol=1e-9)
    assert_allclose(in_y - here.gradient["y"], 3 * x * h, atol=1e-9)


# Gradient


def test_gradient_example_at_1_1(client: nablad.Client) -> None:
    assert_array_equal(client.gradient("sum_of_squares", [1.0, 1.0]).gradient, [2, 2])


@property_test
@given(x=tensors(4))
def test_gradient_is_the_vector_of_all_partial_derivatives(client: nablad.Client, x: Array) -> None:
    gradient = client.gradient("sum_of_squares", x).gradient
    partials = [client.jvp("sum_of_squares", x, tangent=axis).jvp for axis in np.eye(4)]
    assert_array_equal(gradient, partials)
    assert_array_equal(gradient, 2 * x)


@property_test
@given(x=NOT_SHORT, stride=st.floats(0.01, 2))
def test_gradient_points_in_the_direction_of_steepest_ascent(client: nablad.Client, x: Array, stride: float) -> None:
    """On a paraboloid no step of the same length, however long, climbs higher."""
    gradient = client.gradient("sum_of_squares", x).gradient
    steepest = client.evaluate("sum_of_squares", x + stride * gradient / np.linalg.norm(gradient)).value
    others = client.evaluate("sum_of_squares", x + stride * compass(), batched=True).value
    assert np.all(others <= steepest * (1 + 1e-14))
    assert np.max(others) > steepest * (1 - 1e-3)  # the compass comes within half a degree of it


@property_test
@given(angle=ANGLES, radius=st.floats(0.1, 5))
def test_gradient_is_perpendicular_to_the_level_circle(client: nablad.Client, angle: float, radius: float) -> None:
    outward = np.array([math.cos(angle), math.sin(angle)])
    along = np.array([-outward[1], outward[0]])
    gradient = client.gradient("sum_of_squares", radius * outward).gradient
    assert_allclose(gradient @ along, 0, atol=1e-13)
    assert_allclose(gradient @ outward, 2 * radius, rtol=1e-13)


@property_test
@given(angle=ANGLES)
def test_gradient_is_perpendicular_to_the_level_ellipse_though_not_along_the_radius(
    client: nablad.Client, angle: float
) -> None:
    """Of x₀² + 4x₁² = 4, where x = (2 cos t, sin t)."""
    x, along = np.array([2 * math.cos(angle), math.sin(angle)]), np.array([-2 * math.sin(angle), math.cos(angle)])
    gradient = client.gradient("quadratic_form", x, np.diag([1.0, 4.0]), wrt="x").gradient
    assert_allclose(gradient @ along, 0, atol=1e-13)
    assert_allclose(gradient, [2 * x[0], 8 * x[1]], rtol=1e-13)


@property_test
@given(x=NOT_SHORT)
def test_gradient_magnitude_is_the_rate_of_steepest_increase(client: nablad.Client, x: Array) -> None:
    gradient = client.gradient("sum_of_squares", x).gradient
    h = 1e-6
    up, down = (x + sign * h * gradient / np.linalg.norm(gradient) for sign in (1, -1))
    rise = client.evaluate("sum_of_squares", up).value - client.evaluate("sum_of_squares", down).value
    assert_allclose(rise / (2 * h), np.linalg.norm(gradient), rtol=1e-6)


# Directional Derivative


@property_test
@given(x=PAIRS, direction=NOT_SHORT)
def test_directional_derivative_is_the_gradient_times_the_unit_direction(
    client: nablad.Client, x: Array, direction: Array
) -> None:
    answer = client.directional_derivative("himmelblau", x, direction=direction)
    unit = direction / np.linalg.norm(direction)
    assert_allclose(answer.derivative, himmelblau_gradient(x) @ unit, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("scale", [0.5, 5.0, -2.0])
def test_directional_derivative_takes_the_unit_vector_of_any_direction(client: nablad.Client, scale: float) -> None:
    """At (1, 1) the gradient is [2, 2], and along [0.6, 0.8] the sum of squares grows at 2.8."""
    answer = client.directional_derivative("sum_of_squares", [1.0, 1.0], direction=scale * np.array([0.6, 0.8]))
    assert_allclose(answer.derivative, math.copysign(2.8, scale), rtol=1e-14)


@property_test
@given(x=PAIRS)
def test_directional_derivative_is_at_most_the_length_of_the_gradient(client: nablad.Client, x: Array) -> None:
    rates = client.directional_derivative("himmelblau", x, direction=compass(), direction_batched=True)
    length = np.linalg.norm(himmelblau_gradient(x))
    assert_allclose(rates.max_rate, length, rtol=1e-11)
    assert np.all(np.abs(rates.derivative) <= length * (1 + 1e-12))
    assert np.max(rates.derivative) >= length * math.cos(math.radians(0.5)) * (1 - 1e-12)


@property_test
@given(x=PAIRS)
def test_directional_derivative_is_largest_along_the_gradient(client: nablad.Client, x: Array) -> None:
    gradient = himmelblau_gradient(x)
    length = np.linalg.norm(gradient)
    along = client.directional_derivative("himmelblau", x, direction=gradient)
    assert_allclose(along.steepest_ascent, gradient / length, rtol=1e-10, atol=1e-12)
    assert_allclose(along.derivative, length, rtol=1e-11)
    against = client.directional_derivative("himmelblau", x, direction=-along.steepest_ascent)
    assert_allclose(against.derivative, -length, rtol=1e-11)


# Higher-Order Derivatives: Second Derivative


@pytest.mark.parametrize(("x", "second"), [(-2.0, -12.0), (0.0, 0.0), (0.5, 3.0)])
def test_second_derivative_is_the_derivative_of_the_derivative(client: nablad.Client, x: float, second: float) -> None:
    found = client.derivative("cubic", x, order=2).derivatives
    assert_allclose(found, [3 * x**2 - 2, second], rtol=1e-13)
    assert_array_equal(client.hessian("cubic", x).hessian, second)
    h = 2.0**-10
    slopes = client.derivative("cubic", np.array([x - h, x + h]), batched=True).derivatives[:, 0]
    assert_allclose((slopes[1] - slopes[0]) / (2 * h), second, atol=1e-11)  # without error, for a quadratic slope


@pytest.mark.parametrize(
    ("function", "low", "high", "sign"),
    [
        ("exp", -3.0, 3.0, 1),
        ("softplus", -3.0, 3.0, 1),
        ("cubic", 0.1, 3.0, 1),
        ("cubic", -3.0, -0.1, -1),
        ("ln", 0.2, 5.0, -1),
        ("sin", 0.1, 3.0, -1),
    ],
)
def test_second_derivative_positive_curves_up_and_negative_down(
    client: nablad.Client, function: str, low: float, high: float, sign: int
) -> None:
    x = np.linspace(low, high, 31)
    answer = client.derivative(function, x, order=2, batched=True)
    assert np.all(sign * answer.derivatives[:, 1] > 0)
    chords = (answer.value[:-2] + answer.value[2:]) / 2
    assert np.all(sign * (chords - answer.value[1:-1]) > 0)  # a convex curve lies below its chords


# Higher-Order Derivatives: Hessian Matrix


@property_test
@given(x=REALS, y=REALS)
def test_hessian_entries_are_the_second_partial_derivatives(client: nablad.Client, x: float, y: float) -> None:
    found = client.hessian("x2y_3xy2", x, y).hessian
    expected = {"x": {"x": 2 * y, "y": 2 * x + 6 * y}, "y": {"x": 2 * x + 6 * y, "y": 6 * x}}
    for row, columns in expected.items():
        for column, entry in columns.items():
            assert_allclose(found[row][column], entry, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("function", ["rosenbrock", "styblinski_tang", "griewank", "dixon_price"])
@property_test
@given(x=tensors(4))
def test_hessian_is_symmetric(client: nablad.Client, function: str, x: Array) -> None:
    hessian = client.hessian(function, x).hessian
    assert hessian.shape == (4, 4)
    assert_allclose(hessian, hessian.T, rtol=1e-12, atol=1e-12)


@property_test
@given(x=PAIRS)
def test_hessian_describes_local_curvature(client: nablad.Client, x: Array) -> None:
    """Along a short step, f grows by the slope and half the curvature, up to the third order."""
    answer = client.hessian("himmelblau", x)
    steps = 1e-3 * compass()
    taylor = answer.value + steps @ answer.gradient + 0.5 * np.einsum("ki,ij,kj->k", steps, answer.hessian, steps)
    assert_allclose(client.evaluate("himmelblau", x + steps, batched=True).value, taylor, atol=1e-6, rtol=0)


@property_test
@given(x=PAIRS)
def test_hessian_newtons_method_finds_the_minimum_of_a_quadratic_in_one_step(client: nablad.Client, x: Array) -> None:
    answer = client.hessian("booth", x)
    assert_allclose(answer.hessian, [[10, 8], [8, 10]], rtol=1e-14)
    assert_allclose(x - np.linalg.solve(answer.hessian, answer.gradient), [1, 3], rtol=1e-12)


def test_hessian_newtons_method_finds_the_minimum_of_the_rosenbrock_valley(client: nablad.Client) -> None:
    x = np.array([-1.2, 1.0])
    for _ in range(8):
        answer = client.hessian("rosenbrock", x)
        x = x - np.linalg.solve(answer.hessian, answer.gradient)
    assert_allclose(x, [1, 1], rtol=1e-12)
