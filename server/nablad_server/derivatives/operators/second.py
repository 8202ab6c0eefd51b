"""Second derivatives: Hessian, its diagonal, and its products with vectors."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from nablad_server.derivatives.operators.curvature import hessian_diagonal
from nablad_server.derivatives.operators.leaves import (
    FORWARD,
    REVERSE,
    FlatFunction,
    Groups,
    Leaves,
    PointFunction,
    Specs,
    each,
    filled,
    input_specs,
    pick,
    scalar_alone,
    value_and_gradient_of,
    value_specs,
)
from nablad_server.derivatives.query import Query
from nablad_server.functions.signature import ArraySpec


def hessian(f: FlatFunction, query: Query) -> PointFunction:
    """The value, the gradient, and a block for each pair of inputs; or the diagonal."""
    if query.diagonal:
        return hessian_diagonal(f, query)
    outer = jax.jacrev if query.mode == REVERSE else jax.jacfwd

    def at(point: Leaves, _: Leaves) -> Groups:
        def rows(columns: Leaves) -> tuple[Leaves, tuple[Any, Leaves]]:
            moved = list(point)
            for index, leaf in zip(query.columns, columns, strict=True):
                moved[index] = leaf
            scalar = scalar_alone(f, query, tuple(moved), query.wrt)
            value, gradient = value_and_gradient_of(scalar, query.mode == FORWARD)(pick(moved, query.wrt))
            return gradient, (value, gradient)

        blocks, (value, gradient) = outer(rows, has_aux=True)(pick(point, query.columns))
        return (value,), gradient, tuple(block for row in blocks for block in row)

    return at


def hessian_product(gradient: Callable[[Leaves], Leaves], chosen: Leaves, tangent: Leaves, reverse: bool) -> Leaves:
    """Hessian times tangent: the derivative of the gradient along it, or the gradient of gradient · tangent."""
    product: Leaves
    if reverse:
        _, pullback = jax.vjp(gradient, chosen)
        (product,) = pullback(tangent)  # the Hessian is symmetric
    else:
        _, product = jax.jvp(gradient, (chosen,), (tangent,))
    return product


def hvp(f: FlatFunction, query: Query) -> PointFunction:
    """The value, the gradient, and the Hessian times tangents."""

    def at(point: Leaves, vectors: Leaves) -> Groups:
        chosen = pick(point, query.wrt)
        scalar = scalar_alone(f, query, point, query.wrt)
        value_and_gradient = value_and_gradient_of(scalar, query.mode == FORWARD)
        tangent = filled(query.wrt, query.inputs, query.vectors, vectors, query.stack)
        if query.stack is None and query.mode != REVERSE:
            (value, gradient), (_, product) = jax.jvp(value_and_gradient, (chosen,), (tangent,))
            return (value,), gradient, product
        value, gradient = value_and_gradient(chosen)
        one = lambda vector: hessian_product(
            lambda moved: value_and_gradient(moved)[1], chosen, vector, query.mode == REVERSE
        )
        return (value,), gradient, each(one, query.stack)(tangent)

    return at


def hessian_results(query: Query) -> tuple[Specs, ...]:
    """The shapes of what `hessian` gives."""
    rows = input_specs(query, query.wrt)
    if query.diagonal:
        return value_specs(query), rows, rows, *((rows,) if query.samples else ())
    columns = input_specs(query, query.columns)
    blocks = tuple(
        ArraySpec(row.shape + column.shape, jnp.promote_types(row.dtype, column.dtype))
        for row in rows
        for column in columns
    )
    return value_specs(query), rows, blocks
