"""Requests made of a frame and data are, byte by byte, what protobuf makes of them."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nablad._calls import MISSING, OPERATORS
from nablad._plans import key_of, make
from nablad._wire import Skeleton, numbers
from nablad.framing import varint
from nablad.results import FunctionInfo, TensorInfo
from nablad.tensors import to_tensor
from nablad.v1 import differentiation_pb2 as pb
from nablad.v1 import tensor_pb2

INFO = FunctionInfo(
    "f", 1, "", "", "", (TensorInfo("x", ("float64",), ("n",), True), TensorInfo("w", ("float64",), (), True)),
    (TensorInfo("value", ("float64",), (), True),), (),
)  # fmt: skip
VECTORS = {"tangent": {"x": np.ones(3)}, "cotangent": np.ones(()), "direction": {"x": np.ones(3)}}
OPTIONS: dict[str, dict[str, Any]] = {
    "evaluate": {"outputs": "value"},
    "gradient": {"wrt": ["x", "w"], "output": "value", "mode": "reverse"},
    "jacobian": {"wrt": "x", "outputs": "value", "mode": "forward"},
    "hessian": {
        "wrt": "x", "columns": "w", "diagonal": False, "samples": None, "seed": 0, "output": "value", "mode": "auto",
    },
    "hvp": {"stacked": False, "wrt": ["x", "w"], "output": "value", "mode": "auto", "tangent_batched": None},
    "jvp": {"stacked": False, "outputs": "value", "tangent_batched": None},
    "vjp": {"stacked": False, "wrt": "x", "cotangent_batched": None},
    "directional_derivative": {"output": None, "direction_batched": None},
    "derivative": {"order": 3, "wrt": "w", "outputs": None, "direction_batched": None},
    "laplacian": {"samples": 3, "seed": 7, "wrt": ["x", "w"], "output": None, "mode": "forward"},
}  # fmt: skip


def prepared(name: str, batched: bool) -> Any:
    operator = OPERATORS[name]
    vector = MISSING if name == "derivative" else VECTORS.get(operator.vector, MISSING)
    arguments = [np.arange(6.0).reshape(2, 3), np.arange(2.0)] if batched else [np.arange(3.0), 2.0]
    if batched and vector is not MISSING:
        vector = np.ones(2) if name == "vjp" else {"x": np.ones((2, 3))}
    options = OPTIONS[name] | {"batched": batched}
    return operator.prepared(INFO, "f", arguments, {}, vector=vector, options=options)


def tensors(request: Any) -> list[bytes]:
    fields = [
        field.name for field in request.DESCRIPTOR.fields if field.message_type == tensor_pb2.NamedTensor.DESCRIPTOR
    ]
    return [named.tensor.data for name in fields for named in getattr(request, name)]


@pytest.mark.parametrize("name", OPERATORS)
def test_a_frame_gives_the_bytes_of_protobuf(name: str) -> None:
    for batched in (False, True):
        request = prepared(name, batched).request
        frame = Skeleton(request).frame(None)
        data = b"".join(frame.around([item] for item in tensors(request)))
        assert data == request.SerializeToString(deterministic=True)
        assert frame.size == len(data)


@pytest.mark.parametrize("name", OPERATORS)
def test_a_frame_for_points_is_the_batched_request(name: str) -> None:
    one, two = prepared(name, False).request, prepared(name, True).request
    frame = Skeleton(one).frame(2)
    assert b"".join(frame.around([item] for item in tensors(two))) == two.SerializeToString(deterministic=True)


@given(
    st.text(max_size=40), st.lists(st.integers(0, 9), max_size=3), st.integers(1, 600), st.booleans(),
    st.sampled_from(["float32", "float64", "int8", "bool"]),
)  # fmt: skip
def test_frames_of_any_shape(name: str, shape: list[int], points: int, shared: bool, dtype: str) -> None:
    tensor = tensor_pb2.NamedTensor(name=name, tensor=to_tensor(np.zeros(shape, dtype)))
    skeleton = Skeleton(pb.EvaluateRequest(function="f", inputs=[tensor]), [shared])
    rows = np.zeros(shape if shared else [points, *shape], dtype)
    expected = tensor_pb2.NamedTensor(name=name, tensor=to_tensor(rows), batched=not shared)
    request = pb.EvaluateRequest(function="f", inputs=[expected])
    assert b"".join(skeleton.frame(points).around([[rows.tobytes()]])) == request.SerializeToString()


@given(st.lists(st.integers(0, 2**64 - 1)))
def test_whole_numbers(values: list[int]) -> None:
    assert numbers(2, values) == pb.PipelineRequest(cancelled_ids=values).SerializeToString()
    assert all(len(varint(value)) <= 10 for value in values)


@pytest.mark.parametrize(
    ("given_", "planned"),
    [
        ((np.ones(3), 2.0), True),
        (([1, 2, 3], 2), True),
        ((np.ones(3, ">f8"), np.float64(2)), True),
        ((np.ones((3, 2))[:, 0], np.array(2.0)), True),
        (({"a": 1.0}, 2.0), False),
        (([[1.0], [1.0, 2.0]], 2.0), False),
        ((np.ma.masked_array(np.ones(3)), 2.0), False),
    ],
)
def test_plain_arguments_have_a_plan_that_gives_the_same_request(given_: tuple[Any, ...], planned: bool) -> None:
    operator, options = OPERATORS["gradient"], OPTIONS["gradient"] | {"batched": False}
    key, arguments = key_of(operator, "f", given_, {}, vector=MISSING, options=options)
    assert (key is not None) is planned
    if planned:
        full = operator.prepared(INFO, "f", given_, {}, vector=MISSING, options=options)
        plan = make(operator, full, arguments)
        assert plan is not None and plan.request(arguments) == full.request  # noqa: PT018 - one fact


def test_a_vector_among_positional_arguments_before_named_ones_has_no_plan() -> None:
    options = OPTIONS["jvp"] | {"batched": False}
    key, _ = key_of(OPERATORS["jvp"], "f", (np.ones(3), np.ones(3)), {"w": 1.0}, vector=MISSING, options=options)
    assert key is None
