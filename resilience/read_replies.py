"""How a client reads what a server, or something that claims to be one, answers: as protobuf does, or not at all."""

from typing import Any

import grpc
import numpy as np
from google.rpc import status_pb2

from nablad import errors
from nablad._calls import Prepared
from nablad._rows import Reading
from nablad.tensors import to_tensor
from nablad.v1 import differentiation_pb2 as pb
from nablad.v1.tensor_pb2 import DTYPE_FLOAT64, NamedTensor
from resilience.mutation import parsed
from resilience.reader import Disagreement

_HEADER = pb.StreamHessianResponse(
    header=pb.MatrixHeader(
        row_count=6, column_count=2, total_bytes=96, dtype=DTYPE_FLOAT64, block_rows=2,
        values=[NamedTensor(name="value", tensor=to_tensor(1.0))],
    )
)  # fmt: skip
_BLOCK = pb.StreamHessianResponse(
    block=pb.RowBlock(first_row=0, tensor=to_tensor(np.arange(4.0).reshape(2, 2)), non_finite=True)
)
ROWS = [_BLOCK.SerializeToString(), _HEADER.SerializeToString()]
STATUSES = [
    errors.to_status(error).SerializeToString()
    for error in (
        errors.MissingInput("x", field="inputs", metadata={"missing": "x"}),
        errors.QueueFull("later", retry_after=0.25),
        errors.FunctionNotFound("none", metadata={"function": "f"}),
    )
]


def check_rows(data: bytes) -> None:
    """The rows that a client finds in a message are those that protobuf finds, or the message is refused."""
    reading = Reading(Prepared(pb.StreamHessianRequest(), lambda header: header), retries=False, deadline=float("inf"))
    reading.take(ROWS[1])
    try:
        rows = reading.take(data)
    except errors.Internal:
        return
    message = parsed(pb.StreamHessianResponse, data)
    if rows is None or message is None:
        return
    block = message.block
    if (rows.first, data[rows.start : rows.stop], rows.non_finite) != (
        block.first_row, block.tensor.data, block.non_finite
    ):  # fmt: skip
        raise Disagreement(f"{data.hex()} holds {block}; read by hand: {rows}")


class _Failed(grpc.RpcError):
    """A call that failed, as grpc tells of it."""

    def __init__(self, status: bytes) -> None:
        known = parsed(status_pb2.Status, status)
        codes = {code.value[0]: code for code in grpc.StatusCode}
        self._code = codes.get(known.code if known is not None else 2, grpc.StatusCode.UNKNOWN)
        self._details = known.message if known is not None else ""
        self._status = status

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return self._details

    def trailing_metadata(self) -> Any:
        return (("grpc-status-details-bin", self._status),)


def check_status(data: bytes) -> None:
    """Whatever the details of a status, they stand for one of this project's errors, of the code that was sent."""
    failed = _Failed(data)
    error = errors.from_rpc_error(failed)
    if not isinstance(error, errors.NabladError):
        raise Disagreement(f"{data.hex()} stands for {error!r}")
