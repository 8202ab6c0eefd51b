"""What a program would need in memory, and the refusal of those that would harm the process.

XLA ends the process where the size of an array overflows 64 bits, and the kernel may end it where memory runs out: both
are found out before, from shapes alone.
"""

import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.extend

from nablad.errors import ResultTooLarge
from nablad.v1 import function_pb2
from nablad_server.derivatives.recipe import Recipe

OVERFLOW_BYTES = 1 << 48
"""No single array of one point may be larger; with the points of a batch on top, 64 bits still hold its size."""

ADVICE = {
    function_pb2.OPERATOR_JACOBIAN: "use StreamJacobian, Jvp or Vjp, or ask for a sparse matrix",
    function_pb2.OPERATOR_HESSIAN: "use StreamHessian or Hvp, or ask for a block (wrt and columns), the diagonal, or a "
    "sparse matrix",
    function_pb2.OPERATOR_HVP: "send fewer vectors at once",
    function_pb2.OPERATOR_JVP: "send fewer vectors at once",
    function_pb2.OPERATOR_VJP: "send fewer vectors at once",
    function_pb2.OPERATOR_DERIVATIVE: "ask for a lower order",
    function_pb2.OPERATOR_LAPLACIAN: "ask for an estimate",
}
"""What to do instead, where a result or what it takes is too large."""

SPARSE_ADVICE = "use Hvp, Jvp or Vjp, or name fewer inputs"
"""Likewise of a sparse matrix."""

MATERIALIZED = frozenset({
    "cholesky", "conv_general_dilated", "cumlogsumexp", "cummax", "cummin", "cumprod", "cumsum", "dot_general", "eigh",
    "fft", "lu", "qr", "scan", "scatter", "scatter-add", "scatter_add", "sort", "svd", "triangular_solve", "while",
})  # fmt: skip
"""Operations whose results XLA writes to memory; others may be fused into what uses them, and need none."""

UNCERTAINTY = 2
"""A program may need so many times less than is estimated before it is compiled: XLA merges some loops."""


def refuse_overflow(query: Recipe, jaxpr: Any) -> None:
    """Raises ResultTooLarge if some intermediate array of one point has a size that XLA might not survive."""
    for size in _array_bytes(jaxpr):
        if size > OVERFLOW_BYTES:
            raise ResultTooLarge(
                f"{query} forms an array of {size} bytes on its way; no array may have more than {OVERFLOW_BYTES}. To "
                f"need less, {ADVICE.get(query.operator, 'ask for less')}, or send smaller inputs",
                metadata={"bytes": str(size), "limit": str(OVERFLOW_BYTES)},
            )


def refuse_hopeless(query: Recipe, jaxpr: Any, points: int, limit: int) -> None:
    """Raises ResultTooLarge if a program of so many points at once will not fit into `limit`, before it is compiled.

    `jaxpr`: the operations for one point.
    """
    needed = points * (query.argument_bytes + live_bytes(jaxpr))
    if needed > UNCERTAINTY * limit:
        raise _needs_too_much(query, f"about {needed}", needed, points, limit)


def refuse_excess(query: Recipe, executable: jax.stages.Compiled, points: int, limit: int) -> None:
    """Raises ResultTooLarge if the compiled program needs more memory than one execution may have."""
    needed = memory_of(executable)
    if needed > limit:
        raise _needs_too_much(query, str(needed), needed, points, limit)


def memory_of(executable: jax.stages.Compiled) -> int:
    """The bytes of memory that one execution needs; 0 on a platform that does not tell."""
    analysis: Any = executable.memory_analysis()
    if analysis is None:
        return 0
    # peak_memory_in_bytes would leave temporaries out.
    return int(analysis.temp_size_in_bytes + analysis.output_size_in_bytes + analysis.argument_size_in_bytes)


def live_bytes(jaxpr: Any) -> int:
    """An estimate from below of the memory for intermediates and results: the most that is held at one time.

    Walks the operations in order, and counts the results of those that XLA does not fuse until they were last used.
    """
    last = {variable: index for index, equation in enumerate(jaxpr.eqns) for variable in _variables(equation.invars)}
    last |= dict.fromkeys(_variables(jaxpr.outvars), len(jaxpr.eqns))
    leaving: dict[int, int] = {}  # by operation: the bytes whose last use it is
    live = peak = 0
    for index, equation in enumerate(jaxpr.eqns):
        inside = max(map(live_bytes, inner_jaxprs(equation)), default=0)
        if equation.primitive.name in MATERIALIZED:
            for variable in equation.outvars:
                if variable in last:
                    size = _bytes(variable)
                    live += size
                    leaving[last[variable]] = leaving.get(last[variable], 0) + size
        peak = max(peak, live + inside)
        live -= leaving.get(index, 0)
    return max(peak, sum(map(_bytes, set(_variables(jaxpr.outvars)))))


def _needs_too_much(query: Recipe, words: str, needed: int, points: int, limit: int) -> ResultTooLarge:
    advice = ADVICE.get(query.operator, "ask for less")
    return ResultTooLarge(
        f"{query} needs {words} bytes of memory for {points} points at once; one execution may have {limit}. To need "
        f"less, {advice}, or send smaller inputs or fewer points",
        metadata={"bytes": str(needed), "limit": str(limit)},
    )


def _variables(variables: Any) -> Iterator[Any]:
    return (variable for variable in variables if not isinstance(variable, jax.extend.core.Literal))


def _bytes(variable: Any) -> int:
    return int(math.prod(variable.aval.shape)) * int(getattr(variable.aval.dtype, "itemsize", 1))


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
