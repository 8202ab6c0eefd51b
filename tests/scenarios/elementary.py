"""Functions of one real variable."""

import math

import mpmath
import numpy as np

from .scenario import (
    Scenario,
    arrays,
    blocks,
    falling,
    numerically,
    of_one_variable,
    of_scalar_value,
    point,
    polynomial_in_itself,
)


def sine(x: float, n: int) -> float:
    """The n-th derivative of sin at x."""
    return (math.sin(x), math.cos(x), -math.sin(x), -math.cos(x))[n % 4]


def cosine(x: float, n: int) -> float:
    """The n-th derivative of cos at x."""
    return sine(x, n + 1)


def monomial(x: float, degree: int, n: int) -> float:
    """The n-th derivative of x to a whole power."""
    return falling(degree, n) * x ** (degree - n) if degree < 0 or n <= degree else 0.0


def logarithm(x: float, n: int) -> float:
    """The n-th derivative of ln at x."""
    return math.log(x) if n == 0 else (-1) ** (n - 1) * math.factorial(n - 1) / x**n


def cubic(x: float, n: int) -> float:
    """The n-th derivative of x³ − 2x + 1."""
    return monomial(x, 3, n) - 2 * monomial(x, 1, n) + monomial(x, 0, n)


def product(x: float, n: int) -> float:
    """The n-th derivative of x² sin x, by Leibniz's rule: the factor x² has three derivatives that do not vanish."""
    terms = (math.comb(n, k) * monomial(x, 2, k) * sine(x, n - k) for k in range(min(n, 2) + 1))
    return sum(terms)


def quotient(x: float, n: int) -> float:
    """The n-th derivative of x/(1 + x²), which is the real part of 1/(x + i)."""
    return float(((-1) ** n * math.factorial(n) / complex(x, 1) ** (n + 1)).real)


SCENARIOS: tuple[Scenario, ...] = (
    of_scalar_value(
        "power",
        [point(x=1.5, n=2.5), point(x=0.75, n=-1.25), point(x=3.0, n=3.0)],
        value=lambda v: v["x"] ** v["n"],
        gradient=lambda v: {"x": v["n"] * v["x"] ** (v["n"] - 1), "n": v["x"] ** v["n"] * np.log(v["x"])},
        hessian=lambda v: {
            ("x", "x"): v["n"] * (v["n"] - 1) * v["x"] ** (v["n"] - 2),
            ("x", "n"): v["x"] ** (v["n"] - 1) * (1 + v["n"] * np.log(v["x"])),
            ("n", "n"): v["x"] ** v["n"] * np.log(v["x"]) ** 2,
        },
    ),
    Scenario(
        "integer_power",
        (point(x=-1.5, n=3), point(x=0.75, n=5), point(x=-2.0, n=-2)),
        value=lambda v: arrays({"value": monomial(float(v["x"]), int(v["n"]), 0)}),
        jacobian=lambda v: blocks({("value", "x"): monomial(float(v["x"]), int(v["n"]), 1)}),
        hessian=lambda v: blocks({("x", "x"): monomial(float(v["x"]), int(v["n"]), 2)}),
        derivative=lambda v, n: arrays({"value": monomial(float(v["x"]), int(v["n"]), n)}),
    ),
    of_one_variable("cubic", [1.5, -0.75, 2.0], cubic),
    of_one_variable("exp", [-1.0, 0.5, 2.0], lambda x, _: math.exp(x)),
    of_scalar_value(
        "exponential",
        [point(a=2.0, x=1.5), point(a=0.5, x=3.0), point(a=1.25, x=-2.0)],
        value=lambda v: v["a"] ** v["x"],
        gradient=lambda v: {"a": v["x"] * v["a"] ** (v["x"] - 1), "x": v["a"] ** v["x"] * np.log(v["a"])},
        hessian=lambda v: {
            ("a", "a"): v["x"] * (v["x"] - 1) * v["a"] ** (v["x"] - 2),
            ("a", "x"): v["a"] ** (v["x"] - 1) * (1 + v["x"] * np.log(v["a"])),
            ("x", "x"): v["a"] ** v["x"] * np.log(v["a"]) ** 2,
        },
    ),
    of_one_variable("ln", [0.5, 1.75, 4.0], logarithm),
    of_scalar_value(
        "log",
        [point(a=2.0, x=3.0), point(a=10.0, x=0.25), point(a=0.5, x=1.75)],
        value=lambda v: np.log(v["x"]) / np.log(v["a"]),
        gradient=lambda v: {
            "a": -np.log(v["x"]) / (v["a"] * np.log(v["a"]) ** 2),
            "x": 1 / (v["x"] * np.log(v["a"])),
        },
        hessian=lambda v: {
            ("a", "a"): np.log(v["x"]) * (np.log(v["a"]) + 2) / (v["a"] ** 2 * np.log(v["a"]) ** 3),
            ("a", "x"): -1 / (v["x"] * v["a"] * np.log(v["a"]) ** 2),
            ("x", "x"): -1 / (v["x"] ** 2 * np.log(v["a"])),
        },
    ),
    of_one_variable("sin", [0.5, -1.25, 2.5], sine),
    of_one_variable("cos", [0.5, -1.25, 2.5], cosine),
    of_one_variable("tan", [0.5, -0.75, 1.0], polynomial_in_itself(math.tan, [1, 0, 1])),
    of_one_variable("constant", [-1.0, 0.5, 3.0], lambda _, n: 5.0 if n == 0 else 0.0),
    of_one_variable("constant_multiple", [0.5, -1.25, 2.5], lambda x, n: 3 * sine(x, n)),
    of_one_variable("sum_rule", [0.5, -1.25, 2.5], lambda x, n: monomial(x, 2, n) + sine(x, n)),
    of_one_variable("difference_rule", [0.5, -1.25, 2.5], lambda x, n: math.exp(x) - monomial(x, 3, n)),
    of_one_variable("product_rule", [0.5, -1.25, 2.5], product),
    of_one_variable("quotient_rule", [0.5, -0.25, 1.25], quotient),
    of_one_variable("chain_rule", [0.5, -1.25, 1.5], numerically(lambda x: mpmath.sin(x**2))),
)
