"""Curvature without the Hessian: its diagonal and its trace, exact or estimated from random products."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from nablad_server.derivatives.operators.compression import PRODUCTS_TOGETHER, Product, diagonal
from nablad_server.derivatives.operators.leaves import (
    FORWARD,
    REVERSE,
    FlatFunction,
    Groups,
    Leaves,
    PointFunction,
    Specs,
    input_specs,
    pick,
    scalar_alone,
    value_and_gradient_of,
    value_specs,
)
from nablad_server.derivatives.pattern import Pattern
from nablad_server.derivatives.query import Query


def hessian_diagonal(f: FlatFunction, query: Query) -> PointFunction:
    """The value, the gradient, and ∂²f/∂xᵢ² for each element; of an estimate the standard errors, too."""

    def at(point: Leaves, extras: Leaves) -> Groups:
        chosen = pick(point, query.wrt)
        value, gradient, product = hessian_at(f, query, point)
        if query.samples:
            sample = lambda vector: jax.tree.map(jnp.multiply, vector, product(vector))
            return (value,), gradient, *_estimated(sample, chosen, extras[0], query.samples)
        return (value,), gradient, _exact_diagonal(product, chosen, query.pattern)

    return at


def laplacian(f: FlatFunction, query: Query) -> PointFunction:
    """The value, the gradient, and the trace of the Hessian; of an estimate the standard error, too."""

    def at(point: Leaves, extras: Leaves) -> Groups:
        chosen = pick(point, query.wrt)
        value, gradient, product = hessian_at(f, query, point)
        if query.samples:
            sample = lambda vector: (_dot(vector, product(vector)),)
            return (value,), gradient, *_estimated(sample, chosen, extras[0], query.samples)
        return (value,), gradient, (sum(jnp.sum(part) for part in _exact_diagonal(product, chosen, query.pattern)),)

    return at


def laplacian_results(query: Query) -> tuple[Specs, ...]:
    """The shapes of what `laplacian` gives."""
    value = value_specs(query)
    return value, input_specs(query, query.wrt), value, *((value,) if query.samples else ())


def hessian_at(f: FlatFunction, query: Query, point: Leaves) -> tuple[Any, Leaves, Product]:
    """The value, the gradient, and what multiplies the Hessian with a vector, the point's share done once."""
    chosen = pick(point, query.wrt)
    value_and_gradient = value_and_gradient_of(scalar_alone(f, query, point, query.wrt), query.mode == FORWARD)

    def split(moved: Leaves) -> tuple[Leaves, Any]:
        value, gradient = value_and_gradient(moved)
        return gradient, value

    if query.mode == REVERSE:
        gradient, pullback, value = jax.vjp(split, chosen, has_aux=True)
        return value, gradient, lambda vector: pullback(vector)[0]  # the Hessian is symmetric
    gradient, push, value = jax.linearize(split, chosen, has_aux=True)
    return value, gradient, push


def _exact_diagonal(product: Product, like: Leaves, pattern: Pattern | None) -> Leaves:
    """One product for each color of the pattern; without one for each element, a few rows of the Hessian at a time."""
    if pattern is not None:
        return diagonal(product, like, pattern)

    def of(which: int) -> Any:
        leaf = like[which]

        def element(position: Any) -> Any:
            unit = (jnp.arange(leaf.size) == position).astype(leaf.dtype).reshape(leaf.shape)
            vector = tuple(unit if index == which else jnp.zeros_like(other) for index, other in enumerate(like))
            return product(vector)[which].reshape(-1)[position]

        return jax.lax.map(element, jnp.arange(leaf.size), batch_size=PRODUCTS_TOGETHER).reshape(leaf.shape)

    return tuple(leaf if leaf.size == 0 else of(which) for which, leaf in enumerate(like))


def _estimated(sample: Callable[[Leaves], Leaves], like: Leaves, seed: Any, samples: int) -> tuple[Leaves, Leaves]:
    """The mean of `sample` over random vectors of ±1, and its standard error (Hutchinson 1990; Bekas et al. 2007).

    Mean and variance are updated from sample to sample (Welford 1962), so that memory does not grow with their number.
    """
    key = jax.random.wrap_key_data(seed, impl="threefry2x32")

    def draw(number: Any) -> Leaves:
        drawn = jax.random.fold_in(key, number)
        return tuple(
            jax.random.rademacher(jax.random.fold_in(drawn, index), leaf.shape, leaf.dtype)
            for index, leaf in enumerate(like)
        )

    def step(carried: tuple[Leaves, Leaves], number: Any) -> tuple[tuple[Leaves, Leaves], None]:
        means, squares = carried
        found = sample(draw(number))
        off = tuple(new - mean for new, mean in zip(found, means, strict=True))
        means = tuple(mean + by / (number + 1).astype(by.dtype) for mean, by in zip(means, off, strict=True))
        squares = tuple(
            square + by * (new - mean) for square, by, new, mean in zip(squares, off, found, means, strict=True)
        )
        return (means, squares), None

    zeros = jax.tree.map(lambda spec: jnp.zeros(spec.shape, spec.dtype), jax.eval_shape(sample, like))
    (means, squares), _ = jax.lax.scan(step, (zeros, zeros), jnp.arange(samples))
    return means, tuple(jnp.sqrt(square / (samples * (samples - 1))) for square in squares)


def _dot(one: Leaves, other: Leaves) -> Any:
    return sum(jnp.sum(mine * its) for mine, its in zip(one, other, strict=True))
