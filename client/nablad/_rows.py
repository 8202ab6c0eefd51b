"""A matrix that comes in blocks of rows: what to ask for, where rows go, what to do when the stream breaks. Pure."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from google.protobuf.message import DecodeError

from nablad import results
from nablad._arguments import Arguments, arrays
from nablad._calls import Mode, Names, Prepared, common, mode_number, output_names
from nablad._channel import ATTEMPTS, BACKOFF_SECONDS
from nablad.errors import Internal, InvalidArgument, NabladError, Unavailable
from nablad.framing import LENGTH, VARINT, Field, fields
from nablad.sparse import MatrixAxis, matrix_axes
from nablad.tensors import Array, read
from nablad.v1 import differentiation_pb2 as pb
from nablad.v1 import tensor_pb2

SERVICE = pb.DESCRIPTOR.services_by_name["DifferentiationService"].full_name
CLOSED = "the stream of rows is not open; use it within its `with` block"
CLIENT_CLOSED = "the client was closed"
ENDED = "the server ended the stream before it had sent every row"
TAKEN = "some rows were taken from the stream already; either iterate over it, or read all of it at once"

_HEADER, _BLOCK = pb.StreamHessianResponse.HEADER_FIELD_NUMBER, pb.StreamHessianResponse.BLOCK_FIELD_NUMBER
"""The parts of a response are numbered alike in both."""
_FIRST_ROW, _TENSOR = pb.RowBlock.FIRST_ROW_FIELD_NUMBER, pb.RowBlock.TENSOR_FIELD_NUMBER
_NON_FINITE, _DATA = pb.RowBlock.NON_FINITE_FIELD_NUMBER, tensor_pb2.Tensor.DATA_FIELD_NUMBER

Progress = Callable[[int, int], object]
"""Told how many rows are there, and how many there will be."""


class Head(NamedTuple):
    """What comes before the rows: as in results.Hessian; a Jacobian has no gradient."""

    value: Any
    gradient: Any
    non_finite: bool
    execution: results.Execution


def _hessian(
    info: results.FunctionInfo, function: str, positional: Sequence[Any], named: Mapping[str, Any],
    *, wrt: Names, columns: Names, output: str | None, mode: Mode,
) -> Prepared[Head]:  # fmt: skip
    """Second derivatives of a scalar output."""
    arguments = Arguments.bind(info, positional, named)
    rows = arguments.choose(wrt)
    request = pb.StreamHessianRequest(
        function=function, inputs=arguments.tensors(False), wrt=rows.leaves,
        columns=() if columns is None else arguments.choose(columns).leaves, output=output or "",
        mode=mode_number(mode),
    )  # fmt: skip

    def head(header: pb.MatrixHeader) -> Head:
        value, flagged, execution = common(header, header.values, header.gradients)
        return Head(value, rows.arrange(arrays(header.gradients)), flagged, execution)

    return Prepared(request, head)


def _jacobian(
    info: results.FunctionInfo, function: str, positional: Sequence[Any], named: Mapping[str, Any],
    *, wrt: Names, outputs: Names, mode: Mode,
) -> Prepared[Head]:  # fmt: skip
    """First derivatives of any outputs."""
    arguments = Arguments.bind(info, positional, named)
    request = pb.StreamJacobianRequest(
        function=function, inputs=arguments.tensors(False), wrt=arguments.choose(wrt).leaves,
        outputs=output_names(info, outputs), mode=mode_number(mode),
    )  # fmt: skip

    def head(header: pb.MatrixHeader) -> Head:
        value, flagged, execution = common(header, header.values)
        return Head(value, None, flagged, execution)

    return Prepared(request, head)


@dataclass(frozen=True)
class Matrix:
    """A kind of matrix.

    Attributes:
        method: of the RPC.
        prepare: makes the request, once the function's description is known.
    """

    method: str
    prepare: Callable[..., Prepared[Head]]


HESSIAN = Matrix("StreamHessian", _hessian)
JACOBIAN = Matrix("StreamJacobian", _jacobian)


@dataclass(frozen=True)
class Question:
    """What a caller asks for, before the function's description is known."""

    matrix: Matrix
    function: str
    positional: Sequence[Any]
    named: Mapping[str, Any]
    options: Mapping[str, Any]
    timeout: float | None

    def prepared(self, info: results.FunctionInfo) -> Prepared[Head]:
        """The request. Raises InvalidArgument if the arguments do not fit the function."""
        return self.matrix.prepare(info, self.function, self.positional, self.named, **self.options)


@dataclass(frozen=True, slots=True)
class Rows:
    """A block as it came: its elements are the message's bytes from `start` to `stop`."""

    first: int
    count: int
    message: bytes
    start: int
    stop: int
    non_finite: bool


class Opened:
    """What is known of a matrix as soon as its stream is open.

    Attributes:
        shape: how many rows and columns it has.
        dtype: of its elements.
        rows: the inputs (Hessian) or outputs (Jacobian) that the rows belong to, in their order.
        columns: the inputs that the columns belong to.
        total_bytes: of all of it.
        value: of what is differentiated, as the client's `hessian` and `jacobian` give it.
        gradient: of a Hessian with respect to the rows' inputs, likewise; None for a Jacobian.
        non_finite: whether an element that has come so far is NaN or infinite, value and gradient included.
        execution: how the value came about.
    """

    shape: tuple[int, int]
    dtype: np.dtype[Any]
    rows: tuple[MatrixAxis, ...]
    columns: tuple[MatrixAxis, ...]
    total_bytes: int
    value: Any
    gradient: Any
    non_finite: bool
    execution: results.Execution

    def _describe_as(self, header: pb.MatrixHeader, head: Head) -> None:
        self.shape = header.row_count, header.column_count
        self.dtype = read(tensor_pb2.Tensor(dtype=header.dtype, shape=[0]), "header").dtype
        self.rows, self.columns = matrix_axes(header.rows), matrix_axes(header.columns)
        self.total_bytes = header.total_bytes
        self.value, self.gradient, self.non_finite, self.execution = head


class Reading:
    """How far the reading of a matrix has come.

    Attributes:
        header: what is to come; None until it is there.
        next_row: the first row that has not come.
    """

    def __init__(self, prepared: Prepared[Head], retries: bool, deadline: float) -> None:
        """`deadline` is on the clock of whoever asks for `remaining`; infinite if there is none."""
        self._prepared = prepared
        self._retries = retries
        self._deadline = deadline
        self._failures = 0
        self.header: pb.MatrixHeader | None = None
        self.next_row = 0

    @property
    def done(self) -> bool:
        """Whether every row has come."""
        return self.header is not None and self.next_row == self.header.row_count

    @property
    def head(self) -> Head:
        """The header, once it is there, read."""
        return self._prepared.read(self.header)

    def request(self) -> bytes:
        """Asks for the rows that are missing: of the very version of the function that gave the others."""
        request: Any = self._prepared.request
        if self.header is not None:
            request.function = self.header.execution.function
            request.first_row = self.next_row
        data: bytes = request.SerializeToString()
        return data

    def remaining(self, now: float) -> float | None:
        """Seconds until the deadline; None if there is none."""
        return None if self._deadline == float("inf") else max(0.0, self._deadline - now)

    def pause(self, error: NabladError) -> float:
        """The stream failed: how many seconds to wait until the rest is asked for. Raises the error if it is not."""
        self._failures += 1
        if not self._retries or not isinstance(error, Unavailable) or self._failures >= ATTEMPTS:
            raise error
        return BACKOFF_SECONDS[self._failures - 1]

    def take(self, message: bytes) -> Rows | None:
        """The rows that a message brings; None if it is a header. Raises Internal for what is neither."""
        try:
            (part,) = fields(message, 0, len(message))
            if part.number == _HEADER:
                self._take_header(pb.MatrixHeader.FromString(message[part.start : part.stop]))
                return None
            rows = self._rows(message, part)
        except (ValueError, DecodeError) as error:
            raise Internal(f"the server sent something that is no part of a matrix: {error}") from None
        self.next_row += rows.count
        self._failures = 0
        return rows

    def _take_header(self, header: pb.MatrixHeader) -> None:
        if self.header is None:
            self.header = header
        elif _lasting(header) != _lasting(self.header) or header.first_row != self.next_row:
            raise ValueError(f"the rows from {self.next_row} on are those of another matrix than the rows before")

    def _rows(self, message: bytes, part: Field) -> Rows:
        """The block in a field. Found by hand: the library would copy the elements twice."""
        header = self.header
        if header is None or part.number != _BLOCK or part.wire_type != LENGTH:
            raise ValueError(f"field {part.number} is not expected here")
        first = start = stop = 0
        non_finite = False
        for field in fields(message, part.start, part.stop):
            if field.number == _FIRST_ROW and field.wire_type == VARINT:
                first = field.value
            elif field.number == _NON_FINITE and field.wire_type == VARINT:
                non_finite = field.value != 0
            elif field.number == _TENSOR and field.wire_type == LENGTH:
                for inner in fields(message, field.start, field.stop):
                    if inner.number == _DATA and inner.wire_type == LENGTH:
                        start, stop = inner.start, inner.stop
        left = header.row_count - self.next_row
        size = header.total_bytes // header.row_count if left else 0
        count = (stop - start) // size if size else left
        if first != self.next_row or not 0 < count <= left or count * size != stop - start:
            raise ValueError(f"{stop - start} bytes from row {first} on, where row {self.next_row} is expected")
        return Rows(first, count, message, start, stop, non_finite)


class Destination:
    """Where the rows of a matrix go.

    Attributes:
        array: all of it, in the caller's shape.
    """

    def __init__(self, opened: Opened, out: Array | None) -> None:
        """`out` is the caller's array. Raises InvalidArgument if the matrix does not fit into it."""
        shapes: list[tuple[int, ...]] = [opened.shape]
        if len(opened.rows) == len(opened.columns) == 1:
            shapes.insert(0, opened.rows[0].shape + opened.columns[0].shape)
        self.array = np.empty(shapes[0], opened.dtype) if out is None else out
        wanted = " or ".join(map(str, dict.fromkeys(shapes)))
        if self.array.shape not in shapes:
            raise InvalidArgument(f"out has the shape {self.array.shape}; the matrix needs {wanted}")
        if not np.can_cast(opened.dtype, self.array.dtype, "same_kind") or not self.array.flags.writeable:
            raise InvalidArgument(
                f"out is {self.array.dtype}{'' if self.array.flags.writeable else ' and read-only'}; "
                f"the matrix needs a writeable array that {opened.dtype} converts to"
            )
        self._matrix = self.array.reshape(opened.shape)
        if self._matrix.size and not np.may_share_memory(self._matrix, self.array):
            raise InvalidArgument(f"out is not contiguous; for that its shape must be {opened.shape}")
        self._dtype = opened.dtype
        self._bytes: Array | None = None
        if self._matrix.flags.c_contiguous and self.array.dtype == opened.dtype and self._matrix.size:
            self._bytes = self._matrix.reshape(-1).view(np.uint8)

    def place(self, rows: Rows) -> None:
        """Copies a block to its place."""
        if self._bytes is None:
            self._matrix[rows.first : rows.first + rows.count] = _view(rows, self._dtype)
        else:
            # The elements may lie askew in the message: as bytes they are copied just as fast.
            size = rows.stop - rows.start
            before = rows.first * (size // rows.count)
            self._bytes[before : before + size] = np.frombuffer(rows.message, np.uint8, size, rows.start)


def block_of(rows: Rows, dtype: np.dtype[Any]) -> results.RowBlock:
    """The block for the caller, its array their own."""
    return results.RowBlock(rows.first, _view(rows, dtype).copy(), rows.non_finite)


def _view(rows: Rows, dtype: np.dtype[Any]) -> Array:
    if rows.start == rows.stop:
        return np.empty((rows.count, 0), dtype)
    return np.frombuffer(memoryview(rows.message)[rows.start : rows.stop], dtype).reshape(rows.count, -1)


def _lasting(header: pb.MatrixHeader) -> Any:
    """What every header of one matrix has in common."""
    return header.row_count, header.column_count, header.dtype, matrix_axes(header.rows), matrix_axes(header.columns)
