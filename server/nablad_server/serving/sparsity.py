"""Sparsity patterns on their way into queries, and onto the wire."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from nablad.errors import NabladError
from nablad.framing import delimited
from nablad.tensors import to_tensor
from nablad.v1 import function_pb2, tensor_pb2
from nablad_server.derivatives.pattern import Axis, Pattern
from nablad_server.derivatives.patterns import Patterns
from nablad_server.derivatives.query import Query
from nablad_server.serving.limits import OWNER

AIDED_ELEMENTS = 64
"""The exact diagonal of a Hessian is computed by colors from more elements on: of fewer it takes a moment anyway."""

_T = TypeVar("_T")

_encoded: WeakKeyDictionary[Pattern, bytes] = WeakKeyDictionary()


class Pending(Exception):
    """A request cannot be read yet, because a pattern has to be found first.

    Attributes:
        query: whose pattern it is.
    """

    def __init__(self, query: Query) -> None:
        super().__init__(str(query))
        self.query = query


def with_pattern(query: Query, patterns: Patterns) -> Query:
    """The query with its pattern, if it needs one or is helped by one.

    Raises:
        Pending: the pattern is not known yet.
        NabladError: a sparse matrix is asked for, and there is no pattern to be had.
    """
    if query.sparse:
        return replace(query, pattern=_known(query, patterns))
    diagonal = query.diagonal or query.operator == function_pb2.OPERATOR_LAPLACIAN
    if not diagonal or query.samples or query.matrix_shape[1] <= AIDED_ELEMENTS:
        return query
    try:
        return replace(query, pattern=_known(query, patterns))
    except NabladError:  # then the diagonal is computed without one
        return query


def _known(query: Query, patterns: Patterns) -> Pattern:
    pattern = patterns.find(query)
    if pattern is None:
        raise Pending(query)
    return pattern


def when_known(read: Callable[[], _T], patterns: Patterns, timeout: float) -> _T:
    """What `read` makes of a request, once the patterns that it needs are found. Blocks.

    Raises:
        DeadlineExceeded: they are not there after `timeout` seconds.
        NabladError: as `read`.
    """
    finish_by = time.monotonic() + timeout
    while True:
        try:
            return read()
        except Pending as pending:
            query = pending.query
        patterns.settle(query, finish_by - time.monotonic(), OWNER.get())


def message(pattern: Pattern, *, indices: bool = True) -> tensor_pb2.SparsityPattern:
    """The pattern as it travels, with its indices or without."""
    arrays: dict[str, Any] = {}
    if indices:
        for name in ("row_indices", "column_indices", "row_starts"):
            arrays[name] = to_tensor(getattr(pattern, name))
    return tensor_pb2.SparsityPattern(
        fingerprint=pattern.fingerprint,
        rows=axes_message(pattern.rows),
        columns=axes_message(pattern.columns),
        colors=pattern.coloring.count,
        source=pattern.source,
        reason=pattern.reason,
        **arrays,
    )


def pattern_bytes(query: Query) -> int:
    """About how many bytes the pattern of a query takes in a response."""
    pattern = query.pattern
    return 0 if pattern is None else 8 * pattern.nonzeros + 4 * pattern.shape[0]


def encoded(pattern: Pattern) -> bytes:
    """The field `pattern` of a SparseMatrix, encoded once for all responses."""
    found = _encoded.get(pattern)
    if found is None:
        number = tensor_pb2.SparseMatrix.PATTERN_FIELD_NUMBER
        found = _encoded[pattern] = delimited(number, message(pattern).SerializeToString())
    return found


def axes_message(axes: Sequence[Axis]) -> list[tensor_pb2.MatrixAxis]:
    """What the rows, or the columns, of a matrix are, as it travels."""
    return [tensor_pb2.MatrixAxis(name=axis.name, shape=axis.shape) for axis in axes]
