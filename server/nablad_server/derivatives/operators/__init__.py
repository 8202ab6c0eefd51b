"""Every operator as a few lines of JAX, for one point.

An operator is a row of OPERATORS: `build(f, query)` gives the function of one point, from (inputs, vectors) to groups
of arrays in the order in which the response lists them; `results(query)` gives the shapes of the same groups without
tracing, so that a result too large is refused before any work.

`f` maps the tuple of input leaves to the tuple of output leaves. "The inputs alone" means the function of the `wrt`
inputs with the others held at the point.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from nablad.v1 import function_pb2
from nablad_server.derivatives.operators import curvature, differences, first, orders, rows, second, sparse
from nablad_server.derivatives.operators.leaves import (
    FlatFunction,
    Groups,
    Leaves,
    PointFunction,
    Specs,
    input_specs,
    output_specs,
    value_specs,
)
from nablad_server.derivatives.query import Query


class Operator(NamedTuple):
    """One row: how to compute it, and the shapes of what it gives."""

    build: Callable[[FlatFunction, Query], PointFunction]
    results: Callable[[Query], tuple[Specs, ...]]


def _stack(query: Query) -> tuple[int, ...]:
    return () if query.stack is None else (query.stack,)


OPERATORS: dict[int, Operator] = {
    function_pb2.OPERATOR_EVALUATE: Operator(first.evaluate, lambda q: (value_specs(q),)),
    function_pb2.OPERATOR_GRADIENT: Operator(first.gradient, lambda q: (value_specs(q), input_specs(q, q.wrt))),
    function_pb2.OPERATOR_JACOBIAN: Operator(first.jacobian, first.jacobian_results),
    function_pb2.OPERATOR_HESSIAN: Operator(second.hessian, second.hessian_results),
    function_pb2.OPERATOR_HVP: Operator(
        second.hvp, lambda q: (value_specs(q), input_specs(q, q.wrt), input_specs(q, q.wrt, q.stack))
    ),
    function_pb2.OPERATOR_JVP: Operator(first.jvp, lambda q: (value_specs(q), output_specs(q, _stack(q)))),
    function_pb2.OPERATOR_VJP: Operator(first.vjp, lambda q: (value_specs(q), input_specs(q, q.wrt, q.stack))),
    function_pb2.OPERATOR_DIRECTIONAL_DERIVATIVE: Operator(
        first.directional_derivative,
        lambda q: (value_specs(q), value_specs(q), input_specs(q, q.vectors), value_specs(q)),
    ),
    function_pb2.OPERATOR_DERIVATIVE: Operator(
        orders.derivative, lambda q: (value_specs(q), output_specs(q, (q.order,)))
    ),
    function_pb2.OPERATOR_LAPLACIAN: Operator(curvature.laplacian, curvature.laplacian_results),
}

ROW_BLOCK = Operator(rows.row_block, rows.row_block_results)
"""A block of rows of a Jacobian or a Hessian."""

SPARSE_MATRIX = Operator(sparse.sparse_matrix, sparse.sparse_results)
"""A Jacobian or a Hessian without the elements that are always zero."""

DIFFERENCES = {
    function_pb2.OPERATOR_GRADIENT: differences.gradient,
    function_pb2.OPERATOR_JACOBIAN: differences.jacobian,
    function_pb2.OPERATOR_HESSIAN: differences.hessian,
    function_pb2.OPERATOR_HVP: differences.hvp,
    function_pb2.OPERATOR_JVP: differences.jvp,
}
"""The operators that finite differences serve: their results, and after them the errors of the last group."""


def _operator(query: Query) -> Operator:
    if query.differences is not None:
        groups = OPERATORS[query.operator].results
        return Operator(DIFFERENCES[query.operator], lambda q: (*groups(q), groups(q)[-1]))
    if query.sparse:
        return SPARSE_MATRIX
    return ROW_BLOCK if query.block_rows else OPERATORS[query.operator]


def point_function(query: Query) -> PointFunction:
    """The function of one point that a query asks for, ready to be traced."""
    compute = _operator(query).build(query.function.flat, query)

    def converted(point: Leaves, vectors: Leaves) -> Groups:
        groups = compute(point, vectors)
        return tuple(
            tuple(jnp.asarray(array, spec.dtype) for array, spec in zip(group, specs, strict=True))
            for group, specs in zip(groups, result_specs(query), strict=True)
        )

    return converted


def result_specs(query: Query) -> tuple[Specs, ...]:
    """The shapes and dtypes of the result for one point, known without tracing.

    Values have their output's dtype, derivatives with respect to one input that input's, and blocks the wider of their
    row's and column's; what JAX promotes differently from mode to mode is converted.
    """
    return _operator(query).results(query)


def result_bytes(query: Query) -> int:
    """The bytes of the result for one point."""
    groups = result_specs(query)
    return sum(spec.bytes for group in groups for spec in group)
