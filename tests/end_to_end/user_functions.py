# ruff: noqa: F722, F821 - jaxtyping's shapes are strings, not forward references
"""A user's file of functions, with misbehaving ones among them."""

import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpy.typing import NDArray

from nablad_server import Warm, function

SCRATCH = Path(os.environ.get("NABLAD_TEST_SCRATCH", "."))


@function(warm=[Warm("gradient", {"n": 4}, points=(1, 8))])
def cubes(x: Float[Array, "n"]) -> Float[Array, ""]:
    """The sum of x³."""
    return jnp.sum(x**3)


@function(sizes={"n": 4})
def only_even(x: Float[Array, "n"]) -> Float[Array, ""]:
    """The sum of x₀x₁ + x₂x₃ + …; refuses odd sizes."""
    if x.shape[0] % 2:
        raise TypeError(f"needs an even number of elements, not {x.shape[0]}")
    return jnp.sum(x[0::2] * x[1::2])


def _checked(x: NDArray[np.float64]) -> NDArray[np.float64]:
    if np.any(x < 0):
        raise ArithmeticError("a negative number")
    return np.sqrt(x)


@function
def fragile(x: Float[Array, ""]) -> Float[Array, ""]:
    """√x by a callback that raises an error for negative numbers."""
    return jax.pure_callback(_checked, jax.ShapeDtypeStruct(x.shape, x.dtype), x, vmap_method="expand_dims")


def _held(x: NDArray[np.float64]) -> NDArray[np.float64]:
    if np.all(x == 1):  # the compiler's trial run
        return np.asarray(x)
    with (SCRATCH / "executions").open("a") as log:
        log.write(f"{float(np.ravel(x)[0])}\n")
    if np.ravel(x)[0] > 100:
        with (SCRATCH / "gate").open() as gate:  # a FIFO: waits until the test writes
            gate.read()
    return np.asarray(x)


@function
def held(x: Float[Array, ""]) -> Float[Array, ""]:
    """x; notes each execution, and above 100 waits for the gate."""
    # Not to be vectorised: points that only fill a batch would wait for the gate again.
    return jax.pure_callback(_held, jax.ShapeDtypeStruct(x.shape, x.dtype), x)


def _patient(x: NDArray[np.float64]) -> NDArray[np.float64]:
    if os.environ.pop("NABLAD_TEST_HOLD_WARM", None):
        with (SCRATCH / "gate").open() as gate:
            gate.read()
    return np.asarray(x)


@function(warm=[Warm("evaluate", {})])
def patient(x: Float[Array, ""]) -> Float[Array, ""]:
    """x; its first execution can be made to wait for the gate."""
    return jax.pure_callback(_patient, jax.ShapeDtypeStruct(x.shape, x.dtype), x, vmap_method="expand_dims")


@function(name="cubes", version=2)
def cubes_doubled(x: Float[Array, "n"]) -> Float[Array, ""]:
    """Twice the sum of x³."""
    return 2 * jnp.sum(x**3)
