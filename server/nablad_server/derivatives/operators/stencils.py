"""Differences of a function's values at one point: where it is evaluated, and what is made of the values.

Steps are rounded so that x + h and x − h are numbers that the machine holds.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nablad_server.derivatives.operators.extrapolation import (
    FORWARD,
    NOISE,
    Ladder,
    best,
    default_step,
    epsilon_of,
    factors,
)
from nablad_server.derivatives.operators.leaves import FlatFunction, Leaves, outputs_alone, pick
from nablad_server.derivatives.query import Query

TOGETHER = 1024
"""At most so many evaluations at once."""

TOGETHER_ELEMENTS = 1 << 21
"""Fewer, if the points of all of them together would have more elements."""


class Move(NamedTuple):
    """A direction, with the displacements of every step of a scheme.

    Attributes:
        along: for each leaf that moves the displacements, [steps, ...].
        widths: how far along the direction each goes, [steps].
        shares: how far that is in proportion to what moves, max(|x|, 1), [steps].
    """

    along: Leaves
    widths: Any
    shares: Any


class Differences:
    """Differences of one query's function at one point."""

    def __init__(self, f: FlatFunction, query: Query, point: Leaves, step: Any, moving: Sequence[int]) -> None:
        if query.differences is None:
            raise ValueError(f"{query} asks for no finite differences")
        self._scheme, self._absolute = query.differences
        self._alone = outputs_alone(f, query, point, moving)
        self._at = pick(point, moving)
        self._step = step
        self._epsilon = epsilon_of(query)
        self.values = self._alone(self._at)

    def coordinates(self, order: int) -> Callable[[Any], Move]:
        """For the number of an element the move along it; `order` is that of the derivative."""
        steps = [
            jnp.stack([self._rounded(leaf, self._base(order) * factor, self._scale(leaf)) for factor in self._factors])
            for leaf in self._at
        ]

        def move(element: Any) -> Move:
            along, sizes, before = [], [], 0
            for leaf, step in zip(self._at, steps, strict=True):
                mask = (jnp.arange(leaf.size) == element - before).reshape(leaf.shape)
                along.append(jnp.where(mask, step, 0))
                sizes.append(jnp.sum(jnp.where(mask, jnp.maximum(jnp.abs(leaf), 1), 0), dtype=_working(leaf)))
                before += leaf.size
            widths = sum(part.reshape(len(part), -1).sum(1, dtype=_working(part)) for part in along)
            return Move(tuple(along), widths, widths / sum(sizes))

        return move

    def tangent(self, vector: Leaves, order: int) -> Move:
        """The move along a vector for each input that moves: its largest element goes as far as one alone would."""
        sizes = [
            jnp.max(jnp.abs(part) / self._scale(leaf), initial=0) for part, leaf in zip(vector, self._at, strict=True)
        ]
        largest = functools.reduce(jnp.maximum, (size.astype(_working(size)) for size in sizes))
        largest = jnp.where(largest > 0, largest, 1)
        # A power of two, by which multiplying rounds nothing.
        whole = self._base(order).astype(largest.dtype) / largest
        widths = jnp.ldexp(jnp.ones_like(whole), jnp.frexp(whole)[1] - 1) * jnp.asarray(self._factors, whole.dtype)
        along = tuple(
            (jnp.expand_dims(widths, tuple(range(1, part.ndim + 1))) * part).astype(leaf.dtype)
            for part, leaf in zip(vector, self._at, strict=True)
        )
        return Move(along, widths, widths * largest)

    def first(self, move: Move) -> tuple[Leaves, Leaves]:
        """The derivative of each output along a move, and the errors."""
        forward = self._scheme == FORWARD
        values = self._evaluated([[(1, move)]] if forward else [[(1, move)], [(-1, move)]])
        return self._best(values, [1] if forward else [1, -1], move.widths * (1 if forward else 2), move.shares)

    def second(self, one: Move, other: Move) -> tuple[Leaves, Leaves]:
        """The mixed second derivative of each output along two moves, and the errors."""
        widths, shares = one.widths * other.widths, one.shares * other.shares
        if self._scheme == FORWARD:
            values = self._evaluated([[(1, one), (1, other)], [(1, one)], [(1, other)]])
            return self._best(values, [1, -1, -1], widths, shares)
        values = self._evaluated([[(a, one), (b, other)] for a in (1, -1) for b in (1, -1)])
        return self._best(values, [1, -1, -1, 1], widths * 4, shares)

    def _evaluated(self, nodes: Sequence[Sequence[tuple[int, Move]]]) -> list[list[Any]]:
        """For each output the values at each node, [steps, ...]; a node is a sum of moves with signs."""
        # Displacements of one element are added up first: their sum and difference are exact.
        stacked = tuple(
            jnp.concatenate(
                [(leaf + sum(sign * move.along[index] for sign, move in node)).astype(leaf.dtype) for node in nodes]
            )
            for index, leaf in enumerate(self._at)
        )
        outputs = jax.vmap(self._alone)(stacked)
        return [jnp.split(output, len(nodes)) for output in outputs]

    def _best(self, values: list[list[Any]], weights: Sequence[int], widths: Any, shares: Any) -> tuple[Leaves, Leaves]:
        """The derivatives as sums of values over widths.

        What rounding may have done is estimated from the values, and from what the derivative makes of the inputs' own
        rounding: values that are zero because their terms cancel are not exact.
        """
        found = []
        for nodes, middle in zip(values, self.values, strict=True):
            terms = list(zip(weights, nodes, strict=True))
            if rest := -sum(weights):  # what the value at the point itself counts
                terms.append((rest, middle[None]))
            wide = [(weight, node.astype(_working(node))) for weight, node in terms]
            across, share = (jnp.expand_dims(part, tuple(range(1, nodes[0].ndim))) for part in (widths, shares))
            slope = sum(weight * node for weight, node in wide) / across
            noise = sum(abs(weight) * jnp.abs(node) for weight, node in wide) / across + jnp.abs(slope) / share
            found.append(best(Ladder(slope, NOISE * self._epsilon * noise), self._scheme))
        derivatives, errors = zip(*found, strict=True)
        return derivatives, errors

    @property
    def _factors(self) -> tuple[float, ...]:
        return factors(self._scheme)

    def _base(self, order: int) -> Any:
        return jnp.where(self._step > 0, self._step, default_step(self._scheme, self._epsilon, order))

    def _scale(self, leaf: Any) -> Any:
        return jnp.ones_like(leaf) if self._absolute else jnp.maximum(jnp.abs(leaf), 1)

    def _rounded(self, leaf: Any, base: Any, scale: Any) -> Any:
        """The step nearest to base · scale by which an element moves exactly, away from zero and towards it."""
        size, limits = jnp.abs(leaf), jnp.finfo(leaf.dtype)  # type: ignore[no-untyped-call]
        far = size + (base * scale).astype(leaf.dtype)
        far = jax.lax.reduce_precision(far, limits.nexp, limits.nmant)  # compilers may keep more digits of narrow ones
        return far - size

    def each(self, one: Callable[..., tuple[Leaves, Leaves]], order: int, *arrays: Any) -> tuple[Leaves, Leaves]:
        """What `one` gives for each row of some arrays, stacked along the first axis: so many at once as fit.

        `order` is that of the difference that `one` takes.
        """
        if len(arrays[0]) == 0:
            like = jax.eval_shape(one, *(jax.ShapeDtypeStruct(array.shape[1:], array.dtype) for array in arrays))
            nothing: tuple[Leaves, Leaves] = jax.tree.map(lambda spec: jnp.zeros((0, *spec.shape), spec.dtype), like)
            return nothing
        at_once = nodes(self._scheme, order) * len(self._factors)
        elements = at_once * max(1, sum(leaf.size for leaf in self._at))
        together = max(1, min(TOGETHER // at_once, TOGETHER_ELEMENTS // elements))
        given = tuple(map(jnp.asarray, arrays))
        if len(given[0]) <= together:
            return jax.vmap(one)(*given)
        found: tuple[Leaves, Leaves] = jax.lax.map(lambda row: one(*row), given, batch_size=together)
        return found


def nodes(scheme: int, order: int) -> int:
    """How many evaluations a difference of this order takes for each step, besides that at the point itself."""
    if scheme == FORWARD:
        return 1 if order == 1 else 3
    return 2 if order == 1 else 4


def _working(array: Any) -> Any:
    """The dtype in which differences are taken: that of the array, or single precision if it is narrower."""
    return jnp.promote_types(array.dtype, jnp.float32)
