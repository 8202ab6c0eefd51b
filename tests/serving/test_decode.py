# jaxtyping writes shapes as strings, which are not forward references:
# ruff: noqa: F722, F821
"""Requests that were seen before, but for their numbers, are read to the same as if they never were."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from google.protobuf.message import Message
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import Array, Bool, Float, Int

from nablad.errors import InvalidTensor, InvalidVector, MalformedRequest, NabladError, WrongDtype, WrongShape
from nablad.framing import delimited
from nablad.tensors import to_tensor
from nablad.v1 import differentiation_pb2 as pb
from nablad.v1.tensor_pb2 import NamedTensor, Tensor
from nablad_server.derivatives.patterns import Patterns
from nablad_server.functions.registration import build
from nablad_server.functions.registry import Registry
from nablad_server.serving.decode import Decoded, Decoder, Kind
from nablad_server.serving.wire import tensor_bytes
from nablad_server.serving.work import KINDS


def model(x: Float[Array, "n"], y: Float[Array, ""], k: Int[Array, ""]) -> Any:
    """Two outputs, `p` of n elements and the scalar `s`, of two real inputs and a whole number."""
    return {"p": x * y, "s": x @ x * y * k}


def chosen(x: Float[Array, "n"], flags: Bool[Array, "n"]) -> Float[Array, ""]:
    return jnp.sum(jnp.where(flags, x, 0.0))


def difference(a: Float[Array, ""], b: Float[Array, ""]) -> Float[Array, ""]:
    return a - b


REGISTRY = Registry([build(call, "test") for call in (model, chosen, difference)])


class Reader:
    """A decoder that counts the requests that it parses."""

    def __init__(self) -> None:
        self.parsed = 0
        self._decoder = Decoder(REGISTRY, Patterns(1 << 30), max_points=100, max_result_bytes=1 << 20)

    def read(self, operator: str, message: bytes, around: bytes = b"") -> Decoded:
        """Reads a request that lies in the midst of other bytes."""
        kind = KINDS[operator]

        def decode(decoder: Decoder, request: Any) -> Decoded:
            self.parsed += 1
            return kind.decode(decoder, request)

        # What is known is known by the type of the message: counting changes nothing.
        counted = Kind(kind.request, decode)
        return self._decoder.read(counted, around + message + around, len(around), len(around) + len(message))


class Seen(NamedTuple):
    """All that matters of a request that was read, or of the error that it gave."""

    query: Any
    points: int
    data: tuple[bytes, ...]
    batched: bool
    error: tuple[Any, ...]


def seen(reader: Reader, operator: str, message: bytes, around: bytes = b"") -> Seen:
    try:
        query, points, layout, _ = reader.read(operator, message, around)
    except NabladError as error:
        return Seen(None, 0, (), False, (type(error), error.message, error.field, error.metadata))
    assert layout.query is query
    return Seen(query, points.count, tuple(map(bytes, points.data)), layout.batched, ())


def named(name: str, values: Any, batched: bool = False) -> NamedTensor:
    return NamedTensor(name=name, tensor=to_tensor(values), batched=batched)


def found_holes(operator: str, message: bytes) -> list[tuple[int, int]]:
    return list(tensor_bytes(message, 0, len(message), KINDS[operator].request.DESCRIPTOR).values())


OPTIONS: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "Evaluate": {"outputs": st.sampled_from([[], ["s"], ["s", "p"]])},
    "Gradient": {
        "wrt": st.sampled_from([[], ["x"], ["y", "x"]]), "output": st.just("s"), "mode": st.sampled_from([0, 1, 2, 3]),
        "clipping": st.sampled_from([None, pb.Clipping(value=0.5), pb.Clipping(global_norm=2.0), pb.Clipping()]),
        "finite_difference": st.sampled_from([None, pb.FiniteDifference(step=0.25)]),
    },
    "Jacobian": {"wrt": st.sampled_from([[], ["y"]]), "outputs": st.sampled_from([[], ["p"]])},
    "Hessian": {
        "wrt": st.sampled_from([[], ["x"]]), "output": st.just("s"),
        "structure": st.sampled_from([0, pb.HESSIAN_STRUCTURE_DENSE, pb.HESSIAN_STRUCTURE_DIAGONAL]),
    },
    "Hvp": {"output": st.just("s"), "wrt": st.sampled_from([[], ["x", "y"]])},
    "Jvp": {"outputs": st.sampled_from([[], ["s"]])},
    "Vjp": {"wrt": st.sampled_from([[], ["y"]])},
    "DirectionalDerivative": {"output": st.just("s")},
    "Derivative": {"wrt": st.just("y"), "order": st.integers(1, 3), "outputs": st.sampled_from([[], ["p"]])},
}  # fmt: skip
VECTORS = {"Hvp": "tangents", "Jvp": "tangents", "Vjp": "cotangents", "DirectionalDerivative": "direction"}

Rows = Callable[[np.random.Generator], bytes]


@st.composite
def requests(draw: Callable[..., Any], operator: str) -> Rows:
    """What makes requests that differ in their numbers alone: inputs and fields in any order."""
    n, batch = draw(st.integers(0, 4)), draw(st.none() | st.integers(1, 4))
    dtype = draw(st.sampled_from([np.float64, np.float32]))
    k_dtype = np.int64 if dtype == np.float64 and draw(st.booleans()) else np.int32
    stack = draw(st.none() | st.integers(1, 3)) if operator in {"Hvp", "Jvp", "Vjp"} else None
    tensors: list[tuple[str, str, tuple[int, ...], Any, bool]] = []

    def add(field: str, name: str, shape: tuple[int, ...], kind: Any) -> None:
        batched = batch is not None and draw(st.booleans())
        tensors.append((field, name, (batch, *shape) if batched else shape, kind, batched))

    for name, shape, kind in (("x", (n,), dtype), ("y", (), dtype), ("k", (), k_dtype)):
        add("inputs", name, shape, kind)
    stacked = () if stack is None else (stack,)
    if operator in VECTORS:
        shapes = {"p": (n,), "s": ()} if operator == "Vjp" else {"x": (n,), "y": ()}
        for name in draw(st.permutations(sorted(shapes)))[: draw(st.integers(1, 2))]:
            if operator != "DirectionalDerivative" or shapes[name] != (0,):
                add(VECTORS[operator], name, (*stacked, *shapes[name]), dtype)
    options = {name: draw(strategy) for name, strategy in OPTIONS[operator].items()}
    if operator == "Hvp" and options["wrt"]:
        options["wrt"] = ["x", "y"]
    if stack is not None:
        options["stacked"] = True
    order = draw(st.permutations(range(len(tensors) + len(options) + 2)))
    request = KINDS[operator].request

    def make(random: np.random.Generator) -> bytes:
        parts = [request(function="model").SerializeToString(), delimited(77, b"unknown")]
        parts += [request(**{name: value}).SerializeToString() for name, value in options.items()]
        for field, name, shape, kind, batched in tensors:
            values = random.integers(1, 100, shape).astype(kind)
            parts.append(request(**{field: [named(name, values, batched)]}).SerializeToString())
        return b"".join(parts[index] for index in order)

    return make


@pytest.mark.parametrize("operator", list(OPTIONS))
@settings(max_examples=60, deadline=None)
@given(data=st.data(), seed=st.integers(0, 2**32), around=st.binary(max_size=9))
def test_what_was_seen_before_is_read_as_if_it_never_was(
    operator: str, data: st.DataObject, seed: int, around: bytes
) -> None:
    make, random, reader = data.draw(requests(operator)), np.random.default_rng(seed), Reader()
    first, second = make(random), make(random)
    assert seen(reader, operator, first) == seen(Reader(), operator, first)
    parsed = reader.parsed

    again = seen(reader, operator, second, around)

    expected = seen(Reader(), operator, second)
    assert again == expected
    known = operator != "DirectionalDerivative" and not expected.error and all(expected.data)
    if known:
        assert reader.parsed == parsed, "it was parsed although it is known"
    elif operator == "DirectionalDerivative":
        assert reader.parsed > parsed, "a direction has to be looked at"


def test_queries_and_layouts_are_one_and_the_same_object() -> None:
    reader = Reader()
    one, other, third = (
        reader.read("Gradient", pb.GradientRequest(function=function, inputs=inputs).SerializeToString())
        for function, inputs in (
            ("difference", [named("a", 1.0), named("b", 2.0)]),
            ("difference", [named("a", 3.0), named("b", 4.0)]),
            ("difference@1", [named("b", 5.0), named("a", 6.0)]),
        )
    )

    assert one.query is other.query is third.query
    assert one.layout is other.layout is third.layout
    assert [np.frombuffer(part).tolist() for part in third.points.data] == [[6.0], [5.0]]


@pytest.mark.parametrize("order", [("a", "b"), ("b", "a")])
def test_equal_numbers_at_first_do_not_let_inputs_be_swapped_later(order: tuple[str, str]) -> None:
    reader = Reader()

    def ask(values: dict[str, float]) -> list[list[float]]:
        request = pb.GradientRequest(function="difference", inputs=[named(name, values[name]) for name in order])
        points = reader.read("Gradient", request.SerializeToString()).points
        return [np.frombuffer(part).tolist() for part in points.data]

    assert ask({"a": 1.0, "b": 1.0}) == [[1.0], [1.0]]
    assert ask({"a": 2.0, "b": 3.0}) == [[2.0], [3.0]]
    assert ask({"a": 3.0, "b": 2.0}) == [[3.0], [2.0]]
    assert reader.parsed == 1


def test_inputs_in_another_order_are_read_by_name() -> None:
    reader = Reader()
    for names in (("a", "b"), ("b", "a"), ("a", "b"), ("b", "a")):
        request = pb.GradientRequest(
            function="difference", inputs=[named(name, {"a": 5.0, "b": 7.0}[name]) for name in names]
        )
        points = reader.read("Gradient", request.SerializeToString()).points
        assert [np.frombuffer(part).tolist() for part in points.data] == [[5.0], [7.0]]
    assert reader.parsed == 2


FOUR = np.int32(4)
MODEL = [named("x", [1.0, 2.0]), named("y", 3.0), named("k", FOUR)]


def model_with(x: Any = (1.0, 2.0), k: Any = FOUR, dtype: Any = np.float64) -> list[NamedTensor]:
    return [named("x", np.asarray(x, dtype)), named("y", np.asarray(3.0, dtype)), named("k", k)]


@pytest.mark.parametrize("first", [[0.0, 0.0], [1.0, 2.0]])
def test_a_vector_that_is_converted_is_converted_every_time(first: list[float]) -> None:
    reader = Reader()
    for values in (first, [3.0, -4.0], [0.0, 0.0], [0.5, 0.25]):
        request = pb.JvpRequest(
            function="model", inputs=model_with(dtype=ml_dtypes.bfloat16),
            tangents=[named("x", np.asarray(values, np.float16))],
        )  # fmt: skip
        *_, tangent = reader.read("Jvp", request.SerializeToString()).points.data
        assert np.frombuffer(tangent, ml_dtypes.bfloat16).astype(float).tolist() == values
    assert reader.parsed == 4


@pytest.mark.parametrize("first", [0, 5])
def test_a_whole_number_that_is_narrowed_is_narrowed_and_checked_every_time(first: int) -> None:
    reader = Reader()

    def ask(value: int) -> int:
        request = pb.EvaluateRequest(function="model", inputs=model_with(k=np.int64(value), dtype=np.float32))
        *_, k = reader.read("Evaluate", request.SerializeToString()).points.data
        assert len(k) == 4
        return int.from_bytes(k, "little", signed=True)

    assert [ask(value) for value in (first, -7, 2**31 - 1)] == [first, -7, 2**31 - 1]
    with pytest.raises(WrongDtype, match="do not fit into int32"):
        ask(2**31)


def test_a_boolean_is_checked_every_time() -> None:
    reader = Reader()

    def ask(flags: bytes) -> bytes:
        tensor = Tensor(dtype=to_tensor(np.ones(2, bool)).dtype, shape=[2], data=flags)
        inputs = [named("x", [1.0, 2.0]), NamedTensor(name="flags", tensor=tensor)]
        message = pb.EvaluateRequest(function="chosen", inputs=inputs).SerializeToString()
        return bytes(reader.read("Evaluate", message).points.data[1])

    assert [ask(flags) for flags in (b"\1\0", b"\0\1")] == [b"\1\0", b"\0\1"]
    with pytest.raises(InvalidTensor, match="0 or 1"):
        ask(b"\1\2")


def test_a_direction_is_checked_every_time() -> None:
    reader = Reader()

    def ask(direction: list[float]) -> None:
        request = pb.DirectionalDerivativeRequest(
            function="model", inputs=MODEL, direction=[named("x", direction)], output="s"
        )
        reader.read("DirectionalDerivative", request.SerializeToString())

    ask([1.0, 0.0])
    for wrong in ([0.0, 0.0], [np.inf, 0.0], [np.nan, 1.0]):
        with pytest.raises(InvalidVector):
            ask(wrong)
    ask([0.0, 1.0])


GRADIENT = pb.GradientRequest(function="model", inputs=MODEL, wrt=["x"], output="s", mode=pb.MODE_AUTO)
CLIPPED = pb.GradientRequest(function="model", inputs=MODEL, output="s", clipping=pb.Clipping(value=0.5))
JVP = pb.JvpRequest(
    function="model", inputs=[*MODEL[1:], named("x", [[1.0], [2.0]], batched=True)], tangents=[named("y", 2.0)]
)


@pytest.mark.parametrize(("operator", "request_"), [("Gradient", GRADIENT), ("Gradient", CLIPPED), ("Jvp", JVP)])
def test_whatever_byte_changes_a_known_request_comes_to_what_it_would_have(operator: str, request_: Message) -> None:
    message, reader = request_.SerializeToString(), Reader()
    assert not seen(reader, operator, message).error
    holes = found_holes(operator, message)
    errors: set[Any] = set()
    for position in range(len(message)):
        for flip in (0x01, 0x02, 0x08, 0x20, 0x80):
            changed = bytearray(message)
            changed[position] ^= flip
            got = seen(reader, operator, bytes(changed))
            assert got == seen(Reader(), operator, bytes(changed)), (position, flip)
            assert not got.error or not any(low <= position < high for low, high in holes)
            errors.update(got.error[:1])
    assert not seen(reader, operator, message).error
    assert {MalformedRequest, InvalidTensor, WrongShape} <= errors


def test_fields_that_the_library_merges_are_left_to_it() -> None:
    reader = Reader()
    x = delimited(1, b"x") + delimited(2, to_tensor([1.0, 2.0]).SerializeToString())
    rest = pb.EvaluateRequest(function="model", inputs=MODEL[1:]).SerializeToString()
    for values in ([5.0, 6.0], [7.0, 8.0]):
        again = delimited(2, Tensor(data=np.array(values).tobytes()).SerializeToString())
        points = reader.read("Evaluate", delimited(2, x + again) + rest).points
        assert np.frombuffer(points.data[0]).tolist() == values
    assert reader.parsed == 2


def test_large_elements_are_looked_at_in_place() -> None:
    reader, x = Reader(), np.arange(10_000.0)
    for scale in (1.0, 2.0):
        request = pb.GradientRequest(function="model", inputs=model_with(scale * x), output="s")
        points = reader.read("Gradient", request.SerializeToString(), b"around").points
        np.testing.assert_array_equal(np.frombuffer(points.data[0]), scale * x)
    assert reader.parsed == 1
    assert isinstance(points.data[0], memoryview)


def test_very_many_kinds_of_requests_are_read_right() -> None:
    reader = Reader()
    for _ in range(2):
        for n in range(60):
            for version in ("model", "model@1"):
                for wrt in ([], ["x"], ["y"]):
                    x = np.arange(float(n))
                    request = pb.GradientRequest(function=version, inputs=model_with(x), output="s", wrt=wrt)
                    got = reader.read("Gradient", request.SerializeToString())
                    assert got.query.inputs[0].shape == (n,)
                    assert bytes(got.points.data[0]) == x.tobytes()
                    assert got.query.wrt == {(): (0, 1), ("x",): (0,), ("y",): (1,)}[tuple(wrt)]
