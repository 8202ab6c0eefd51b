"""Queries about plain Python functions, and their answers at one point."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from nablad.tensors import Array
from nablad.v1 import function_pb2
from nablad_server.derivatives.program import compile_program, trace
from nablad_server.derivatives.query import Query
from nablad_server.functions.function import Function
from nablad_server.functions.registration import build
from nablad_server.functions.signature import ArraySpec

Groups = list[list[Array]]

MEMORY = 1 << 32
"""Bytes that an execution may need."""


def spec(shape: tuple[int, ...] = (), dtype: Any = np.float64) -> ArraySpec:
    """The specification of an array."""
    return ArraySpec(shape, np.dtype(dtype))


def specs(arrays: Sequence[ArrayLike]) -> tuple[ArraySpec, ...]:
    """The specifications of arrays."""
    return tuple(ArraySpec(array.shape, array.dtype) for array in map(np.asarray, arrays))


def query_of(
    call: Callable[..., Any] | Function,
    operator: function_pb2.Operator.ValueType,
    inputs: Sequence[ArraySpec],
    **options: Any,
) -> Query:
    """A query about the first output, by default with respect to every floating-point input."""
    function = call if isinstance(call, Function) else build(call, "test")
    every = tuple(index for index, given in enumerate(inputs) if given.differentiable)
    defaults: dict[str, Any] = {"outputs": (0,)}
    if operator != function_pb2.OPERATOR_EVALUATE:
        defaults["wrt"] = every
    if operator == function_pb2.OPERATOR_HESSIAN and not options.get("diagonal"):
        defaults["columns"] = options.get("wrt", every)
    return Query(function, operator, tuple(inputs), **defaults | options)


def answer(query: Query, *arrays: ArrayLike) -> Groups:
    """The groups of results at one point; `arrays` are the inputs, then the vectors."""
    program = compile_program(trace(query, {}), 1, MEMORY)
    points = [np.asarray(array, given.dtype)[None] for array, given in zip(arrays, query.arrays, strict=True)]
    flat = iter(program.run(points))
    return [[next(flat)[0] for _ in range(size)] for size in program.groups]
