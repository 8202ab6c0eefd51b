# ruff: noqa: F821 - jaxtyping's shapes are strings, not forward references
"""A user's function whose derivative notes each time that it is computed, can be held up, and can fail."""

import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float
from numpy.typing import NDArray

from nablad_server import function

SCRATCH = Path(os.environ.get("NABLAD_TEST_SCRATCH", "."))


def _slope(x: NDArray[np.float64]) -> NDArray[np.float64]:
    first = float(np.ravel(x)[0])
    if np.all(x == 1):  # the compiler's trial run
        return np.asarray(2 * x)
    with (SCRATCH / "linearisations").open("a") as log:
        log.write(f"{first}\n")
    if first < 0:
        raise ArithmeticError("a negative number")
    if first > 100:
        with (SCRATCH / "gate").open() as gate:  # a FIFO: waits until the test writes
            gate.read()
    return np.asarray(2 * x)


@jax.custom_jvp
def _square(x: Any) -> Any:
    return x**2


@_square.defjvp
def _square_jvp(primals: tuple[Any], tangents: tuple[Any]) -> tuple[Any, Any]:
    (x,), (tangent,) = primals, tangents
    slope = jax.pure_callback(_slope, jax.ShapeDtypeStruct(x.shape, x.dtype), x, vmap_method="expand_dims")
    return x**2, slope * tangent


@function
def noted(x: Float[Array, "n"]) -> Float[Array, "n"]:
    """x²; its derivative fails if the first element is negative, and waits for the gate if it is above 100."""
    return _square(x)
