"""Sparse matrices of derivatives. SciPy is needed for `SparseMatrix.to_scipy` alone."""

import functools
import importlib.util
import threading
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np

from nablad.tensors import Array, to_array
from nablad.v1 import tensor_pb2

MAX_PATTERNS = 64
"""Patterns kept by one client."""

_SOURCES = {
    tensor_pb2.PATTERN_SOURCE_DETECTED: "detected",
    tensor_pb2.PATTERN_SOURCE_DECLARED: "declared",
    tensor_pb2.PATTERN_SOURCE_DENSE: "dense",
}


@dataclass(frozen=True, slots=True)
class MatrixAxis:
    """The rows, or the columns, of a matrix that belong to one input or output: one for each element, row-major.

    Attributes:
        name: of the input or the output.
        shape: its shape.
    """

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Sparsity:
    """Which elements of a matrix of derivatives can be other than zero, at whatever point.

    The elements are ordered by row, then by column. Their arrays are shared by all results, and read-only.

    Attributes:
        rows: what the rows are: outputs of a Jacobian, inputs of a Hessian.
        columns: what the columns are: inputs.
        row_indices: of each element, int32.
        column_indices: of each element, int32.
        row_starts: where each row begins among the elements, and after the last one their number, int32.
        colors: how many products with vectors give all elements.
        source: `detected` in the function's operations, `declared` with it, or `dense`: every element is kept.
        reason: why it is dense.
        fingerprint: equal for equal patterns.
        seconds: what finding it took, as `Client.sparsity` tells; None elsewhere.
    """

    rows: tuple[MatrixAxis, ...]
    columns: tuple[MatrixAxis, ...]
    row_indices: Array
    column_indices: Array
    row_starts: Array
    colors: int
    source: str
    reason: str
    fingerprint: bytes
    seconds: float | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the matrix."""
        return len(self.row_starts) - 1, sum(int(np.prod(axis.shape)) for axis in self.columns)

    @property
    def nonzeros(self) -> int:
        """How many elements are kept."""
        return len(self.row_indices)


@dataclass(frozen=True, slots=True, eq=False)
class SparseMatrix:
    """A sparse matrix of derivatives, or one for each point.

    Attributes:
        sparsity: which elements are kept.
        values: the elements, [points?] + [nonzeros].
    """

    sparsity: Sparsity
    values: Array

    @property
    def shape(self) -> tuple[int, ...]:
        """[points?] + [rows, columns]."""
        return *self.values.shape[:-1], *self.sparsity.shape

    def to_dense(self) -> Array:
        """The matrix with its zeros: [points?] + [rows, columns]."""
        dense = np.zeros(self.shape, self.values.dtype)
        dense[..., self.sparsity.row_indices, self.sparsity.column_indices] = self.values
        return dense

    def to_scipy(self) -> Any:
        """The matrix as a `scipy.sparse.csr_array` of its own; a list of them if the call was about many points.

        Raises:
            ImportError: SciPy is not installed.
        """
        from scipy.sparse import csr_array  # noqa: PLC0415 - optional: nothing else here needs it

        pattern = self.sparsity
        matrices = [
            csr_array((values, pattern.column_indices, pattern.row_starts), shape=pattern.shape, copy=True)
            for values in self.values.reshape(-1, pattern.nonzeros)
        ]
        return matrices if self.values.ndim > 1 else matrices[0]


def native(matrix: SparseMatrix) -> Any:
    """The matrix as SciPy's, or a list of them for many points; as it is where SciPy is not installed."""
    return matrix.to_scipy() if _has_scipy() else matrix


@functools.cache
def _has_scipy() -> bool:
    return importlib.util.find_spec("scipy") is not None


def sparsity(pattern: tensor_pb2.SparsityPattern, seconds: float | None = None) -> Sparsity:
    """A pattern, read."""
    return Sparsity(
        matrix_axes(pattern.rows),
        matrix_axes(pattern.columns),
        _indices(pattern.row_indices),
        _indices(pattern.column_indices),
        _indices(pattern.row_starts),
        pattern.colors,
        _SOURCES.get(pattern.source, f"source_{pattern.source}"),  # of a server newer than this client
        pattern.reason,
        pattern.fingerprint,
        seconds,
    )


def _indices(tensor: tensor_pb2.Tensor) -> Array:
    array = to_array(tensor)
    array.setflags(write=False)
    return array


def matrix_axes(axes: Any) -> tuple[MatrixAxis, ...]:
    """What the rows, or the columns, of a matrix are, read."""
    return tuple(MatrixAxis(axis.name, tuple(axis.shape)) for axis in axes)


class Patterns:
    """The patterns that a client was told: it need not be told again. Safe to share between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: OrderedDict[Hashable, Sparsity] = OrderedDict()

    def find(self, key: Hashable) -> Sparsity | None:
        """The pattern that the last matrix of this kind had."""
        with self._lock:
            found = self._known.get(key)
            if found is not None:
                self._known.move_to_end(key)
            return found

    def matrix(self, key: Hashable, known: Sparsity | None, response: tensor_pb2.SparseMatrix) -> SparseMatrix:
        """A matrix, read. `known`: the pattern that the request said is known."""
        if response.HasField("pattern") or known is None:
            known = sparsity(response.pattern)
            with self._lock:
                self._known[key] = known
                self._known.move_to_end(key)
                while len(self._known) > MAX_PATTERNS:
                    self._known.popitem(last=False)
        return SparseMatrix(known, to_array(response.values))
