"""Whatever is wrong with a request is answered with the right status, reason and field, and harms nobody.

Requests are built by hand, as a client in another language would, and every one is followed by a good one.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from nablad.errors import DOMAIN
from nablad.tensors import to_tensor
from nablad.v1 import catalog_pb2, error_pb2, tensor_pb2
from nablad.v1 import differentiation_pb2 as pb
from nablad.v1.tensor_pb2 import DTYPE_BOOL, DTYPE_FLOAT64, NamedTensor, Tensor

ROSENBROCK = np.array([1.0, 2.0, 3.0])


def named(name: str, values: Any, *, batched: bool = False) -> NamedTensor:
    return NamedTensor(name=name, tensor=to_tensor(values), batched=batched)


def gradient(*inputs: NamedTensor, function: str = "rosenbrock", **options: Any) -> pb.GradientRequest:
    return pb.GradientRequest(function=function, inputs=inputs or [named("x", ROSENBROCK)], **options)


def raw(dtype: Any = DTYPE_FLOAT64, shape: tuple[int, ...] = (3,), data: bytes = ROSENBROCK.tobytes()) -> NamedTensor:
    return NamedTensor(name="x", tensor=Tensor(dtype=dtype, shape=shape, data=data))


def hollow(n: int) -> list[NamedTensor]:
    """A of n × 0 and B of 0 × n: no bytes, whose product has n × n elements."""
    return [
        NamedTensor(name=name, tensor=Tensor(dtype=DTYPE_FLOAT64, shape=shape))
        for name, shape in (("A", (n, 0)), ("B", (0, n)))
    ]


class Bad(NamedTuple):
    """A request and what must become of it."""

    method: str
    request: Any
    code: grpc.StatusCode
    reason: str
    field: str


INVALID, PRECONDITION = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION
NOT_FOUND = grpc.StatusCode.NOT_FOUND
X = named("x", ROSENBROCK)
UNHEARD_OF: Any = 9
MASKED = [named("x", [1.0, 2.0]), named("mask", [True, False])]
SOFTMAX = [named("x", [1.0, 2.0])]
DOUBLES = ROSENBROCK.tobytes()

BAD: dict[str, Bad] = {
    "unknown function": Bad("Gradient", gradient(function="nope"), NOT_FOUND, "FUNCTION_NOT_FOUND", "function"),
    "no function": Bad("Gradient", pb.GradientRequest(), INVALID, "INVALID_REFERENCE", "function"),
    "unknown version": Bad("Gradient", gradient(function="rosenbrock@9"), NOT_FOUND, "VERSION_NOT_FOUND", "function"),
    "malformed reference": Bad("Gradient", gradient(function="rosenbrock@-1"), INVALID, "INVALID_REFERENCE",
                               "function"),
    "endless reference": Bad("Gradient", gradient(function="x" * 100_000), INVALID, "INVALID_REFERENCE", "function"),
    "huge version": Bad("Gradient", gradient(function="rosenbrock@" + "9" * 50), INVALID, "INVALID_REFERENCE",
                        "function"),
    "unknown input": Bad("Gradient", gradient(X, named("z", 1.0)), INVALID, "UNKNOWN_INPUT", "inputs[1].name"),
    "missing input": Bad("Gradient", pb.GradientRequest(function="rosenbrock"), INVALID, "MISSING_INPUT", "inputs"),
    "input twice": Bad("Gradient", gradient(X, X), INVALID, "DUPLICATE_NAME", "inputs[1].name"),
    "unknown wrt": Bad("Gradient", gradient(wrt=["z"]), INVALID, "UNKNOWN_INPUT", "wrt[0]"),
    "wrt twice": Bad("Gradient", gradient(wrt=["x", "x"]), INVALID, "DUPLICATE_NAME", "wrt[1]"),
    "unknown output": Bad("Gradient", gradient(output="z"), INVALID, "UNKNOWN_OUTPUT", "output"),
    "unknown mode": Bad("Gradient", gradient(mode=99), INVALID, "INVALID_OPTION", "mode"),
    "two many axes": Bad("Gradient", gradient(named("x", [[1.0]])), INVALID, "WRONG_SHAPE", "inputs[0].tensor.shape"),
    "sizes that disagree": Bad(
        "Evaluate", pb.EvaluateRequest(function="matvec", inputs=[named("A", np.ones((2, 3))), named("x", [1.0, 2.0])]),
        INVALID, "WRONG_SHAPE", "inputs[1].tensor.shape"),
    "fixed size": Bad(
        "Jacobian", pb.JacobianRequest(function="quadratic_product", inputs=[X]), INVALID, "WRONG_SHAPE",
        "inputs[0].tensor.shape"),
    "wrong dtype": Bad("Gradient", gradient(named("x", [1, 2])), INVALID, "WRONG_DTYPE", "inputs[0].tensor.dtype"),
    "no dtype": Bad("Gradient", gradient(raw(dtype=0)), INVALID, "INVALID_TENSOR", "inputs[0].tensor.dtype"),
    "unheard-of dtype": Bad("Gradient", gradient(raw(dtype=77)), INVALID, "INVALID_TENSOR", "inputs[0].tensor.dtype"),
    "truncated data": Bad("Gradient", gradient(raw(data=DOUBLES[:-1])), INVALID, "INVALID_TENSOR",
                          "inputs[0].tensor.data"),
    "surplus data": Bad("Gradient", gradient(raw(data=DOUBLES + b"\0")), INVALID, "INVALID_TENSOR",
                        "inputs[0].tensor.data"),
    "negative size": Bad("Gradient", gradient(raw(shape=(-3,))), INVALID, "INVALID_TENSOR", "inputs[0].tensor.shape"),
    "two negative sizes": Bad("Gradient", gradient(raw(shape=(-1, -3))), INVALID, "INVALID_TENSOR",
                              "inputs[0].tensor.shape"),
    "absurd size": Bad("Gradient", gradient(raw(shape=(2**62, 2**62))), INVALID, "INVALID_TENSOR",
                       "inputs[0].tensor.shape"),
    "sizes whose product wraps": Bad("Gradient", gradient(raw(shape=(2**61, 8), data=b"")), INVALID, "INVALID_TENSOR",
                                     "inputs[0].tensor.shape"),
    "sizes whose product wraps, and a 0": Bad("Gradient", gradient(raw(shape=(2**61, 8, 0), data=b"")), INVALID,
                                              "INVALID_TENSOR", "inputs[0].tensor.shape"),
    "more axes than arrays have": Bad("Gradient", gradient(raw(shape=(1,) * 70, data=bytes(8)), function="relu"),
                                      INVALID, "INVALID_TENSOR", "inputs[0].tensor.shape"),
    "no tensor": Bad("Gradient", gradient(NamedTensor(name="x")), INVALID, "INVALID_TENSOR", "inputs[0].tensor.dtype"),
    "a boolean of 2": Bad(
        "Gradient", gradient(
            MASKED[0], NamedTensor(name="mask", tensor=Tensor(dtype=DTYPE_BOOL, shape=[2], data=b"\1\2")),
            function="masked_sum_of_squares"), INVALID, "INVALID_TENSOR", "inputs[1].tensor.data"),
    "scalar marked as batched": Bad("Gradient", gradient(named("x", 1.0, batched=True)), INVALID, "WRONG_SHAPE",
                                    "inputs[0].tensor.shape"),
    "no points": Bad("Gradient", gradient(named("x", np.ones((0, 3)), batched=True)), INVALID, "INVALID_BATCH",
                     "inputs[0].tensor.shape"),
    "absurdly many points": Bad("Gradient", gradient(named("x", np.ones((100_001, 1)), batched=True)), INVALID,
                                "INVALID_BATCH", "inputs[0].tensor.shape"),
    "points that disagree": Bad(
        "Gradient", gradient(named("x", [1.0, 2.0], batched=True), named("y", [1.0, 2.0, 3.0], batched=True),
                             function="x2y_3xy2"), INVALID, "INVALID_BATCH", "inputs[1].tensor.shape"),
    "gradient of a vector": Bad("Gradient", gradient(*SOFTMAX, function="softmax"), PRECONDITION, "NOT_SCALAR",
                                "output"),
    "gradient by a boolean": Bad("Gradient", gradient(*MASKED, function="masked_sum_of_squares", wrt=["mask"]),
                                 PRECONDITION, "NOT_DIFFERENTIABLE", "wrt[0]"),
    "Jacobian of an integer output": Bad(
        "Jacobian", pb.JacobianRequest(
            function="linear_classifier", outputs=["correct"],
            inputs=[named("w", np.ones((2, 3))), named("b", np.ones(3)), named("x", np.ones((4, 2))),
                    named("labels", [0, 1, 2, 0])]), PRECONDITION, "NOT_DIFFERENTIABLE", "outputs[0]"),
    "Hessian of a vector": Bad("Hessian", pb.HessianRequest(function="softmax", inputs=SOFTMAX), PRECONDITION,
                               "NOT_SCALAR", "output"),
    "unknown structure": Bad("Hessian", pb.HessianRequest(function="rosenbrock", inputs=[X], structure=UNHEARD_OF),
                             INVALID, "INVALID_OPTION", "structure"),
    "columns of a diagonal": Bad(
        "Hessian", pb.HessianRequest(function="rosenbrock", inputs=[X], columns=["x"],
                                     structure=pb.HESSIAN_STRUCTURE_DIAGONAL), INVALID,
        "INVALID_OPTION", "columns"),
    "a Hessian of 320 GB": Bad(
        "Hessian", pb.HessianRequest(function="rosenbrock", inputs=[named("x", np.ones(200_000))]),
        grpc.StatusCode.OUT_OF_RANGE, "RESULT_TOO_LARGE", ""),
    "an absurd stack": Bad(
        "Jvp", pb.JvpRequest(function="rosenbrock", inputs=[named("x", np.ones(0))], stacked=True,
                             tangents=[NamedTensor(name="x", tensor=Tensor(dtype=DTYPE_FLOAT64, shape=[2**40, 0]))]),
        grpc.StatusCode.OUT_OF_RANGE, "RESULT_TOO_LARGE", ""),
    "an array on the way whose size overflows": Bad(
        "Evaluate", pb.EvaluateRequest(function="trace_product", inputs=hollow(2**31)),
        grpc.StatusCode.OUT_OF_RANGE, "RESULT_TOO_LARGE", ""),
    "an empty input whose size overflows": Bad(
        "Evaluate", pb.EvaluateRequest(function="sum_of_squares", inputs=[raw(shape=(2**63 - 1, 0), data=b"")]),
        INVALID, "INVALID_TENSOR", "inputs[0].tensor.shape"),
    "an array on the way that no memory holds": Bad(
        "Evaluate", pb.EvaluateRequest(function="trace_product", inputs=hollow(2_000_000)),
        grpc.StatusCode.OUT_OF_RANGE, "RESULT_TOO_LARGE", ""),
    "a stack of nothing, longer than can be counted": Bad(
        "Hvp", pb.HvpRequest(function="rosenbrock", inputs=[named("x", np.ones(0))], stacked=True,
                             tangents=[NamedTensor(name="x", tensor=Tensor(dtype=DTYPE_FLOAT64, shape=[2**59, 0]))]),
        grpc.StatusCode.OUT_OF_RANGE, "RESULT_TOO_LARGE", ""),
    "no tangent": Bad("Hvp", pb.HvpRequest(function="rosenbrock", inputs=[X]), INVALID, "INVALID_VECTOR", "tangents"),
    "tangent of another shape": Bad(
        "Jvp", pb.JvpRequest(function="rosenbrock", inputs=[X], tangents=[named("x", [1.0])]), INVALID, "WRONG_SHAPE",
        "tangents[0].tensor.shape"),
    "integer tangent": Bad(
        "Jvp", pb.JvpRequest(function="rosenbrock", inputs=[X], tangents=[named("x", [1, 0, 0])]), INVALID,
        "WRONG_DTYPE", "tangents[0].tensor.dtype"),
    "tangent of nothing": Bad(
        "Jvp", pb.JvpRequest(function="rosenbrock", inputs=[X], tangents=[named("y", [1.0])]), INVALID, "UNKNOWN_INPUT",
        "tangents[0].name"),
    "tangent outside wrt": Bad(
        "Hvp", pb.HvpRequest(function="x2y_3xy2", inputs=[named("x", 1.0), named("y", 1.0)], wrt=["x"],
                             tangents=[named("y", 1.0)]), INVALID, "INVALID_VECTOR", "tangents[0]"),
    "empty stack": Bad(
        "Jvp", pb.JvpRequest(function="rosenbrock", inputs=[X], tangents=[named("x", np.ones((0, 3)))], stacked=True),
        INVALID, "WRONG_SHAPE", "tangents[0].tensor.shape"),
    "stacks that disagree": Bad(
        "Jvp", pb.JvpRequest(function="x2y_3xy2", inputs=[named("x", 1.0), named("y", 1.0)], stacked=True,
                             tangents=[named("x", [1.0]), named("y", [1.0, 2.0])]), INVALID, "WRONG_SHAPE",
        "tangents[1].tensor.shape"),
    "no cotangent": Bad("Vjp", pb.VjpRequest(function="softmax", inputs=SOFTMAX), INVALID, "INVALID_VECTOR",
                        "cotangents"),
    "cotangent of nothing": Bad(
        "Vjp", pb.VjpRequest(function="softmax", inputs=SOFTMAX, cotangents=[named("z", 1.0)]), INVALID,
        "UNKNOWN_OUTPUT", "cotangents[0].name"),
    "direction of length zero": Bad(
        "DirectionalDerivative", pb.DirectionalDerivativeRequest(
            function="rosenbrock", inputs=[X], direction=[named("x", [0.0, 0.0, 0.0])]), INVALID, "INVALID_VECTOR",
        "direction"),
    "direction that is not finite": Bad(
        "DirectionalDerivative", pb.DirectionalDerivativeRequest(
            function="rosenbrock", inputs=[X], direction=[named("x", [np.nan, 0.0, 0.0])]), INVALID, "INVALID_VECTOR",
        "direction"),
    "order 0": Bad("Derivative", pb.DerivativeRequest(function="sin", inputs=[named("x", 1.0)]), INVALID,
                   "INVALID_OPTION", "order"),
    "order 17": Bad("Derivative", pb.DerivativeRequest(function="sin", inputs=[named("x", 1.0)], order=17), INVALID,
                    "INVALID_OPTION", "order"),
    "derivative by a vector": Bad("Derivative", pb.DerivativeRequest(function="rosenbrock", inputs=[X], order=1),
                                  PRECONDITION, "NOT_SCALAR", "wrt"),
    "derivative by one of two": Bad(
        "Derivative", pb.DerivativeRequest(function="x2y_3xy2", inputs=[named("x", 1.0), named("y", 1.0)], order=1),
        INVALID, "INVALID_OPTION", "wrt"),
}  # fmt: skip


def call(channel: grpc.Channel, method: str, data: bytes, service: str = "DifferentiationService") -> bytes:
    unary: Callable[..., bytes] = channel.unary_unary(f"/nablad.v1.{service}/{method}")
    return unary(data, timeout=60)


def details(error: Any) -> tuple[grpc.StatusCode, error_details_pb2.ErrorInfo, str]:
    """Status code, ErrorInfo and blamed field of a failed call."""
    status = rpc_status.from_call(error)
    info, bad, field = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), ""
    assert status.details[0].Unpack(info)
    for detail in status.details:
        if detail.Unpack(bad):
            field = bad.field_violations[0].field
    assert status.ByteSize() < 4096
    return error.code(), info, field


@pytest.fixture(scope="module")
def channel(server_address: str) -> Any:
    with grpc.insecure_channel(server_address, [("grpc.max_send_message_length", -1)]) as opened:
        yield opened


def assert_serves(channel: grpc.Channel) -> None:
    answer = pb.GradientResponse.FromString(call(channel, "Gradient", gradient().SerializeToString()))
    assert np.frombuffer(answer.gradients[0].tensor.data).tolist() == [-400.0, 1002.0, -200.0]


@pytest.mark.parametrize("bad", BAD.values(), ids=[name.replace(" ", "_") for name in BAD])
def test_status_reason_and_field(channel: grpc.Channel, bad: Bad) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        call(channel, bad.method, bad.request.SerializeToString())
    code, info, field = details(caught.value)
    assert (code, info.reason, info.domain, field) == (bad.code, bad.reason, DOMAIN, bad.field)
    assert f"REASON_{info.reason}" in error_pb2.Reason.DESCRIPTOR.values_by_name
    assert_serves(channel)


@pytest.mark.parametrize(
    "data", [b"\xff", b"\x12\x05", b"\x0a\x02\xff\xfe", b"\x12\xff\xff\xff\xff\x0f", b"\x0a" * 4096]
)
@pytest.mark.parametrize("method", ["Gradient", "Hvp", "Derivative"])
def test_malformed_messages_are_the_callers_fault(channel: grpc.Channel, method: str, data: bytes) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        call(channel, method, data)
    code, info, _ = details(caught.value)
    assert (code, info.reason) == (INVALID, "MALFORMED_REQUEST")
    assert_serves(channel)


def test_an_unknown_page_token_is_refused(channel: grpc.Channel) -> None:
    request = catalog_pb2.ListFunctionsRequest(page_token="nonsense")  # noqa: S106 - of pages
    with pytest.raises(grpc.RpcError) as caught:
        call(channel, "ListFunctions", request.SerializeToString(), "CatalogService")
    code, info, field = details(caught.value)
    assert (code, info.reason, field) == (INVALID, "INVALID_OPTION", "page_token")


def test_unknown_methods_are_unimplemented(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        call(channel, "Integrate", b"")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_nan_is_a_result_and_stays_in_its_row(channel: grpc.Channel) -> None:
    points = np.array([[1.0, 2.0], [np.nan, 1.0], [np.inf, 0.0], [1.0, 2.0]])
    request = gradient(named("x", points, batched=True))
    answer = pb.GradientResponse.FromString(call(channel, "Gradient", request.SerializeToString()))
    rows = np.frombuffer(answer.gradients[0].tensor.data).reshape(4, 2)
    assert answer.gradients[0].non_finite
    assert not np.isfinite(rows[1]).any()
    assert rows[[0, 3]].tolist() == [[-400.0, 200.0]] * 2


def test_every_reason_is_an_exception_and_the_other_way_round() -> None:
    from nablad.errors import _BY_REASON

    names = {name.removeprefix("REASON_") for name in error_pb2.Reason.DESCRIPTOR.values_by_name} - {"UNSPECIFIED"}
    assert names == set(_BY_REASON)


def test_dtype_numbers_cover_the_wire() -> None:
    from nablad.tensors import DTYPES

    assert set(DTYPES) == set(tensor_pb2.Dtype.values()) - {tensor_pb2.DTYPE_UNSPECIFIED}
