"""Coupled pendulums by hand, in plain NumPy: where they swing, and the derivatives of their energy.

The functions of end_to_end/linearized_functions.py are these. Derivatives of what is analytic come from a complex step
(Squire and Trapp 1998), which is exact to rounding.
"""

from typing import Any

import numpy as np

STEPS = 200
H = 0.05
STEP = 1e-30


def _coupled(q: Any) -> Any:
    """0.5 times the second differences, around the circle: a symmetric matrix times q."""
    return 0.5 * (np.roll(q, 1) - 2 * q + np.roll(q, -1))


def swung(x: Any) -> tuple[Any, Any]:
    """Angles and speeds after all steps, from angles x at rest."""
    q, p = np.array(x), np.zeros_like(x)
    for _ in range(STEPS):
        p = p + H * (_coupled(q) - np.sin(q))
        q = q + H * p
    return q, p


def energy_gradient(x: Any) -> Any:
    """∇ of Σ 1 − cos q + p²/2 after all steps: step by step backwards."""
    q, p = np.array(x), np.zeros_like(x)
    before = []
    for _ in range(STEPS):
        before.append(q)
        p = p + H * (_coupled(q) - np.sin(q))
        q = q + H * p
    by_q, by_p = np.sin(q), p
    for at in reversed(before):
        by_p = by_p + H * by_q
        by_q = by_q + H * (_coupled(by_p) - np.cos(at) * by_p)
    return by_q


def energy_products(x: Any, vectors: Any) -> Any:
    """The energy's Hessian times each of the vectors [k, n]."""
    return np.stack([energy_gradient(x + 1j * STEP * vector).imag / STEP for vector in vectors])


def swung_products(x: Any, vectors: Any) -> tuple[Any, Any]:
    """The derivatives of angles and speeds along each of the vectors [k, n]."""
    moved = [swung(x + 1j * STEP * vector) for vector in vectors]
    return np.stack([q.imag / STEP for q, _ in moved]), np.stack([p.imag / STEP for _, p in moved])
