# ruff: noqa: F722, F821 - jaxtyping's shapes are strings, not forward references
"""Functions whose products are worth a linearisation that is kept, and one that waits."""

import os
from pathlib import Path

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from nablad_server import function

SCRATCH = Path(os.environ.get("NABLAD_TEST_SCRATCH", "."))


@function
def pendulums(x: Float[Array, "n"]) -> Float[Array, ""]:
    """The energy of coupled pendulums after two hundred steps of a scan."""
    q, p = _swung(x)
    return jnp.sum(1 - jnp.cos(q)) + 0.5 * jnp.sum(p**2)


@function
def swing(x: Float[Array, "n"], mask: Bool[Array, "n"], speed: Float[Array, ""]) -> dict[str, Array]:
    """Where coupled pendulums are after two hundred steps; those of the mask, and the sum of the others."""
    q, p = _swung(x)
    return {"places": jnp.where(mask, q, jax.nn.relu(p) * speed), "total": jnp.sum(jnp.where(mask, 0.0, q * speed))}


def _swung(x: Array) -> tuple[Array, Array]:
    def step(state: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], None]:
        q, p = state
        p = p + 0.05 * (-jnp.sin(q) + 0.5 * (jnp.roll(q, 1) - 2 * q + jnp.roll(q, -1)))
        return (q + 0.05 * p, p), None

    swung: tuple[Array, Array]
    swung, _ = jax.lax.scan(step, (x, jnp.zeros_like(x)), None, length=200)
    return swung


@jax.custom_jvp
def _squared(x: Array) -> Array:
    """x²; whoever traces its derivative at a size of 1000 or more waits for the gate."""
    return x**2


@_squared.defjvp
def _(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (tangent,) = primals, tangents
    if x.size >= 1000:
        with (SCRATCH / "gate").open() as gate:  # a FIFO: waits until the test writes
            gate.read()
    return x**2, 2 * x * tangent


@function
def waiting(x: Float[Array, "n"]) -> Float[Array, ""]:
    """The sum of x²; the first product for each large size waits for the gate."""
    return jnp.sum(_squared(x))
