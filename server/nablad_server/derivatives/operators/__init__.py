"""Every operator as a few lines of JAX, for one point.

An operator is a row of OPERATORS: `build(f, query)` gives the function of one point, from (inputs, vectors) to groups
of arrays in the order in which the response lists them; `results(query)` gives the shapes of the same groups without
tracing, so that a result too large is refused before any work. `after`, where there is one, makes the last group from
those before it, of all points at once even where these are looped over.

`f` maps the tuple of input leaves to the tuple of output leaves. "The inputs alone" means the function of the `wrt`
inputs with the others held at the point.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

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
from nablad_server.derivatives.operators.norms import measured, norm_specs
from nablad_server.derivatives.query import Query

After = Callable[[Query, Groups, Leaves], Groups]
"""Maps groups of results for one point, and the point's extras, to as many groups and another one after them."""


class Operator(NamedTuple):
    """One row: how to compute it, the shapes of what it gives, and what is made of its first groups, if anything is."""

    build: Callable[[FlatFunction, Query], PointFunction]
    results: Callable[[Query], tuple[Specs, ...]]
    after: After | None = None


def _stack(query: Query) -> tuple[int, ...]:
    return () if query.stack is None else (query.stack,)


OPERATORS: dict[int, Operator] = {
    function_pb2.OPERATOR_EVALUATE: Operator(first.evaluate, lambda q: (value_specs(q),)),
    function_pb2.OPERATOR_GRADIENT: Operator(
        first.gradient, lambda q: (value_specs(q), input_specs(q, q.wrt), norm_specs(q)), measured
    ),
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
"""The operators that finite differences serve: their results, and the errors after the group that they are of."""


def _operator(query: Query) -> Operator:
    if query.differences is not None:
        return Operator(DIFFERENCES[query.operator], _with_errors, OPERATORS[query.operator].after)
    if query.sparse:
        return SPARSE_MATRIX
    return ROW_BLOCK if query.block_rows else OPERATORS[query.operator]


def _with_errors(query: Query) -> tuple[Specs, ...]:
    groups = OPERATORS[query.operator].results(query)
    if query.operator == function_pb2.OPERATOR_GRADIENT:
        values, gradient, norms = groups
        return values, gradient, gradient, norms
    return (*groups, groups[-1])


def point_function(query: Query) -> PointFunction:
    """The function of one point that a query asks for, ready to be traced; `finish` makes its result complete."""
    build, _, after = _operator(query)
    compute = build(query.function.flat, query)

    def converted(point: Leaves, vectors: Leaves) -> Groups:
        groups = compute(point, vectors)
        return tuple(
            tuple(jnp.asarray(array, spec.dtype) for array, spec in zip(group, specs, strict=True))
            for group, specs in zip(groups, result_specs(query), strict=after is None)
        )

    return converted


def finish(query: Query) -> Callable[[Sequence[Any], Sequence[Any]], list[Any]] | None:
    """What makes all results of a point from its arrays and the results of `point_function`; None: they are all."""
    after = _operator(query).after
    if after is None:
        return None
    sizes = [len(group) for group in result_specs(query)[:-1]]

    def flat(arrays: Sequence[Any], results: Sequence[Any]) -> list[Any]:
        left = iter(results)
        groups = tuple(tuple(itertools.islice(left, size)) for size in sizes)
        extras = tuple(arrays[len(arrays) - len(query.extras) :])
        return [leaf for group in after(query, groups, extras) for leaf in group]

    return flat


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
