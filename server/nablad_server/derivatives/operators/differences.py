"""Derivatives by finite differences of a function's values: what automatic differentiation is not needed for.

All evaluations that a result takes are stacked, so that a program is a map over them; no more run at once than fit into
a bounded amount of memory.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nablad.tensors import Array
from nablad.v1 import function_pb2
from nablad_server.derivatives.operators.extrapolation import factors
from nablad_server.derivatives.operators.leaves import (
    FlatFunction,
    Groups,
    Leaves,
    PointFunction,
)
from nablad_server.derivatives.operators.stencils import Differences, nodes
from nablad_server.derivatives.query import Query

_Shapes = Sequence[tuple[int, ...]]


def evaluations(query: Query) -> int:
    """How often the function is evaluated for one point, that at the point itself included."""
    if query.differences is None:
        raise ValueError(f"{query} asks for no finite differences")
    scheme = query.differences.scheme
    steps, stack = len(factors(scheme)), 1 if query.stack is None else query.stack
    first, second = nodes(scheme, 1) * steps, nodes(scheme, 2) * steps
    if query.operator == function_pb2.OPERATOR_JVP:
        return 1 + stack * first
    elements = sum(query.inputs[index].size for index in query.wrt)
    if query.operator == function_pb2.OPERATOR_HVP:
        return 1 + elements * (first + stack * second)
    if query.operator == function_pb2.OPERATOR_HESSIAN:
        return 1 + elements * first + len(_pairs(query)[0]) * second
    return 1 + elements * first


def gradient(f: FlatFunction, query: Query) -> PointFunction:
    """The value, ∇f, and the errors of ∇f."""

    def at(point: Leaves, extras: Leaves) -> Groups:
        differences = Differences(f, query, point, extras[-1], query.wrt)
        return differences.values, *_gradient(differences, query, point)

    return at


def jacobian(f: FlatFunction, query: Query) -> PointFunction:
    """The values, a block for each pair of output and input, and the errors of the blocks."""

    def at(point: Leaves, extras: Leaves) -> Groups:
        differences = Differences(f, query, point, extras[-1], query.wrt)
        found = _along_elements(differences, query, query.wrt)
        shapes = [point[index].shape for index in query.wrt]
        blocks = [tuple(part for columns in group for part in _cut(columns, shapes)) for group in found]
        return differences.values, *blocks

    return at


def jvp(f: FlatFunction, query: Query) -> PointFunction:
    """The values, the Jacobian times tangents, and the errors of the products."""

    def at(point: Leaves, vectors: Leaves) -> Groups:
        differences = Differences(f, query, point, vectors[-1], query.vectors)

        def one(*tangent: Any) -> tuple[Leaves, Leaves]:
            return differences.first(differences.tangent(tangent, 1))

        if query.stack is None:
            return differences.values, *one(*vectors[:-1])
        return differences.values, *differences.each(one, 1, *vectors[:-1])

    return at


def hessian(f: FlatFunction, query: Query) -> PointFunction:
    """The value, the gradient, a block for each pair of inputs, and the errors of the blocks.

    An element is computed once for itself and its mirror image.
    """
    rows, columns, places = _pairs(query)

    def at(point: Leaves, extras: Leaves) -> Groups:
        differences = Differences(f, query, point, extras[-1], _moving(query))
        move = differences.coordinates(2)
        second = lambda row, column: differences.second(move(row), move(column))
        matrices = [group[0][places] for group in differences.each(second, 2, rows, columns)]
        across = [point[index].shape for index in query.columns]
        down = [point[index].shape for index in query.wrt]
        blocks = [
            tuple(block for band in _cut(matrix.T, down) for block in _cut(jnp.moveaxis(band, 0, -1), across))
            for matrix in matrices
        ]
        found, _ = _gradient(differences, query, point)
        return differences.values, found, *blocks

    return at


def hvp(f: FlatFunction, query: Query) -> PointFunction:
    """The value, the gradient, the Hessian times tangents, and the errors of the products."""

    def at(point: Leaves, vectors: Leaves) -> Groups:
        differences = Differences(f, query, point, vectors[-1], query.wrt)
        move = differences.coordinates(2)
        shapes = [point[index].shape for index in query.wrt]

        def one(*given: Any) -> tuple[Leaves, Leaves]:
            known = dict(zip(query.vectors, given, strict=True))
            along = differences.tangent(tuple(known.get(index, jnp.zeros_like(point[index])) for index in query.wrt), 2)
            second = lambda element: differences.second(move(element), along)
            (product,), (errors,) = differences.each(second, 2, _elements(query, query.wrt, query.wrt))
            return _cut(product, shapes), _cut(errors, shapes)

        found, _ = _gradient(differences, query, point)
        if query.stack is None:
            return differences.values, found, *one(*vectors[:-1])
        # One after the other: each is many evaluations at once already.
        products = jax.lax.map(lambda given: one(*given), tuple(vectors[:-1]))
        return differences.values, found, *products

    return at


def _gradient(differences: Differences, query: Query, point: Leaves) -> tuple[Leaves, Leaves]:
    """The gradient of the one output, and its errors."""
    shapes = [point[index].shape for index in query.wrt]
    (found,), (errors,) = _along_elements(differences, query, _moving(query))
    return _cut(found, shapes), _cut(errors, shapes)


def _along_elements(differences: Differences, query: Query, moving: Sequence[int]) -> tuple[Leaves, Leaves]:
    """Of each output the derivative with respect to each element of `wrt`, the elements last; and the errors."""
    move = differences.coordinates(1)
    found = differences.each(lambda element: differences.first(move(element)), 1, _elements(query, query.wrt, moving))
    last: tuple[Leaves, Leaves] = jax.tree.map(lambda columns: jnp.moveaxis(columns, 0, -1), found)
    return last


def _moving(query: Query) -> tuple[int, ...]:
    """The inputs of the rows and of the columns."""
    return tuple(dict.fromkeys((*query.wrt, *query.columns)))


def _elements(query: Query, indices: Sequence[int], moving: Sequence[int]) -> Array:
    """The numbers of the elements of some inputs, counted over all that move."""
    starts = dict(zip(moving, np.cumsum([0, *(query.inputs[index].size for index in moving)]), strict=False))
    return np.concatenate([starts[index] + np.arange(query.inputs[index].size) for index in indices]).astype(np.int32)


def _pairs(query: Query) -> tuple[Array, Array, Array]:
    """The pairs of elements of a Hessian, each once, and for each of its elements the number of its pair."""
    moving = _moving(query)
    rows, columns = (_elements(query, indices, moving) for indices in (query.wrt, query.columns))
    low, high = np.minimum.outer(rows, columns), np.maximum.outer(rows, columns)
    count = max(1, sum(query.inputs[index].size for index in moving))
    unique, places = np.unique(low.astype(np.int64) * count + high, return_inverse=True)
    first, second = np.divmod(unique, count)
    return first.astype(np.int32), second.astype(np.int32), places.reshape(low.shape).astype(np.int32)


def _cut(elements: Any, shapes: _Shapes) -> Leaves:
    """The parts along the last axis, each in its shape there."""
    edges = np.cumsum([math.prod(shape) for shape in shapes])[:-1]
    parts = jnp.split(elements, edges.tolist(), axis=-1)
    return tuple(part.reshape(*part.shape[:-1], *shape) for part, shape in zip(parts, shapes, strict=True))
