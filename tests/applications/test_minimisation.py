"""The examples gradient_descent and newton: they arrive, as fast as the theory says."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

import gradient_descent
import nablad
import newton
from gradient_descent import descend

MU, L = 2.0, 18.0
"""The eigenvalues of the Hessian of Booth's function, [[10, 8], [8, 10]]."""


def test_gradient_descent_on_a_quadratic_is_the_matrix_power(client: nablad.Client) -> None:
    """xₖ − x* = (I − step · H)ᵏ (x₀ − x*): at the best step 2/(L + μ), shorter by (κ − 1)/(κ + 1) = 0.8 each time."""
    step, minimum = 2 / (L + MU), np.array(gradient_descent.MINIMUM)
    path = descend(client, "booth", gradient_descent.START, step, steps=80)

    far = np.array(gradient_descent.START) - minimum
    expected = [np.linalg.matrix_power(np.eye(2) - step * np.array([[10, 8], [8, 10]]), k) @ far for k in range(81)]

    assert_allclose(path - minimum, expected, atol=1e-12)
    assert_allclose(np.linalg.norm(path - minimum, axis=1), np.linalg.norm(far) * 0.8 ** np.arange(81), atol=1e-12)


def test_momentum_takes_the_square_root_of_the_condition(client: nablad.Client) -> None:
    """Polyak's best step and momentum: (√κ − 1)/(√κ + 1) = 0.5 each time, but for a factor that grows like k."""
    step, momentum = 4 / (np.sqrt(L) + np.sqrt(MU)) ** 2, 0.25
    assert_allclose(step, 0.125)
    path = descend(client, "booth", gradient_descent.START, step, momentum=momentum, steps=40)
    far = np.linalg.norm(path - gradient_descent.MINIMUM, axis=1)

    k = np.arange(41)
    assert np.all(far <= far[0] * 0.5**k * (1 + 3 * k) + 1e-14)
    plain = descend(client, "booth", gradient_descent.START, 0.1, steps=40)[-1]
    assert far[-1] < 1e-6 * np.linalg.norm(plain - gradient_descent.MINIMUM)


def test_gradient_descent_diverges_beyond_2_over_l(client: nablad.Client) -> None:
    path = descend(client, "booth", gradient_descent.START, 1.05 * 2 / L, steps=40)
    far = np.linalg.norm(path - gradient_descent.MINIMUM, axis=1)
    assert far[-1] > far[10]


def test_newton_arrives_and_squares_its_error(client: nablad.Client) -> None:
    path = newton.newton(client, "rosenbrock", newton.START)
    far = np.linalg.norm(path - newton.MINIMUM, axis=1)

    assert_allclose(path[-1], newton.MINIMUM, rtol=1e-12)
    assert len(path) <= 9
    near = far[(far < 0.1) & (far > 1e-8)]
    assert near.size >= 2
    assert np.all(near[1:] <= 10 * near[:-1] ** 2)


def test_newton_on_a_quadratic_takes_one_step(client: nablad.Client) -> None:
    path = newton.newton(client, "booth", (8.0, -9.0))
    assert_allclose(path[1], [1, 3], rtol=1e-13)
    assert len(path) == 2


@pytest.mark.parametrize("most", [0, 2])
def test_newton_stops_where_it_is_told(client: nablad.Client, most: int) -> None:
    assert len(newton.newton(client, "rosenbrock", newton.START, most=most)) == most + 1
