# jaxtyping writes shapes as strings, which are not forward references:
# ruff: noqa: F722, F821
"""Functions that are no JAX: served as black boxes, and as badly behaved as functions can be."""

import os
import time
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from nablad_server.functions.registration import function


@function(differentiable=False)
def wave(x: Float[np.ndarray, "n"], y: Float[np.ndarray, ""]) -> Float[np.ndarray, ""]:
    """Σ sin(xᵢ) y, of NumPy arrays."""
    if not (isinstance(x, np.ndarray) and isinstance(y, np.ndarray)):
        raise TypeError(f"{type(x)}, {type(y)}")
    x *= 1.0  # what it is given is its own
    return np.asarray(np.sum(np.sin(x)) * float(y))


@function(differentiable=False, outputs={"doubled": Float[np.ndarray, "n 2"], "count": Int[np.ndarray, ""]})
def several(x: Float[np.ndarray, "n"]) -> Any:
    """Two outputs, of which one is whole."""
    return {"count": len(x), "doubled": np.stack([x, 2 * x], axis=1)}


@function(differentiable=False)
def careless(what: Int[np.ndarray, ""], x: Float[np.ndarray, ""]) -> Float[np.ndarray, ""]:  # noqa: PLR0912 - cases
    """x², or what `what` says."""
    match int(what):
        case 1:
            time.sleep(600)
        case 2:
            raise LookupError(f"nothing is known of {float(x)}")
        case 3:
            return np.asarray(np.nan)
        case 4:
            print("to standard output", flush=True)
            os.write(1, b"and past the interpreter\n")
        case 5:
            if os.fork() == 0:
                os._exit(3)
        case 6:
            os.kill(os.getpid(), 9)
        case 7:
            return np.ones(3)
        case 8:
            return np.asarray(1j)
        case 9:
            os._exit(7)
        case 10:
            os.fork()  # and the child goes on as if it were the function
        case 11:
            input()
        case 12:
            print("asleep", flush=True)
            time.sleep(600)
    return x**2
