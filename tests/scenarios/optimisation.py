"""Classical test functions of optimisation."""

import math

import numpy as np

from .scenario import Array, Scenario, of_vector

_TAU = 2 * math.pi


def _rosenbrock_gradient(x: Array) -> Array:
    valley = x[1:] - x[:-1] ** 2
    gradient = np.zeros_like(x)
    gradient[:-1] = -400 * x[:-1] * valley - 2 * (1 - x[:-1])
    gradient[1:] += 200 * valley
    return gradient


def _rosenbrock_hessian(x: Array) -> Array:
    diagonal = np.zeros_like(x)
    diagonal[:-1] = 1200 * x[:-1] ** 2 - 400 * x[1:] + 2
    diagonal[1:] += 200
    beside = -400 * x[:-1]
    return np.asarray(np.diag(diagonal) + np.diag(beside, 1) + np.diag(beside, -1))


def _himmelblau_gradient(x: Array) -> Array:
    first, second = x[0] ** 2 + x[1] - 11, x[0] + x[1] ** 2 - 7
    return np.array([4 * x[0] * first + 2 * second, 2 * first + 4 * x[1] * second])


def _himmelblau_hessian(x: Array) -> Array:
    mixed = 4 * (x[0] + x[1])
    return np.array([[12 * x[0] ** 2 + 4 * x[1] - 42, mixed], [mixed, 12 * x[1] ** 2 + 4 * x[0] - 26]])


_BEALE = np.array([1.5, 2.25, 2.625])
_POWERS = np.array([1, 2, 3])


def _beale_terms(x: Array) -> Array:
    return np.asarray(_BEALE - x[0] + x[0] * x[1] ** _POWERS)


def _beale_gradient(x: Array) -> Array:
    terms = _beale_terms(x)
    by_second = x[0] * _POWERS * x[1] ** (_POWERS - 1)
    return np.array([2 * np.sum(terms * (x[1] ** _POWERS - 1)), 2 * np.sum(terms * by_second)])


def _booth_gradient(x: Array) -> Array:
    first, second = x[0] + 2 * x[1] - 7, 2 * x[0] + x[1] - 5
    return np.array([2 * first + 4 * second, 4 * first + 2 * second])


def _ackley(x: Array) -> float:
    radius = math.sqrt(np.mean(x**2))
    return -20 * math.exp(-radius / 5) - math.exp(np.mean(np.cos(_TAU * x))) + 20 + math.e


def _ackley_gradient(x: Array) -> Array:
    radius = np.sqrt(np.mean(x**2))
    waves = np.exp(np.mean(np.cos(_TAU * x))) * _TAU * np.sin(_TAU * x)
    return np.asarray((4 * np.exp(-radius / 5) * x / radius + waves) / x.size)


def _roots(x: Array) -> Array:
    return np.sqrt(np.arange(1, x.size + 1))


def _griewank(x: Array) -> float:
    return float(1 + np.sum(x**2) / 4000 - np.prod(np.cos(x / _roots(x))))


def _griewank_gradient(x: Array) -> Array:
    roots = _roots(x)
    return np.asarray(x / 2000 + np.prod(np.cos(x / roots)) * np.tan(x / roots) / roots)


def _levy(x: Array) -> float:
    w = 1 + (x - 1) / 4
    inner = (w[:-1] - 1) ** 2 * (1 + 10 * np.sin(math.pi * w[:-1] + 1) ** 2)
    last = (w[-1] - 1) ** 2 * (1 + np.sin(_TAU * w[-1]) ** 2)
    return float(np.sin(math.pi * w[0]) ** 2 + np.sum(inner) + last)


def _levy_gradient(x: Array) -> Array:
    w = 1 + (x - 1) / 4
    by_w = np.zeros_like(w)
    angle = math.pi * w[:-1] + 1
    by_w[:-1] = 2 * (w[:-1] - 1) * (1 + 10 * np.sin(angle) ** 2)
    by_w[:-1] += (w[:-1] - 1) ** 2 * 10 * math.pi * np.sin(2 * angle)
    by_w[0] += math.pi * np.sin(_TAU * w[0])
    by_w[-1] = 2 * (w[-1] - 1) * (1 + np.sin(_TAU * w[-1]) ** 2)
    by_w[-1] += (w[-1] - 1) ** 2 * _TAU * np.sin(2 * _TAU * w[-1])
    return np.asarray(by_w / 4)


def _goldstein_factors(x: Array) -> tuple[Array, Array, Array, Array]:
    """The two factors and their gradients."""
    a, b = x
    sum_, difference = a + b + 1, 2 * a - 3 * b
    p = 19 - 14 * a + 3 * a**2 - 14 * b + 6 * a * b + 3 * b**2
    q = 18 - 32 * a + 12 * a**2 + 48 * b - 36 * a * b + 27 * b**2
    p_slope = np.array([-14 + 6 * a + 6 * b, -14 + 6 * a + 6 * b])
    q_slope = np.array([-32 + 24 * a - 36 * b, 48 - 36 * a + 54 * b])
    first = 1 + sum_**2 * p
    second = 30 + difference**2 * q
    first_slope = 2 * sum_ * p * np.array([1, 1]) + sum_**2 * p_slope
    second_slope = 2 * difference * q * np.array([2, -3]) + difference**2 * q_slope
    return first, second, first_slope, second_slope


def _goldstein_price(x: Array) -> Array:
    first, second, _, _ = _goldstein_factors(x)
    return first * second


def _goldstein_price_gradient(x: Array) -> Array:
    first, second, first_slope, second_slope = _goldstein_factors(x)
    return np.asarray(first_slope * second + first * second_slope)


def _six_hump_camel(x: Array) -> float:
    return float(4 * x[0] ** 2 - 2.1 * x[0] ** 4 + x[0] ** 6 / 3 + x[0] * x[1] - 4 * x[1] ** 2 + 4 * x[1] ** 4)


def _easom(x: Array) -> Array:
    return np.asarray(-np.prod(np.cos(x)) * np.exp(-np.sum((x - math.pi) ** 2)))


def _easom_gradient(x: Array) -> Array:
    # The logarithmic derivative of each factor −cos x exp(−(x − π)²).
    return np.asarray(_easom(x) * (-np.tan(x) - 2 * (x - math.pi)))


def _mccormick_gradient(x: Array) -> Array:
    wave, slope = np.cos(x[0] + x[1]), 2 * (x[0] - x[1])
    return np.array([wave + slope - 1.5, wave - slope + 2.5])


def _mccormick_hessian(x: Array) -> Array:
    wave = -math.sin(x[0] + x[1])
    return np.array([[wave + 2, wave - 2], [wave - 2, wave + 2]])


def _halves(x: Array) -> Array:
    return np.arange(1, x.size + 1) / 2


def _zakharov(x: Array) -> float:
    s = _halves(x) @ x
    return float(x @ x + s**2 + s**4)


def _zakharov_gradient(x: Array) -> Array:
    s = _halves(x) @ x
    return np.asarray(2 * x + (2 * s + 4 * s**3) * _halves(x))


def _zakharov_hessian(x: Array) -> Array:
    s = _halves(x) @ x
    return np.asarray(2 * np.eye(x.size) + (2 + 12 * s**2) * np.outer(_halves(x), _halves(x)))


def _dixon_price(x: Array) -> float:
    index = np.arange(2, x.size + 1)
    return float((x[0] - 1) ** 2 + np.sum(index * (2 * x[1:] ** 2 - x[:-1]) ** 2))


def _dixon_price_gradient(x: Array) -> Array:
    weighted = np.arange(2, x.size + 1) * (2 * x[1:] ** 2 - x[:-1])
    gradient = np.zeros_like(x)
    gradient[0] = 2 * (x[0] - 1)
    gradient[:-1] -= 2 * weighted
    gradient[1:] += 8 * x[1:] * weighted
    return gradient


def _dixon_price_hessian(x: Array) -> Array:
    index = np.arange(2, x.size + 1)
    diagonal = np.zeros_like(x)
    diagonal[0] = 2
    diagonal[:-1] += 2 * index
    diagonal[1:] += index * (48 * x[1:] ** 2 - 8 * x[:-1])
    beside = -8 * index * x[1:]
    return np.asarray(np.diag(diagonal) + np.diag(beside, 1) + np.diag(beside, -1))


SCENARIOS: tuple[Scenario, ...] = (
    of_vector(
        "rosenbrock",
        [[-1.25, 1.0, 0.5, 2.0], [0.5, -0.75, 1.5, 1.0], [1.0, 1.5, -0.25, 0.75]],
        value=lambda x: np.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2),
        gradient=_rosenbrock_gradient,
        hessian=_rosenbrock_hessian,
    ),
    of_vector(
        "himmelblau",
        [[1.0, 0.5], [-2.0, 1.5], [4.0, -1.0]],
        value=lambda x: (x[0] ** 2 + x[1] - 11) ** 2 + (x[0] + x[1] ** 2 - 7) ** 2,
        gradient=_himmelblau_gradient,
        hessian=_himmelblau_hessian,
    ),
    of_vector(
        "beale",
        [[1.0, 0.25], [2.0, -0.5], [-1.5, 1.25]],
        value=lambda x: np.sum(_beale_terms(x) ** 2),
        gradient=_beale_gradient,
    ),
    of_vector(
        "booth",
        [[0.5, 1.0], [-2.0, 3.5], [4.0, -1.25]],
        value=lambda x: (x[0] + 2 * x[1] - 7) ** 2 + (2 * x[0] + x[1] - 5) ** 2,
        gradient=_booth_gradient,
        hessian=lambda _: [[10.0, 8.0], [8.0, 10.0]],
    ),
    of_vector(
        "matyas",
        [[1.0, -0.5], [2.5, 0.75], [-3.0, 1.25]],
        value=lambda x: 0.26 * (x @ x) - 0.48 * x[0] * x[1],
        gradient=lambda x: 0.52 * x - 0.48 * x[::-1],
        hessian=lambda _: [[0.52, -0.48], [-0.48, 0.52]],
    ),
    of_vector(
        "rastrigin",
        [[0.375, -0.875, 1.125], [1.625, 0.125, -0.375], [0.875, 1.375, 0.625]],
        value=lambda x: 10 * x.size + np.sum(x**2 - 10 * np.cos(_TAU * x)),
        gradient=lambda x: 2 * x + 10 * _TAU * np.sin(_TAU * x),
        hessian=lambda x: np.diag(2 + 10 * _TAU**2 * np.cos(_TAU * x)),
    ),
    of_vector(
        "ackley",
        [[0.375, -0.875, 1.125], [1.625, 0.125, -0.375], [0.875, 1.375, 0.625]],
        value=_ackley,
        gradient=_ackley_gradient,
    ),
    of_vector(
        "styblinski_tang",
        [[1.0, -2.5, 0.5], [2.0, 0.25, -1.5], [-3.0, 1.25, 0.75]],
        value=lambda x: np.sum(x**4 - 16 * x**2 + 5 * x) / 2,
        gradient=lambda x: 2 * x**3 - 16 * x + 2.5,
        hessian=lambda x: np.diag(6 * x**2 - 16),
    ),
    of_vector(
        "griewank",
        [[1.0, -2.5, 0.5], [2.0, 1.25, -1.5], [-0.75, 1.0, 3.0]],
        value=_griewank,
        gradient=_griewank_gradient,
    ),
    of_vector(
        "levy",
        [[0.5, -1.0, 2.0], [1.5, 3.0, -0.5], [-2.0, 0.25, 1.75]],
        value=_levy,
        gradient=_levy_gradient,
    ),
    # Near its minimum: farther away the values leave float16.
    of_vector(
        "goldstein_price",
        [[0.25, -0.75], [-0.25, -1.0], [0.125, -1.25]],
        value=_goldstein_price,
        gradient=_goldstein_price_gradient,
    ),
    of_vector(
        "three_hump_camel",
        [[1.0, -0.5], [-1.5, 0.75], [0.5, 2.0]],
        value=lambda x: 2 * x[0] ** 2 - 1.05 * x[0] ** 4 + x[0] ** 6 / 6 + x[0] * x[1] + x[1] ** 2,
        gradient=lambda x: np.array([4 * x[0] - 4.2 * x[0] ** 3 + x[0] ** 5 + x[1], x[0] + 2 * x[1]]),
        hessian=lambda x: [[4 - 12.6 * x[0] ** 2 + 5 * x[0] ** 4, 1.0], [1.0, 2.0]],
    ),
    of_vector(
        "six_hump_camel",
        [[1.0, -0.5], [-1.25, 0.375], [0.5, 1.25]],
        value=_six_hump_camel,
        gradient=lambda x: np.array(
            [8 * x[0] - 8.4 * x[0] ** 3 + 2 * x[0] ** 5 + x[1], x[0] - 8 * x[1] + 16 * x[1] ** 3]
        ),
        hessian=lambda x: [[8 - 25.2 * x[0] ** 2 + 10 * x[0] ** 4, 1.0], [1.0, -8 + 48 * x[1] ** 2]],
    ),
    of_vector("easom", [[2.5, 3.5], [3.75, 2.75], [2.25, 4.0]], value=_easom, gradient=_easom_gradient),
    of_vector(
        "mccormick",
        [[0.5, -1.0], [-0.75, 1.5], [2.0, 0.25]],
        value=lambda x: np.sin(x[0] + x[1]) + (x[0] - x[1]) ** 2 - 1.5 * x[0] + 2.5 * x[1] + 1,
        gradient=_mccormick_gradient,
        hessian=_mccormick_hessian,
    ),
    of_vector(
        "zakharov",
        [[1.0, -0.5, 0.75], [-1.5, 0.25, 1.0], [0.5, 1.25, -2.0]],
        value=_zakharov,
        gradient=_zakharov_gradient,
        hessian=_zakharov_hessian,
    ),
    of_vector(
        "dixon_price",
        [[1.0, -0.5, 0.75], [-1.5, 0.25, 1.0], [0.5, 1.25, -2.0]],
        value=_dixon_price,
        gradient=_dixon_price_gradient,
        hessian=_dixon_price_hessian,
    ),
)
