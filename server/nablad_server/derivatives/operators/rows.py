"""A block of rows of a Jacobian or a Hessian as one matrix, so that a matrix of any size is computed bit by bit.

The rows belong to the elements of all outputs (Jacobian) or `wrt` inputs (Hessian), one after the other, the columns to
those of the inputs of the columns. What the rows have in common, the linearisation at the point, is computed once a
block; no array on the way is larger than the block, or than a few vectors.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from nablad.v1 import function_pb2
from nablad_server.derivatives.operators.leaves import (
    FORWARD,
    REVERSE,
    FlatFunction,
    Groups,
    Leaves,
    PointFunction,
    Specs,
    filled,
    joined,
    matrix_dtype,
    outputs_alone,
    pick,
    scalar_alone,
)
from nablad_server.derivatives.query import Query
from nablad_server.functions.signature import ArraySpec

TOGETHER = 16
"""At most so many products with vectors are computed at once."""

TOGETHER_ELEMENTS = 1 << 20
"""Products whose vectors have more elements in all are not computed together: they would only fill the memory."""

_Linear = Callable[[Leaves], Leaves]
_Rows = Callable[[Any], Any]
"""Maps the number of the first row to the block."""


def row_block(f: FlatFunction, query: Query) -> PointFunction:
    """The `block_rows` rows that begin with the one given; of a block that would pass the end, the last ones.

    A matrix with rows has at least `block_rows` of them.
    """
    hessian = query.operator == function_pb2.OPERATOR_HESSIAN
    rows_of = _hessian_rows if hessian else _forward_rows if is_forward(query) else _reverse_rows
    count, columns = query.matrix_shape
    ((spec,),) = row_block_results(query)

    def at(point: Leaves, extras: Leaves) -> Groups:
        if columns == 0:
            return ((jnp.zeros(spec.shape, spec.dtype),),)
        first = jnp.minimum(extras[0], count - query.block_rows)
        return ((rows_of(f, query, point, spec.dtype)(first),),)

    return at


def row_block_results(query: Query) -> tuple[Specs, ...]:
    """One array [block_rows, columns], in the widest dtype of all rows and columns."""
    return ((ArraySpec((query.block_rows, query.matrix_shape[1]), matrix_dtype(query)),),)


def is_forward(query: Query) -> bool:
    """Whether a block of a Jacobian is accumulated column by column: all columns, but only the block's rows of each."""
    _, columns = query.matrix_shape
    return query.mode == FORWARD or (query.mode != REVERSE and columns <= query.block_rows)


def _reverse_rows(f: FlatFunction, query: Query, point: Leaves, dtype: Any) -> _Rows:
    """One product with the transpose for each row."""
    values, pullback = jax.vjp(outputs_alone(f, query, point, query.wrt), pick(point, query.wrt))
    return lambda first: _products(lambda v: pullback(v)[0], values, first, query, dtype)


def _forward_rows(f: FlatFunction, query: Query, point: Leaves, dtype: Any) -> _Rows:
    """One product for each column, of which the rows of the block are kept."""
    chosen = pick(point, query.wrt)
    count, columns = query.matrix_shape
    _, push = jax.linearize(outputs_alone(f, query, point, query.wrt), chosen)

    def block(first: Any) -> Any:
        def column(index: Any) -> Any:
            whole = joined(push(_unit(chosen, index)), dtype)
            return jax.lax.dynamic_slice(whole, (first,), (query.block_rows,))

        return jax.lax.map(column, jnp.arange(columns), batch_size=_together(columns, count + columns)).T

    return block


def _hessian_rows(f: FlatFunction, query: Query, point: Leaves, dtype: Any) -> _Rows:
    """The derivative of a gradient along each row's unit vector, or the products of a gradient's transpose with it."""
    rows = pick(point, query.wrt)
    if query.mode == FORWARD:
        return lambda first: _twice_forward(f, query, point, first, dtype)
    if query.mode == REVERSE:
        _, pullback = jax.vjp(_gradient(f, query, point, query.columns, query.wrt), pick(point, query.columns))
        return lambda first: _products(lambda v: pullback(v)[0], rows, first, query, dtype)
    _, push = jax.linearize(_gradient(f, query, point, query.wrt, query.columns), rows)  # the Hessian is symmetric
    return lambda first: _products(push, rows, first, query, dtype)


def _gradient(f: FlatFunction, query: Query, point: Leaves, moving: Sequence[int], wrt: Sequence[int]) -> _Linear:
    """The gradient with respect to some inputs as a function of others, or of the same."""

    def gradient(moved: Leaves) -> Leaves:
        leaves = list(point)
        for index, leaf in zip(moving, moved, strict=True):
            leaves[index] = leaf
        found: Leaves = jax.grad(scalar_alone(f, query, tuple(leaves), wrt))(pick(leaves, wrt))
        return found

    return gradient


def _twice_forward(f: FlatFunction, query: Query, point: Leaves, first: Any, dtype: Any) -> Any:
    """Element by element, along a row's unit vector and then along a column's: nothing is kept in between."""
    every = tuple(sorted({*query.wrt, *query.columns}))
    scalar, chosen = scalar_alone(f, query, point, every), pick(point, every)
    _, columns = query.matrix_shape

    def along(indices: Sequence[int], position: Any) -> Leaves:
        return filled(every, query.inputs, indices, _unit(pick(point, indices), position), None)

    def row(position: Any) -> Any:
        rate = lambda moved: jax.jvp(scalar, (moved,), (along(query.wrt, position),))[1]

        def element(column: Any) -> Any:
            return jax.jvp(rate, (chosen,), (along(query.columns, column),))[1].astype(dtype)

        return jax.lax.map(element, jnp.arange(columns), batch_size=_together(columns, columns))

    return jax.lax.map(row, first + jnp.arange(query.block_rows))


def _products(linear: _Linear, like: Leaves, first: Any, query: Query, dtype: Any) -> Any:
    """The products with the unit vectors of the block's rows, a few at once."""
    elements = sum(query.matrix_shape)
    return jax.lax.map(
        lambda row: joined(linear(_unit(like, row)), dtype),
        first + jnp.arange(query.block_rows),
        batch_size=_together(query.block_rows, elements),
    )


def _unit(like: Leaves, index: Any) -> Leaves:
    """Ones at one element, counted over all leaves, and zeros elsewhere."""
    leaves, before = [], 0
    for leaf in like:
        leaves.append((jnp.arange(leaf.size) == index - before).astype(leaf.dtype).reshape(leaf.shape))
        before += leaf.size
    return tuple(leaves)


def _together(count: int, elements: int) -> int:
    """How many of `count` products with vectors of so many elements to compute at once, in equal parts."""
    most = max(1, min(TOGETHER, TOGETHER_ELEMENTS // max(1, elements)))
    return -(-count // -(-count // most))
