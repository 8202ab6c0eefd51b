"""Lines through a point along which a function is sampled: what moves, how far, and to which points.

All displacements are exact: every step is a power of two times a direction whose elements are small multiples of
powers of two, each below the element that it moves. Then x + h and x − h are numbers that the machine holds, and no
error of theirs is taken for one of the derivative.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nablad.tensors import Array

LARGEST_STEP = 1
"""The first step is 2 to this power times the size of what is moved."""


@dataclass(frozen=True, eq=False)
class Line:
    """A line through a point. Compared by identity.

    Attributes:
        name: the input whose element moves, as a number among those that can; None for a direction.
        element: which element of it, row-major; or which direction.
        along: for each input that can move the displacement at step 1, of the input's shape, in float64.
        reach: how far that is: the displacement of the element, or the largest one.
    """

    name: int | None
    element: int
    along: tuple[Array, ...]
    reach: float


def steps(epsilon: float) -> Array:
    """The steps of a sweep, largest first, in proportion to the size of what is moved, float64.

    Each is a quarter of the one before, or half where the dtype has few digits; the last still moves its
    element by some units of rounding.
    """
    digits = -math.log2(epsilon)
    stride = 2 if digits > 40 else 1
    widths: Array = np.exp2(np.arange(LARGEST_STEP, -(digits - 1), -stride))
    return widths


def scale(leaf: Array) -> Array:
    """The size of each element, a power of two of at most its magnitude; for zeros that of the largest, or 1."""
    magnitude = np.abs(leaf.astype(np.float64))
    largest = float(np.max(magnitude, initial=0.0, where=np.isfinite(magnitude)))
    filled = np.where((magnitude > 0) & np.isfinite(magnitude), magnitude, largest if largest > 0 else 1.0)
    sizes: Array = np.exp2(np.floor(np.log2(filled)))
    return sizes


def coordinate(leaves: Sequence[Array], index: int, element: int) -> Line:
    """The line along one element of one of the inputs that can move."""
    along = [np.zeros(leaf.shape) for leaf in leaves]
    reach = float(scale(leaves[index]).reshape(-1)[element])
    along[index].reshape(-1)[element] = reach
    return Line(index, element, tuple(along), reach)


def direction(leaves: Sequence[Array], number: int, random: np.random.Generator) -> Line:
    """A line along which every element moves at random, forth or back, by about its own size."""
    along = []
    for leaf in leaves:
        factors = random.choice([-1.75, -1.5, -1.25, -1.0, 1.0, 1.25, 1.5, 1.75], leaf.shape)
        along.append(factors * scale(leaf))
    reach = max((float(np.max(np.abs(part), initial=0.0)) for part in along), default=0.0)
    return Line(None, number, tuple(along), reach)


def points(leaves: Sequence[Array], line: Line, widths: Array) -> list[Array]:
    """For each input that can move its values at x + h₁v, …, x + hₖv, x − h₁v, …, x − hₖv, in its own dtype."""
    signed = np.concatenate([widths, -widths])
    return [
        (leaf.astype(np.float64) + signed.reshape(-1, *(1,) * leaf.ndim) * part).astype(leaf.dtype)
        for leaf, part in zip(leaves, line.along, strict=True)
    ]
