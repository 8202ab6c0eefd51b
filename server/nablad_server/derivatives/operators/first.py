"""First derivatives: gradient, Jacobian, products with vectors, rates of change."""

from typing import Any

import jax
import jax.numpy as jnp

from nablad_server.derivatives.operators.leaves import (
    FORWARD,
    REVERSE,
    FlatFunction,
    Groups,
    Leaves,
    PointFunction,
    Specs,
    each,
    input_specs,
    outputs_alone,
    pick,
    scalar_alone,
    value_and_gradient_of,
    value_specs,
)
from nablad_server.derivatives.query import Query
from nablad_server.functions.signature import ArraySpec


def evaluate(f: FlatFunction, query: Query) -> PointFunction:
    """The outputs themselves."""
    return lambda point, _: (pick(f(point), query.outputs),)


def gradient(f: FlatFunction, query: Query) -> PointFunction:
    """The value and ∇f."""

    def at(point: Leaves, _: Leaves) -> Groups:
        scalar = scalar_alone(f, query, point, query.wrt)
        value, found = value_and_gradient_of(scalar, query.mode == FORWARD)(pick(point, query.wrt))
        return (value,), found

    return at


def is_forward(query: Query) -> bool:
    """Whether a Jacobian is accumulated column by column: it costs as many passes as there are columns, or rows."""
    rows, columns = query.matrix_shape
    return query.mode == FORWARD or (query.mode != REVERSE and columns <= rows)


def jacobian(f: FlatFunction, query: Query) -> PointFunction:
    """The values and a block for each pair of output and input."""
    transform = jax.jacfwd if is_forward(query) else jax.jacrev

    def at(point: Leaves, _: Leaves) -> Groups:
        alone = outputs_alone(f, query, point, query.wrt)

        def twice(chosen: Leaves) -> tuple[Leaves, Leaves]:
            values = alone(chosen)
            return values, values

        blocks, values = transform(twice, has_aux=True)(pick(point, query.wrt))
        return values, tuple(block for row in blocks for block in row)

    return at


def jvp(f: FlatFunction, query: Query) -> PointFunction:
    """The values and the Jacobian times tangents."""

    def at(point: Leaves, vectors: Leaves) -> Groups:
        alone = outputs_alone(f, query, point, query.vectors)
        chosen = pick(point, query.vectors)
        if query.stack is None:
            return jax.jvp(alone, (chosen,), (vectors,))
        values, push = jax.linearize(alone, chosen)
        return values, each(push, query.stack)(vectors)

    return at


def vjp(f: FlatFunction, query: Query) -> PointFunction:
    """The values and cotangents times the Jacobian."""

    def at(point: Leaves, vectors: Leaves) -> Groups:
        values, pullback = jax.vjp(outputs_alone(f, query, point, query.wrt), pick(point, query.wrt))
        one = lambda cotangent: pullback(cotangent)[0]
        return values, each(one, query.stack)(vectors)

    return at


def directional_derivative(f: FlatFunction, query: Query) -> PointFunction:
    """The value, ∇f · u, ∇f / ‖∇f‖ and ‖∇f‖."""

    def at(point: Leaves, vectors: Leaves) -> Groups:
        scalar = scalar_alone(f, query, point, query.vectors)
        value, gradient = jax.value_and_grad(scalar)(pick(point, query.vectors))
        unit, _ = _normalised(vectors)
        ascent, rate = _normalised(gradient)
        derivative = sum(jnp.sum(part * along) for part, along in zip(gradient, unit, strict=True))
        return (value,), (derivative,), ascent, (rate,)

    return at


def _normalised(vector: Leaves) -> tuple[Leaves, Any]:
    """The vector over its Euclidean length, and the length. A zero vector stays zero.

    Scaled by the largest element first, so that squares neither overflow nor vanish.
    """
    largest = jnp.max(jnp.stack([jnp.max(jnp.abs(part), initial=0) for part in vector]))
    scale = jnp.where(largest > 0, largest, 1)
    scaled = tuple(part / scale for part in vector)
    length = jnp.sqrt(sum(jnp.sum(part * part) for part in scaled))
    divisor = jnp.where(length > 0, length, 1)
    return tuple((part / divisor).astype(part.dtype) for part in scaled), length * scale


def jacobian_results(query: Query) -> tuple[Specs, ...]:
    """The shapes of what `jacobian` gives."""
    blocks = tuple(
        ArraySpec(row.shape + column.shape, jnp.promote_types(row.dtype, column.dtype))
        for row in value_specs(query)
        for column in input_specs(query, query.wrt)
    )
    return value_specs(query), blocks
