"""Sparse matrices in the client's hands, and what it remembers of their patterns."""

import subprocess
import sys

import numpy as np
import pytest
from numpy.typing import ArrayLike
from scipy import sparse as scipy_sparse

import nablad
from nablad.sparse import MAX_PATTERNS, Patterns, sparsity
from nablad.tensors import to_tensor
from nablad.v1 import tensor_pb2

DENSE = np.array([[1.0, 0, 2], [0, 0, 0], [0, 3, 0], [4, 5, 6]])
VALUES = DENSE[np.nonzero(DENSE)]


def pattern(fingerprint: bytes = b"one") -> tensor_pb2.SparsityPattern:
    rows, columns = np.nonzero(DENSE)
    starts = np.searchsorted(rows, np.arange(len(DENSE) + 1))
    return tensor_pb2.SparsityPattern(
        fingerprint=fingerprint,
        rows=[tensor_pb2.MatrixAxis(name="y", shape=[2, 2])],
        columns=[tensor_pb2.MatrixAxis(name="x", shape=[2]), tensor_pb2.MatrixAxis(name="w")],
        row_indices=to_tensor(rows.astype(np.int32)),
        column_indices=to_tensor(columns.astype(np.int32)),
        row_starts=to_tensor(starts.astype(np.int32)),
        colors=3,
        source=tensor_pb2.PATTERN_SOURCE_DECLARED,
    )


def message(fingerprint: bytes | None = b"one", values: ArrayLike = VALUES) -> tensor_pb2.SparseMatrix:
    sent = None if fingerprint is None else pattern(fingerprint)
    return tensor_pb2.SparseMatrix(pattern=sent, values=to_tensor(values))


def test_a_matrix_in_every_form() -> None:
    matrix = Patterns().matrix("key", None, message())
    assert matrix.shape == (4, 3)
    assert matrix.to_dense().tolist() == DENSE.tolist()
    made = matrix.to_scipy()
    assert isinstance(made, scipy_sparse.csr_array)
    assert made.toarray().tolist() == DENSE.tolist()
    assert made.has_canonical_format
    found = matrix.sparsity
    assert (found.shape, found.nonzeros, found.colors, found.source) == ((4, 3), 6, 3, "declared")
    assert [(axis.name, axis.shape) for axis in found.columns] == [("x", (2,)), ("w", ())]


def test_matrices_of_many_points() -> None:
    values = np.stack([VALUES, -VALUES])
    matrix = Patterns().matrix("key", None, message(values=values))
    assert matrix.shape == (2, 4, 3)
    assert matrix.to_dense().tolist() == [DENSE.tolist(), (-DENSE).tolist()]
    assert [each.toarray().tolist() for each in matrix.to_scipy()] == [DENSE.tolist(), (-DENSE).tolist()]


def test_a_scipy_matrix_is_the_caller_s_own() -> None:
    matrix = Patterns().matrix("key", None, message())
    made = matrix.to_scipy()
    made.data[:] = 0
    made.eliminate_zeros()
    assert matrix.to_dense().tolist() == DENSE.tolist()
    with pytest.raises(ValueError, match="read-only"):
        matrix.sparsity.row_indices[0] = 1


def test_a_pattern_is_remembered_until_another_one_comes() -> None:
    patterns = Patterns()
    first = patterns.matrix("key", None, message(b"one")).sparsity
    assert patterns.find("key") is first
    assert patterns.matrix("key", first, message(None)).sparsity is first
    second = patterns.matrix("key", first, message(b"two")).sparsity  # the server has another version of the function
    assert second.fingerprint == b"two"
    assert patterns.find("key") is second
    assert patterns.find("another key") is None


def test_only_so_many_patterns_are_remembered() -> None:
    patterns = Patterns()
    for number in range(MAX_PATTERNS):
        patterns.matrix(number, None, message())
    kept = patterns.find(0)
    patterns.matrix("one more", None, message())
    assert patterns.find(0) is kept
    assert patterns.find(1) is None


def test_a_source_that_is_newer_than_this_client_is_named_by_its_number() -> None:
    newer = pattern()
    newer.source = 99  # type: ignore[assignment]  # as a newer server would
    assert sparsity(newer).source == "source_99"


def test_only_the_conversion_needs_scipy() -> None:
    code = (
        "import sys; sys.modules['scipy'] = None; sys.modules['scipy.sparse'] = None\n"
        "import numpy as np, nablad\n"
        "found = nablad.Sparsity((), (nablad.MatrixAxis('x', (2,)),), np.array([0]), np.array([1]), np.array([0, 1]),"
        " 1, 'detected', '', b'')\n"
        "matrix = nablad.SparseMatrix(found, np.array([5.0]))\n"
        "print(matrix.to_dense().tolist())\n"
        "try:\n    matrix.to_scipy()\nexcept ImportError:\n    print('no scipy')\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["[[0.0, 5.0]]", "no scipy"]


def test_the_public_names() -> None:
    assert {"SparseMatrix", "Sparsity"} <= set(nablad.__all__)
