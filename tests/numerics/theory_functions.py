# ruff: noqa: F722, F821 - jaxtyping's shapes are strings, not forward references
"""Functions whose operations are nearly all those of matrix products, so that counts of operations are clean."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def perceptron(x: Float[Array, "n"], W: Float[Array, "h n"], V: Float[Array, "m h"]) -> Float[Array, "m"]:
    """V sq(Wx), with sq(z) = z + z²: a network with one hidden layer, and a nonlinearity of two operations."""
    hidden = W @ x
    return V @ (hidden + hidden**2)


def energy(x: Float[Array, "n"], W: Float[Array, "h n"]) -> Float[Array, ""]:
    """Σ sq(Wx): the same hidden layer, added up."""
    hidden = W @ x
    return jnp.sum(hidden + hidden**2)


def chain(x: Float[Array, "n"], rates: Float[Array, "depth"]) -> Float[Array, ""]:
    """Σ xᵢ after as many steps x ← sin(r x) as there are rates, in a loop."""
    end, _ = jax.lax.scan(lambda state, rate: (jnp.sin(rate * state), None), x, rates)
    return jnp.sum(end)
