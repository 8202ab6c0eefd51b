# ruff: noqa: F722, F821 - jaxtyping's shapes are strings, not forward references
"""A user's file of functions whose derivatives are sparse, or seem to be."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from nablad_server import function

SIDE = 6
"""Of the grid of `membrane`."""


@function
def chain(x: Float[Array, "n"]) -> Float[Array, ""]:
    """Σ (xᵢ₊₁ − xᵢ²)²: a tridiagonal Hessian."""
    return jnp.sum((x[1:] - x[:-1] ** 2) ** 2)


@function
def arrowhead(x: Float[Array, "n"]) -> Float[Array, ""]:
    """x₀ Σ xᵢ² : an arrow."""
    return x[0] * jnp.sum(x**2)


@function
def membrane(u: Float[Array, "6 6"]) -> Float[Array, "6 6"]:
    """Discrete Laplacian of u plus u³, with zeros around: five elements in a row of the Jacobian."""
    around = jnp.pad(u, 1)
    return around[2:, 1:-1] + around[:-2, 1:-1] + around[1:-1, 2:] + around[1:-1, :-2] - 4 * u + u**3


@function(inputs={"w": {"a": Float[Array, "n"], "b": Float[Array, "n"]}})
def coupled(x: Float[Array, "n"], w: dict[str, Any]) -> dict[str, Any]:
    """A scalar and a vector of several arguments."""
    return {"energy": jnp.sum(x * w["a"] ** 2) + w["b"][0] * x[0], "force": x * w["b"]}


@function
def hinge(x: Float[Array, "n"]) -> Float[Array, ""]:
    """Which elements are other than zero depends on the values."""
    left = jax.lax.cond(x[0] > 0, lambda: x[1] ** 3, lambda: x[2] ** 3)
    return left + jnp.max(x) ** 2 + jnp.sum(jnp.where(x > 0, x**2, jnp.abs(x) * x[::-1]))


@function
def spectral(x: Float[Array, "n"]) -> Float[Array, ""]:
    """Σ |FFT(x)|⁴: nothing is known of the operation inside."""
    return jnp.sum(jnp.abs(jnp.fft.fft(x)) ** 4)


def _pairs(sizes: Mapping[str, int]) -> tuple[Any, Any]:
    rows = np.arange(sizes["n"])
    return rows, rows[::-1]


@function(sparsity={"hessian": _pairs})
def folded(x: Float[Array, "n"]) -> Float[Array, ""]:
    """Σ xᵢ xₙ₋₁₋ᵢ by a detour that hides what depends on what."""
    return jnp.sum(x * jnp.fft.ifft(jnp.fft.fft(x[::-1])).real)
