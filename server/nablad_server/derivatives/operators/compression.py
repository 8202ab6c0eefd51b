"""A sparse matrix from few products with vectors: each adds up columns (or rows) of one color, which never meet."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nablad_server.derivatives.operators.leaves import Leaves, joined
from nablad_server.derivatives.pattern import Coloring, Pattern

PRODUCTS_TOGETHER = 16
"""So many products with a matrix of derivatives are computed at once: more vectors in memory gain little."""

Product = Callable[[Leaves], Leaves]
"""What multiplies a matrix, or its transpose, with a vector."""


def elements(product: Product, like: Leaves, pattern: Pattern, dtype: Any) -> Any:
    """The elements that a pattern keeps, [nonzeros].

    Args:
        product: of the matrix if the pattern's coloring adds up columns, of its transpose if it adds up rows.
        like: what the vectors are shaped like.
        pattern: which elements, and by which products.
        dtype: of the elements.
    """
    coloring = pattern.coloring
    if not pattern.nonzeros:
        return jnp.zeros((0,), dtype)
    seeded = _seeded(like, coloring)
    compressed = _each(lambda color: joined(product(seeded(color)), dtype), coloring.count)
    if coloring.places is None:
        return (compressed if coloring.by_rows else compressed.T).reshape(-1)
    flat = compressed.reshape(-1)
    return flat.at[coloring.places].get(mode="promise_in_bounds", wrap_negative_indices=False)


def diagonal(product: Product, like: Leaves, pattern: Pattern) -> Leaves:
    """The diagonal of a symmetric matrix, shaped like the vectors: one product for each color gives all of it.

    Args:
        product: of the matrix; gives what is shaped like its vector.
        like: what the vectors are shaped like.
        pattern: of the matrix, its coloring by columns: no two that are neighbours have the same color.
    """
    coloring = pattern.coloring
    seeded, masked = _seeded(like, coloring), _masks(like, coloring)

    def some(found: Leaves, first: Any) -> tuple[Leaves, None]:
        colors = first + jnp.arange(PRODUCTS_TOGETHER, dtype=jnp.int32)  # those above the last have empty vectors
        rows = jax.vmap(lambda color: product(seeded(color)))(colors)
        masks = jax.vmap(masked)(colors)
        return tuple(
            # Chosen, not multiplied: what another color's product makes of an element may be NaN.
            jnp.where(mask.any(0), jnp.where(mask, row, 0).sum(0), leaf)
            for leaf, mask, row in zip(found, masks, rows, strict=True)
        ), None

    zeros = tuple(jnp.zeros_like(leaf) for leaf in like)
    found, _ = jax.lax.scan(some, zeros, jnp.arange(0, coloring.count, PRODUCTS_TOGETHER, dtype=jnp.int32))
    return tuple(found)


def _seeded(like: Leaves, coloring: Coloring) -> Callable[[Any], Leaves]:
    """For a color the vector that is one where it is, made in the program: all of them together would be large."""
    masks = _masks(like, coloring)
    return lambda color: tuple(mask.astype(leaf.dtype) for mask, leaf in zip(masks(color), like, strict=True))


def _masks(like: Leaves, coloring: Coloring) -> Callable[[Any], Leaves]:
    edges = np.cumsum([leaf.size for leaf in like])[:-1]
    parts = [part.reshape(leaf.shape) for part, leaf in zip(np.split(coloring.colors, edges), like, strict=True)]
    return lambda color: tuple(jnp.asarray(part) == color for part in parts)


def _each(of: Callable[[Any], Any], count: int) -> Any:
    colors = jnp.arange(count, dtype=jnp.int32)
    if count <= PRODUCTS_TOGETHER:
        return jax.vmap(of)(colors)
    return jax.lax.map(of, colors, batch_size=PRODUCTS_TOGETHER)
