# jaxtyping writes shapes as strings, which are not forward references:
# ruff: noqa: F722, F821
"""Streams of rows on the wire: requests built by hand, messages read by protobuf's own library."""

from collections.abc import Iterator
from typing import Any

import grpc
import jax.numpy as jnp
import numpy as np
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from jaxtyping import Array, Float, Int

from nablad.errors import ResultTooLarge
from nablad.tensors import to_array, to_tensor
from nablad.v1 import differentiation_pb2 as pb
from nablad.v1 import error_pb2
from nablad.v1.differentiation_pb2_grpc import DifferentiationServiceStub
from nablad.v1.tensor_pb2 import DTYPE_FLOAT32, DTYPE_FLOAT64, MatrixAxis, NamedTensor, Tensor
from nablad_server.derivatives.patterns import Patterns
from nablad_server.functions.registration import build
from nablad_server.functions.registry import Registry
from nablad_server.serving.decode import Decoder
from nablad_server.serving.decode_rows import BLOCK_BYTES, RowPlan, plan_hessian, plan_jacobian


def named(name: str, values: Any, *, batched: bool = False) -> NamedTensor:
    return NamedTensor(name=name, tensor=to_tensor(values), batched=batched)


@pytest.fixture
def stub(server_address: str) -> Iterator[DifferentiationServiceStub]:
    with grpc.insecure_channel(server_address, [("grpc.max_receive_message_length", -1)]) as channel:
        yield DifferentiationServiceStub(channel)


# Rosenbrock's function Σ 100 (xᵢ₊₁ − xᵢ²)² + (1 − xᵢ)²
def hessian(x: Any) -> Any:
    diagonal = np.append(1200 * x[:-1] ** 2 - 400 * x[1:] + 2, 0.0)
    diagonal[1:] += 200
    return np.diag(diagonal) + np.diag(-400 * x[:-1], 1) + np.diag(-400 * x[:-1], -1)


def gradient(x: Any) -> Any:
    found = np.zeros_like(x)
    found[:-1] = -400 * x[:-1] * (x[1:] - x[:-1] ** 2) - 2 * (1 - x[:-1])
    found[1:] += 200 * (x[1:] - x[:-1] ** 2)
    return found


def asked(x: Any, **options: Any) -> pb.StreamHessianRequest:
    return pb.StreamHessianRequest(function="rosenbrock", inputs=[named("x", x)], **options)


POINT = np.random.default_rng(0).normal(size=1000)


def rows_of(messages: list[Any], header: pb.MatrixHeader, first: int = 0) -> Any:
    """The rows from `first` on, put together; that they follow each other in the blocks announced is checked."""
    blocks = []
    for message in messages:
        assert message.WhichOneof("part") == "block"
        assert message.block.first_row == first
        assert list(message.block.tensor.shape) == [
            min(header.block_rows, header.row_count - first), header.column_count,
        ]  # fmt: skip
        assert message.block.tensor.dtype == header.dtype
        blocks.append(to_array(message.block.tensor))
        first += len(blocks[-1])
    assert first == header.row_count
    return np.concatenate(blocks)


def test_a_header_and_then_the_blocks_in_their_order(stub: DifferentiationServiceStub) -> None:
    first, *rest = stub.StreamHessian(asked(POINT), timeout=120)

    header = first.header
    assert (header.row_count, header.column_count, header.first_row) == (1000, 1000, 0)
    assert (header.dtype, header.total_bytes) == (DTYPE_FLOAT64, 8_000_000)
    assert list(header.rows) == list(header.columns) == [MatrixAxis(name="x", shape=[1000])]
    assert header.execution.function == "rosenbrock@1"
    np.testing.assert_allclose(to_array(header.gradients[0].tensor), gradient(POINT), rtol=1e-10, atol=1e-10)
    assert (header.values[0].name, header.gradients[0].name) == ("value", "x")
    assert 1 << 20 <= header.block_rows * 8000 <= 4 << 20
    np.testing.assert_allclose(rows_of(rest, header), hessian(POINT), rtol=1e-12, atol=1e-9)


@pytest.mark.parametrize("first_row", [1, 262, 999])
def test_a_stream_begins_where_it_is_asked_to(stub: DifferentiationServiceStub, first_row: int) -> None:
    first, *rest = stub.StreamHessian(asked(POINT, first_row=first_row), timeout=120)

    assert first.header.first_row == first_row
    np.testing.assert_allclose(
        rows_of(rest, first.header, first_row), hessian(POINT)[first_row:], rtol=1e-12, atol=1e-9
    )


def test_after_the_last_row_there_is_nothing_but_the_header(stub: DifferentiationServiceStub) -> None:
    (only,) = stub.StreamHessian(asked(POINT, first_row=1000), timeout=120)
    assert (only.header.row_count, only.header.first_row) == (1000, 1000)


def test_messages_are_what_protobuf_would_have_written(server_address: str) -> None:
    with grpc.insecure_channel(server_address, [("grpc.max_receive_message_length", -1)]) as channel:
        call: Any = channel.unary_stream("/nablad.v1.DifferentiationService/StreamHessian")
        for x in (POINT[:3], np.where(np.arange(1000) == 0, np.nan, POINT), np.zeros(0)):
            _, *blocks = call(asked(x).SerializeToString(), timeout=120)
            for block in blocks:
                assert pb.StreamHessianResponse.FromString(block).SerializeToString(deterministic=True) == block


def test_only_the_blocks_with_something_not_finite_are_flagged(stub: DifferentiationServiceStub) -> None:
    x = POINT.copy()
    x[0] = 5e152  # 1200 x² overflows, −400 x does not

    first, *rest = stub.StreamHessian(asked(x), timeout=120)

    assert first.header.values[0].non_finite
    assert first.header.gradients[0].non_finite
    for message in rest:
        assert message.block.non_finite == (not np.isfinite(to_array(message.block.tensor)).all())
    assert [message.block.non_finite for message in rest] == [True] + [False] * (len(rest) - 1)


def test_several_outputs_and_single_precision(stub: DifferentiationServiceStub) -> None:
    x = np.array([0.5, 1.0, -2.0], np.float32)

    first, *rest = stub.StreamJacobian(
        pb.StreamJacobianRequest(function="softmax", inputs=[named("x", x)]), timeout=120
    )  # fmt: skip

    y = np.exp(x) / np.exp(x).sum()
    assert first.header.dtype == DTYPE_FLOAT32
    assert len(first.header.gradients) == 0
    np.testing.assert_allclose(to_array(first.header.values[0].tensor), y, rtol=1e-6)
    np.testing.assert_allclose(rows_of(rest, first.header), np.diag(y) - np.outer(y, y), rtol=1e-5, atol=1e-7)


UNHEARD_OF: Any = 9
RAGGED = NamedTensor(name="x", tensor=Tensor(dtype=DTYPE_FLOAT64, shape=[3], data=b"1234"))
BAD = {
    "batched": (
        "StreamHessian",
        pb.StreamHessianRequest(function="rosenbrock", inputs=[named("x", np.ones((2, 3)), batched=True)]),
        "INVALID_BATCH", "inputs[0].batched"),
    "past the end": ("StreamHessian", asked(POINT[:3], first_row=4), "INVALID_OPTION", "first_row"),
    "far past the end": ("StreamHessian", asked(POINT[:3], first_row=2**64 - 1), "INVALID_OPTION", "first_row"),
    "mode": ("StreamHessian", asked(POINT[:3], mode=UNHEARD_OF), "INVALID_OPTION", "mode"),
    "wrt": ("StreamHessian", asked(POINT[:3], wrt=["z"]), "UNKNOWN_INPUT", "wrt[0]"),
    "columns": ("StreamHessian", asked(POINT[:3], columns=["x", "x"]), "DUPLICATE_NAME", "columns[1]"),
    "output": ("StreamHessian", asked(POINT[:3], output="z"), "UNKNOWN_OUTPUT", "output"),
    "not a scalar": (
        "StreamHessian", pb.StreamHessianRequest(function="softmax", inputs=[named("x", POINT[:3])]),
        "NOT_SCALAR", "output"),
    "tensor": (
        "StreamJacobian", pb.StreamJacobianRequest(function="softmax", inputs=[RAGGED]),
        "INVALID_TENSOR", "inputs[0].tensor.data"),
    "outputs": (
        "StreamJacobian",
        pb.StreamJacobianRequest(function="softmax", inputs=[named("x", POINT[:3])], outputs=["z"]),
        "UNKNOWN_OUTPUT", "outputs[0]"),
    "function": ("StreamJacobian", pb.StreamJacobianRequest(function="nope"), "FUNCTION_NOT_FOUND", "function"),
}  # fmt: skip


@pytest.mark.parametrize(("method", "request_", "reason", "field"), BAD.values(), ids=BAD)
def test_what_is_wrong_is_told_before_anything_is_sent(
    stub: DifferentiationServiceStub, method: str, request_: Any, reason: str, field: str
) -> None:
    call = getattr(stub, method)(request_, timeout=120)
    with pytest.raises(grpc.RpcError):
        next(call)
    assert told(call) == (reason, field)


def told(call: Any) -> tuple[str, str]:
    """Reason and field of an error."""
    status = rpc_status.from_call(call)
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    field = ""
    assert status is not None
    for detail in status.details:
        detail.Unpack(info)
        if detail.Unpack(bad):
            field = bad.field_violations[0].field
    assert error_pb2.Reason.Value(f"REASON_{info.reason}") > 0
    return info.reason, field


def test_bytes_that_are_no_request_and_no_bytes_at_all(server_address: str) -> None:
    with grpc.insecure_channel(server_address) as channel:
        method = "/nablad.v1.DifferentiationService/StreamHessian"
        one: Any = channel.unary_stream(method)
        none: Any = channel.stream_stream(method)
        for call in (one(b"\xff"), none(iter(()))):
            with pytest.raises(grpc.RpcError):
                next(call)
            assert told(call) == ("MALFORMED_REQUEST", "")


def quadratic(x: Float[Array, "n"], y: Float[Array, ""], k: Int[Array, ""]) -> Any:
    return {"s": x @ x * y * k, "v": x * y}


def decoder_with(max_result_bytes: int) -> Decoder:
    registry = Registry([build(quadratic, "test")])
    return Decoder(registry, Patterns(1 << 30), max_points=10, max_result_bytes=max_result_bytes)


DECODER = decoder_with(16 << 20)


def plan(n: int, decoder: Decoder = DECODER, **options: Any) -> RowPlan:
    inputs = [named("x", np.ones(n)), named("y", 2.0), named("k", 3)]
    return plan_hessian(decoder, pb.StreamHessianRequest(function="quadratic", inputs=inputs, **options))


def test_all_rows_of_all_inputs_are_one_matrix() -> None:
    found = plan(5).header
    assert [(axis.name, list(axis.shape)) for axis in found.rows] == [("x", [5]), ("y", [])]
    assert found.columns == found.rows
    assert (found.row_count, found.column_count, found.block_rows, found.total_bytes) == (6, 6, 6, 288)

    part = plan(5, wrt=["y"], columns=["x"]).header
    assert [axis.name for axis in (*part.rows, *part.columns)] == ["y", "x"]
    assert (part.row_count, part.column_count) == (1, 5)

    inputs = [named("x", np.ones(5)), named("y", 2.0), named("k", 3)]
    jacobian = plan_jacobian(DECODER, pb.StreamJacobianRequest(function="quadratic", inputs=inputs)).header
    assert [(axis.name, list(axis.shape)) for axis in jacobian.rows] == [("s", []), ("v", [5])]
    assert (jacobian.row_count, jacobian.column_count) == (6, 6)


@pytest.mark.parametrize("n", [1, 10, 1000, 60_000, 200_000, 400_000])
def test_a_block_has_about_two_megabytes(n: int) -> None:
    found = plan(n)
    size = found.header.block_rows * 8 * (n + 1)
    assert found.query.block_rows == found.header.block_rows <= found.header.row_count
    assert found.tensor.bytes == size
    whole = found.header.total_bytes
    if whole > BLOCK_BYTES:
        assert BLOCK_BYTES / 2 < size < 2 * BLOCK_BYTES
    else:
        assert size == whole
    assert found.rows(n) == 1


def test_a_row_that_is_too_large_is_refused_and_the_matrix_may_have_any_size() -> None:
    decoder = decoder_with(8000)
    assert plan(998, decoder, wrt=["y"]).header.total_bytes == 8 * 1
    assert plan(996, decoder, wrt=["x"], columns=["y"]).header.total_bytes == 8 * 996
    with pytest.raises(ResultTooLarge, match="8008 bytes") as caught:
        plan(1001, decoder, wrt=["y"], columns=["x"])
    assert caught.value.metadata == {"bytes": "8008", "limit": "8000"}


def test_the_rows_of_a_matrix_without_columns_come_all_the_same() -> None:
    found = plan(0, columns=["x"])
    assert (found.header.row_count, found.header.column_count, found.header.block_rows) == (1, 0, 1)
    assert found.header.total_bytes == 0
    without = plan(0, wrt=["x"])
    assert (without.header.row_count, without.header.total_bytes) == (0, 0)


def test_equal_requests_are_equal_queries_so_that_callers_share_batches_and_programs() -> None:
    one, other = plan(100), plan(100, first_row=50)
    assert one.query == other.query
    assert one.points(7).data[:-1] == other.points(9).data[:-1]
    assert np.frombuffer(other.points(9).data[-1], np.int32).tolist() == [9]
    assert jnp.issubdtype(one.tensor.dtype, jnp.float64)
