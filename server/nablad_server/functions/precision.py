"""64-bit and 32-bit programs in one process.

JAX knows one switch for the whole process, or for a stretch of tracing. With it on, `np.float64(2) * x` or
`jnp.zeros(n)` turn a float32 program into a float64 one without a word; so float32 and narrower programs are traced
with the switch off, and float64 programs with it on.
"""

import warnings
from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any

import jax
import numpy as np

from nablad_server.functions.signature import ArraySpec

jax.config.update("jax_enable_x64", True)
# A function that closes over float64 data and is asked for float32 results computes in float32, as documented; JAX's
# reminder of it would be printed at every trace.
warnings.filterwarnings("ignore", message="Explicitly requested dtype .* is not available", category=UserWarning)


def is_wide(inputs: Iterable[ArraySpec]) -> bool:
    """Whether their program runs in 64-bit mode: some floating-point input is 64 bits wide, or there is none."""
    inputs = list(inputs)
    return any(spec.wide for spec in inputs) or not any(
        spec.differentiable or np.issubdtype(spec.dtype, np.complexfloating) for spec in inputs
    )


def canonical(dtype: np.dtype[Any], inputs: Iterable[ArraySpec]) -> np.dtype[Any]:
    """A dtype as the program for these inputs holds it."""
    with precision_of(inputs):
        return np.dtype(jax.dtypes.canonicalize_dtype(dtype))


def precision_of(inputs: Iterable[ArraySpec]) -> AbstractContextManager[None]:
    """The context in which a program for these inputs is traced and lowered."""
    context: AbstractContextManager[None] = jax.enable_x64(is_wide(inputs))
    return context
