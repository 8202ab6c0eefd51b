"""Small functions of several variables."""

import math

import numpy as np

from .elementary import cosine, monomial, sine
from .scenario import Array, Blocks, Scenario, Values, arrays, blocks, of_scalar_value, of_vector, point


def polynomial(coefficients: Array, x: float, n: int) -> float:
    """The n-th derivative of the polynomial with the given coefficients, the highest power first."""
    return math.fsum(c * monomial(x, degree, n) for degree, c in enumerate(coefficients[::-1]))


def _polynomial_jacobian(v: Values) -> Blocks:
    coefficients, x = v["coefficients"], float(v["x"])
    degrees = range(coefficients.size - 1, -1, -1)
    return blocks(
        {
            ("polynomial", "coefficients"): [monomial(x, degree, 0) for degree in degrees],
            ("polynomial", "x"): polynomial(coefficients, x, 1),
            ("slope", "coefficients"): [monomial(x, degree, 1) for degree in degrees],
            ("slope", "x"): polynomial(coefficients, x, 2),
        }
    )


def _polar_jacobian(v: Values) -> Blocks:
    r, theta = float(v["r"]), float(v["theta"])
    return blocks(
        {
            ("x", "r"): cosine(theta, 0),
            ("x", "theta"): r * cosine(theta, 1),
            ("y", "r"): sine(theta, 0),
            ("y", "theta"): r * sine(theta, 1),
        }
    )


SCENARIOS: tuple[Scenario, ...] = (
    of_scalar_value(
        "x2y_3xy2",
        [point(x=2.0, y=3.0), point(x=-1.5, y=0.5), point(x=0.25, y=-2.0)],
        value=lambda v: v["x"] ** 2 * v["y"] + 3 * v["x"] * v["y"] ** 2,
        gradient=lambda v: {"x": 2 * v["x"] * v["y"] + 3 * v["y"] ** 2, "y": v["x"] ** 2 + 6 * v["x"] * v["y"]},
        hessian=lambda v: {
            ("x", "x"): 2 * v["y"],
            ("x", "y"): 2 * v["x"] + 6 * v["y"],
            ("y", "y"): 6 * v["x"],
        },
    ),
    of_vector(
        "sum_of_squares",
        [[1.0, 1.0, 2.0], [-0.5, 3.0, 0.25], [1.75, -2.5, 0.0]],
        value=lambda x: np.sum(x**2),
        gradient=lambda x: 2 * x,
        hessian=lambda x: 2 * np.eye(x.size),
    ),
    of_scalar_value(
        "masked_sum_of_squares",
        [
            point(x=[1.0, -2.0, 0.5, 3.0], mask=[True, False, True, True]),
            point(x=[0.25, 1.5, -1.0, 2.0], mask=[False, True, False, False]),
            point(x=[2.0, 0.75, 1.0, -0.5], mask=[True, True, True, True]),
        ],
        value=lambda v: np.sum(v["x"][v["mask"]] ** 2),
        gradient=lambda v: {"x": 2 * v["x"] * v["mask"]},
        hessian=lambda v: {("x", "x"): 2.0 * np.diag(v["mask"])},
    ),
    Scenario(
        "quadratic_product",
        (point(x=[1.0, 2.0]), point(x=[-0.5, 3.0]), point(x=[2.5, -1.25])),
        value=lambda v: arrays({"value": [v["x"][0] ** 2 + v["x"][1], v["x"][0] * v["x"][1]]}),
        jacobian=lambda v: blocks({("value", "x"): [[2 * v["x"][0], 1.0], [v["x"][1], v["x"][0]]]}),
    ),
    Scenario(
        "polar_to_cartesian",
        (point(r=2.0, theta=0.5), point(r=0.75, theta=-1.25), point(r=1.5, theta=2.5)),
        value=lambda v: arrays({"x": v["r"] * np.cos(v["theta"]), "y": v["r"] * np.sin(v["theta"])}),
        jacobian=_polar_jacobian,
    ),
    Scenario(
        "polynomial_and_slope",
        (
            point(coefficients=[1.0, -2.0, 0.5, 3.0], x=1.5),
            point(coefficients=[0.25, 1.0, -1.5, 0.5], x=-0.75),
            point(coefficients=[-0.5, 0.75, 2.0, -1.0], x=2.0),
        ),
        value=lambda v: arrays(
            {
                "polynomial": polynomial(v["coefficients"], float(v["x"]), 0),
                "slope": polynomial(v["coefficients"], float(v["x"]), 1),
            }
        ),
        jacobian=_polynomial_jacobian,
        derivative=lambda v, n: arrays(
            {
                "polynomial": polynomial(v["coefficients"], float(v["x"]), n),
                "slope": polynomial(v["coefficients"], float(v["x"]), n + 1),
            }
        ),
    ),
)
