"""A Pattern: which elements of a matrix of derivatives can be other than zero, and how few products give them all."""

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nablad.tensors import Array
from nablad.v1 import tensor_pb2

DETECTED = tensor_pb2.PATTERN_SOURCE_DETECTED
DECLARED = tensor_pb2.PATTERN_SOURCE_DECLARED
DENSE = tensor_pb2.PATTERN_SOURCE_DENSE


@dataclass(frozen=True)
class Axis:
    """The rows, or the columns, that belong to one input or output: one for each element, in row-major order."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Coloring:
    """Which columns (or rows) one product with a vector of ones and zeros adds up, and where it leaves each element.

    The products make a compressed matrix, [colors, rows] if columns are added up and [colors, columns] if rows are.

    Attributes:
        count: how many colors there are.
        by_rows: whether rows are added up, and not columns.
        colors: the color of each column (or row), int32; -1 for one that no product needs.
        places: of each element of the pattern, where the flattened compressed matrix has it, int32. None if the pattern
            is dense and every column (or row) has its own color: then the compressed matrix is the matrix, or its
            transpose.
    """

    count: int
    by_rows: bool
    colors: Array
    places: Array | None


@dataclass(frozen=True, eq=False)
class Pattern:
    """The elements of a matrix that are kept, ordered by row, then by column. Compared by identity.

    Attributes:
        rows: what the rows are.
        columns: what the columns are.
        row_indices: of each element kept, int32.
        column_indices: of each element kept, int32.
        source: where the pattern comes from, a nablad.v1.PatternSource.
        coloring: how to compute the elements.
        reason: why the pattern is dense, if its source is DENSE.
        seconds: what finding and coloring it took.
    """

    rows: tuple[Axis, ...]
    columns: tuple[Axis, ...]
    row_indices: Array
    column_indices: Array
    source: tensor_pb2.PatternSource.ValueType
    coloring: Coloring
    reason: str = ""
    seconds: float = 0.0

    @property
    def nonzeros(self) -> int:
        """How many elements are kept."""
        return len(self.row_indices)

    @functools.cached_property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the matrix."""
        return size_of(self.rows), size_of(self.columns)

    @functools.cached_property
    def row_starts(self) -> Array:
        """Where each row begins among the elements, and after the last one their number: int32, [rows + 1]."""
        return np.searchsorted(self.row_indices, np.arange(self.shape[0] + 1)).astype(np.int32)

    @functools.cached_property
    def fingerprint(self) -> bytes:
        """Equal for equal patterns of equal axes."""
        digest = hashlib.blake2b(repr((self.rows, self.columns)).encode(), digest_size=16)
        digest.update(self.row_indices.tobytes())
        digest.update(self.column_indices.tobytes())
        return digest.digest()


def size_of(axes: Sequence[Axis]) -> int:
    """How many rows, or columns, the axes are together."""
    return sum(int(np.prod(axis.shape)) for axis in axes)


def ordered(rows: Any, columns: Any, shape: tuple[int, int], *, symmetric: bool) -> tuple[Array, Array]:
    """Row and column indices of elements given in any order, by row, then by column, each once; int32.

    `symmetric`: with every element its mirror image is kept.
    """
    rows, columns = np.asarray(rows, np.int64), np.asarray(columns, np.int64)
    keys = rows * shape[1] + columns
    if symmetric:
        keys = np.concatenate([keys, columns * shape[1] + rows])
    keys = np.unique(keys)
    return (keys // max(shape[1], 1)).astype(np.int32), (keys % max(shape[1], 1)).astype(np.int32)


def places_of(
    lines: Array, elements: Array, colors: Array, shape: tuple[int, int], *, symmetric: bool = False
) -> Array:
    """Where the compressed matrix has each element of a pattern.

    An element can be read from the product of its line's color if no other line of that color has an element there;
    of a symmetric matrix, also its mirror image.

    Args:
        lines: for each element the column (or row) that is added up with others of its color.
        elements: for each element where in the sum it lies.
        colors: of each line.
        shape: of the compressed matrix.
        symmetric: whether the matrix is.

    Raises:
        ValueError: an element is mixed with others wherever it occurs.
    """
    count, width = shape
    if count * width > np.iinfo(np.int32).max:
        raise ValueError(f"a compressed matrix of {count} × {width} elements is too large for 32-bit indices")
    places = _place(colors[lines], elements, width)
    alone = _alone(places) & (places >= 0)
    if symmetric and not alone.all():
        mirrored = _place(colors[elements], lines, width)
        # What stands at a mirror image's place are the elements that lie there: the matrix holds both.
        places = np.where(alone, places, np.where(_alone(mirrored) & (mirrored >= 0), mirrored, -1))
        alone = places >= 0
    if not alone.all():
        raise ValueError("the coloring mixes elements that it should keep apart")
    return places.astype(np.int32)


def _place(colors: Array, positions: Array, width: int) -> Array:
    return np.where(colors < 0, -1, colors.astype(np.int64) * width + positions)


def _alone(places: Array) -> Array:
    """Whether nothing else has the same place."""
    _, inverse, counts = np.unique(places, return_inverse=True, return_counts=True)
    alone: Array = counts[inverse.reshape(-1)] == 1
    return alone
