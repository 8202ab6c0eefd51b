"""What a program would need in memory, and the refusal of those that would harm the process.

XLA ends the process where the size of an array overflows 64 bits, and the kernel may end it where memory runs out: both
are found out before, from shapes alone.
"""

import math
from collections.abc import Iterator
from typing import Any

import jax

from nablad.errors import ResultTooLarge
from nablad_server.derivatives.query import Query

OVERFLOW_BYTES = 1 << 48
"""No single array of one point may be larger; with the points of a batch on top, 64 bits still hold its size."""


def refuse_overflow(query: Query, jaxpr: Any) -> None:
    """Raises ResultTooLarge if some intermediate array of one point has a size that XLA might not survive."""
    for size in _array_bytes(jaxpr):
        if size > OVERFLOW_BYTES:
            raise ResultTooLarge(
                f"{query} forms an array of {size} bytes on its way; no array may have more than {OVERFLOW_BYTES}. Ask "
                "for products with vectors instead of whole derivatives, or for smaller inputs",
                metadata={"bytes": str(size), "limit": str(OVERFLOW_BYTES)},
            )


def refuse_excess(query: Query, executable: jax.stages.Compiled, points: int, limit: int) -> None:
    """Raises ResultTooLarge if the compiled program needs more memory than one execution may have."""
    analysis: Any = executable.memory_analysis()
    if analysis is None:  # a platform that does not tell
        return
    # peak_memory_in_bytes would leave temporaries out.
    needed = analysis.temp_size_in_bytes + analysis.output_size_in_bytes + analysis.argument_size_in_bytes
    if needed > limit:
        raise ResultTooLarge(
            f"{query} needs {needed} bytes of memory for {points} points at once; one execution may have {limit}. Ask "
            "for products with vectors instead of whole derivatives, for smaller inputs, or for fewer points",
            metadata={"bytes": str(needed), "limit": str(limit)},
        )


def _array_bytes(jaxpr: Any) -> Iterator[int]:
    """The bytes of every array that goes in or that an operation gives, in inner functions and loops too."""
    variables = [*jaxpr.invars, *(variable for equation in jaxpr.eqns for variable in equation.outvars)]
    for variable in variables:
        shape, dtype = getattr(variable.aval, "shape", ()), getattr(variable.aval, "dtype", None)
        # Axes of size zero are left out: XLA multiplies sizes in order, and overflows before it comes to the zero.
        yield math.prod(size for size in shape if size) * getattr(dtype, "itemsize", 1)
    for equation in jaxpr.eqns:
        for inner in inner_jaxprs(equation):
            yield from _array_bytes(inner)


def inner_jaxprs(equation: Any) -> Iterator[Any]:
    """The jaxprs inside an operation: of the functions it calls, and of the bodies of its loops."""
    for parameter in equation.params.values():
        for part in parameter if isinstance(parameter, tuple | list) else (parameter,):
            inner = getattr(part, "jaxpr", part)
            if hasattr(inner, "eqns"):
                yield inner
