"""Requests for a stream of rows → what its header is made of, and what each of its blocks is."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

from google.protobuf.message import Message

from nablad.errors import InvalidOption, ResultTooLarge
from nablad.tensors import NUMBERS
from nablad.v1 import differentiation_pb2 as pb
from nablad.v1 import function_pb2
from nablad_server.derivatives.detection import axes_of
from nablad_server.derivatives.operators import result_specs
from nablad_server.derivatives.query import FIRST_ROW, Query
from nablad_server.derivatives.runner import Points
from nablad_server.functions.signature import ArraySpec
from nablad_server.serving.decode import Decoded, Decoder, mode_of
from nablad_server.serving.layout_rows import HeaderLayout
from nablad_server.serving.sparsity import axes_message

BLOCK_BYTES = 2 << 20
"""About so large is a block: small enough to be held for many callers, large enough that its framing costs nothing."""


class RowPlan(NamedTuple):
    """What a stream of rows is to give.

    Attributes:
        head: computes the values of the header; its layout writes them, in fields that the header numbers alike.
        query: computes a block.
        header: the header but for the values and how they came about.
        tensor: the specification of a block, [block_rows, columns].
    """

    head: Decoded
    query: Query
    header: pb.MatrixHeader
    tensor: ArraySpec

    def rows(self, first: int) -> int:
        """How many rows the block has that begins with this one."""
        return min(self.query.block_rows, self.header.row_count - first)

    def points(self, first: int) -> Points:
        """What the block is computed from that begins with this row."""
        return Points(1, (*self.head.points.data, first.to_bytes(FIRST_ROW.bytes, "little")))


class RowKind(NamedTuple):
    """One kind of stream: its request, what reads that, and the operator that it counts as."""

    request: type[Message]
    plan: Callable[[Decoder, Any], RowPlan]
    operator: function_pb2.Operator.ValueType


def plan_hessian(decoder: Decoder, request: pb.StreamHessianRequest) -> RowPlan:
    """Reads a StreamHessianRequest. Raises InvalidArgument, NotFound, FailedPrecondition or OutOfRange."""
    subject = decoder.subject(request.function, request.inputs).at_one_point("rows")
    outputs = subject.select_scalar_output(request.output)
    wrt = subject.select_inputs(request.wrt)
    columns = subject.select_inputs(request.columns, "columns") if request.columns else wrt
    mode = mode_of(request.mode)
    head = decoder.decoded(subject, (), function_pb2.OPERATOR_GRADIENT, outputs, wrt=wrt, mode=mode)
    head = head._replace(layout=HeaderLayout(head.query, [subject.outputs[index][0] for index in outputs]))
    query = Query(
        subject.function, function_pb2.OPERATOR_HESSIAN, subject.specs, outputs,
        wrt=wrt, columns=columns, mode=mode, block_rows=1,
    )  # fmt: skip
    return _plan(decoder, query, head, request.first_row)


def plan_jacobian(decoder: Decoder, request: pb.StreamJacobianRequest) -> RowPlan:
    """Reads a StreamJacobianRequest; raises as `plan_hessian` does."""
    subject = decoder.subject(request.function, request.inputs).at_one_point("rows")
    outputs = subject.select_outputs(request.outputs, differentiable=True)
    wrt = subject.select_inputs(request.wrt)
    subject.check_traced()
    head = decoder.decoded(subject, (), function_pb2.OPERATOR_EVALUATE, outputs)
    query = Query(
        subject.function, function_pb2.OPERATOR_JACOBIAN, subject.specs, outputs,
        wrt=wrt, mode=mode_of(request.mode), block_rows=1,
    )  # fmt: skip
    return _plan(decoder, query, head, request.first_row)


ROW_KINDS = {
    "StreamHessian": RowKind(pb.StreamHessianRequest, plan_hessian, function_pb2.OPERATOR_HESSIAN),
    "StreamJacobian": RowKind(pb.StreamJacobianRequest, plan_jacobian, function_pb2.OPERATOR_JACOBIAN),
}
"""The streams of rows, by the name of their RPC."""


def _plan(decoder: Decoder, one_row: Query, head: Decoded, first_row: int) -> RowPlan:
    row_count, column_count = one_row.matrix_shape
    if first_row > row_count:
        raise InvalidOption(
            f"first_row is {first_row}; the matrix has {row_count} rows, so expected 0 to {row_count}",
            field="first_row",
        )
    ((row,),) = result_specs(one_row)
    if row.bytes > decoder.max_result_bytes:
        raise ResultTooLarge(
            f"{one_row} has rows of {row.bytes} bytes; one may have at most {decoder.max_result_bytes}. For fewer "
            "columns, name fewer inputs, or use products with vectors",
            metadata={"bytes": str(row.bytes), "limit": str(decoder.max_result_bytes)},
        )
    # A program needs a row to compute even where the matrix has none: then it is never run.
    block_rows = max(1, min(row_count, BLOCK_BYTES // row.bytes if row.bytes else row_count))
    query = replace(one_row, block_rows=block_rows)
    rows, columns = axes_of(query)
    header = pb.MatrixHeader(
        rows=axes_message(rows),
        columns=axes_message(columns),
        dtype=NUMBERS[row.dtype],
        row_count=row_count,
        column_count=column_count,
        total_bytes=row_count * row.bytes,
        first_row=first_row,
        block_rows=block_rows,
    )
    return RowPlan(head, query, header, ArraySpec((block_rows, column_count), row.dtype))
