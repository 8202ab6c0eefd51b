"""Activation functions."""

import math

import numpy as np

from .scenario import (
    Array,
    Scenario,
    Values,
    arrays,
    blocks,
    of_one_variable,
    of_scalar_value,
    of_vector,
    point,
    polynomial_in_itself,
)


def logistic(x: float) -> float:
    """1/(1 + e⁻ˣ)."""
    return 1 / (1 + math.exp(-x))


sigmoid = polynomial_in_itself(logistic, [0, 1, -1])


def softplus(x: float, n: int) -> float:
    """The n-th derivative of ln(1 + eˣ), whose first is the sigmoid."""
    return math.log1p(math.exp(x)) if n == 0 else sigmoid(x, n - 1)


def normal_distribution(x: float, n: int) -> float:
    """The n-th derivative of Φ: Φ⁽ⁿ⁾ = (−1)ⁿ⁻¹ Heₙ₋₁ φ, with Hermite's polynomials."""
    if n == 0:
        return math.erfc(-x / math.sqrt(2)) / 2
    density = math.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
    hermite = float(np.polynomial.HermiteE.basis(n - 1)(x))
    return hermite * density if n % 2 else -hermite * density


def gelu(x: float, n: int) -> float:
    """The n-th derivative of xΦ(x), by Leibniz's rule."""
    return x * normal_distribution(x, n) + (n * normal_distribution(x, n - 1) if n else 0.0)


def softmax(x: Array) -> Array:
    """The softmax along the last axis."""
    scaled = np.exp(x - np.max(x, axis=-1, keepdims=True))
    return np.asarray(scaled / scaled.sum(axis=-1, keepdims=True))


def logsumexp(x: Array) -> Array:
    """The logarithm of the sum of exponentials along the last axis."""
    largest = np.max(x, axis=-1, keepdims=True)
    return np.asarray(np.log(np.exp(x - largest).sum(axis=-1)) + largest[..., 0])


def softmax_jacobian(x: Array) -> Array:
    """diag(s) − s sᵀ of a vector."""
    s = softmax(x)
    return np.asarray(np.diag(s) - np.outer(s, s))


def _leaky_relu(v: Values) -> float:
    x = float(v["x"])
    return x if x > 0 else float(v["alpha"]) * x


# At −10 the sigmoid's gradient, 4.5e-5, keeps its digits in every dtype; at +10 it is 1 − σ that loses them.
_SATURATED = [-10.0, 0.5, -0.75]
# Exponentials of the last of these overflow, also in float32, unless the largest entry is subtracted first.
_VECTORS = [[0.5, -1.0, 2.0], [1.0, 1.0, -0.25], [128.0, 129.0, 130.0]]

SCENARIOS: tuple[Scenario, ...] = (
    of_one_variable("sigmoid", _SATURATED, sigmoid),
    of_one_variable("tanh", [-1.5, 0.25, 0.75], polynomial_in_itself(math.tanh, [1, 0, -1])),
    of_one_variable("relu", [-1.5, 0.25, 3.0], lambda x, n: max(x, 0.0) if n == 0 else float(x > 0 and n == 1)),
    of_scalar_value(
        "leaky_relu",
        [point(x=-1.5, alpha=0.125), point(x=2.0, alpha=0.25), point(x=-0.25, alpha=0.5)],
        value=_leaky_relu,
        gradient=lambda v: {
            "x": 1.0 if v["x"] > 0 else float(v["alpha"]),
            "alpha": 0.0 if v["x"] > 0 else float(v["x"]),
        },
        hessian=lambda v: {("x", "x"): 0.0, ("x", "alpha"): float(v["x"] <= 0), ("alpha", "alpha"): 0.0},
    ),
    of_one_variable("softplus", [-2.0, 0.5, 3.0], softplus),
    of_one_variable("gelu", [-1.5, 0.25, 1.0], gelu),
    Scenario(
        "softmax",
        tuple(point(x=x) for x in _VECTORS),
        value=lambda v: arrays({"value": softmax(v["x"])}),
        jacobian=lambda v: blocks({("value", "x"): softmax_jacobian(v["x"])}),
    ),
    Scenario(
        "log_softmax",
        tuple(point(x=x) for x in _VECTORS),
        value=lambda v: arrays({"value": v["x"] - logsumexp(v["x"])}),
        jacobian=lambda v: blocks({("value", "x"): np.eye(v["x"].size) - softmax(v["x"])}),
    ),
    of_vector("logsumexp", _VECTORS, value=logsumexp, gradient=softmax, hessian=softmax_jacobian),
)
