# ruff: noqa: F722, F821 - jaxtyping's shapes are strings, not forward references
"""A user's file with a function that is not finite everywhere, and one whose gradient is what it is given."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from nablad_server import function


@function
def roots(scale: Float[Array, ""], x: Float[Array, "n"]) -> Float[Array, ""]:
    """scale Σ √xᵢ: NaN below zero, and at zero a value with an infinite slope."""
    return scale * jnp.sum(jnp.sqrt(x))


@function
def ramp(x: Float[Array, "n"], slopes: Float[Array, "n"]) -> Float[Array, ""]:
    """slopes · x."""
    return jnp.dot(slopes, x)
