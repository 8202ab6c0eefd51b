"""The finite differences of the reference text, for functions that take many points at once, one in each row."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Rowwise = Callable[[Array], Array]
"""From points × n numbers to one value for each point."""


def derivative(f: Callable[[float], float], x: float, h: float = 1e-5) -> float:
    """The slope of the secant through the points h to either side of x."""
    return (f(x + h) - f(x - h)) / (2 * h)


def gradient(f: Rowwise, x: Array, h: float = 1e-5) -> Array:
    """One central difference for each coordinate."""
    steps = h * np.eye(x.size)
    return (f(x + steps) - f(x - steps)) / (2 * h)


def hessian(f: Rowwise, x: Array, h: float = 1e-5) -> Array:
    """For each pair of coordinates, the difference of differences over the four corners around x."""
    n = x.size
    steps = h * np.eye(n)
    both = (steps[:, None] + steps).reshape(-1, n)
    one_against_other = (steps[:, None] - steps).reshape(-1, n)
    curved = f(x + both) - f(x + one_against_other) - f(x - one_against_other) + f(x - both)
    return (curved / (4 * h**2)).reshape(n, n)


def gradient_check(f: Rowwise, grad_f: Callable[[Array], Array], x: Array, epsilon: float = 1e-7) -> float:
    """The distance between a gradient and the numerical one, relative to their lengths: below 1e-5 if it is right."""
    numerical, analytical = gradient(f, x, epsilon), grad_f(x)
    lengths = np.linalg.norm(numerical) + np.linalg.norm(analytical)
    return float(np.linalg.norm(numerical - analytical) / (lengths + 1e-8))


def softmax(x: Array) -> Array:
    """Along the last axis, stable: the largest entry becomes 0 first."""
    weights = np.exp(x - np.max(x, axis=-1, keepdims=True))
    shares: Array = weights / np.sum(weights, axis=-1, keepdims=True)
    return shares


def sigmoid(x: Array) -> Array:
    """The logistic function, as the text writes it."""
    share: Array = 1 / (1 + np.exp(-x))
    return share
