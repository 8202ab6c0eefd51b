"""The wire format by hand, beside protobuf's own encoding of the same."""

from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st

from nablad.framing import FIXED32, FIXED64, LENGTH, VARINT, delimited, fields, prefix, tag, varint
from nablad.tensors import to_tensor
from nablad.v1 import differentiation_pb2 as pb
from nablad.v1.tensor_pb2 import NamedTensor
from nablad_server.serving.wire import Template, tensor_bytes

FieldProto = descriptor_pb2.FieldDescriptorProto
NUMBERS = (1, 2, 15, 16, 2047, 2048, 2**29 - 1)
WIRE = {
    VARINT: FieldProto.TYPE_UINT64, FIXED64: FieldProto.TYPE_FIXED64, LENGTH: FieldProto.TYPE_BYTES,
    FIXED32: FieldProto.TYPE_FIXED32,
}  # fmt: skip
VALUES: dict[int, st.SearchStrategy[Any]] = {
    VARINT: st.integers(0, 2**64 - 1),
    FIXED64: st.integers(0, 2**64 - 1),
    LENGTH: st.binary(max_size=300),
    FIXED32: st.integers(0, 2**32 - 1),
}
UINT64 = st.integers(0, 2**64 - 1) | st.integers(0, 63).map(lambda bits: 1 << bits)


def _message_types() -> dict[int, type[Message]]:
    """For each wire type a message whose fields, of all NUMBERS, have it."""
    file = descriptor_pb2.FileDescriptorProto(name="test_wire.proto", package="test_wire", syntax="proto2")
    for wire_type, kind in WIRE.items():
        made = file.message_type.add(name=f"Of{wire_type}")
        for number in NUMBERS:
            made.field.add(name=f"f{number}", number=number, type=kind, label=FieldProto.LABEL_OPTIONAL)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {kind: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"test_wire.Of{kind}")) for kind in WIRE}


MESSAGES = _message_types()


@st.composite
def encoded_fields(draw: Callable[..., Any]) -> tuple[int, int, Any, bytes]:
    """A field's number, wire type and value, and how protobuf encodes it."""
    number, wire_type = draw(st.sampled_from(NUMBERS)), draw(st.sampled_from(sorted(WIRE)))
    value = draw(VALUES[wire_type])
    return number, wire_type, value, MESSAGES[wire_type](**{f"f{number}": value}).SerializeToString()


@given(st.lists(encoded_fields(), max_size=12), st.binary(max_size=5), st.binary(max_size=5))
def test_fields_are_those_that_protobuf_wrote(
    written: list[tuple[int, int, Any, bytes]], before: bytes, after: bytes
) -> None:
    body = b"".join(encoding for *_, encoding in written)
    data = before + body + after

    found = list(fields(data, len(before), len(before) + len(body)))

    assert [(field.number, field.wire_type) for field in found] == [(number, kind) for number, kind, *_ in written]
    for field, (_, wire_type, value, _) in zip(found, written, strict=True):
        held = data[field.start : field.stop]
        if wire_type == LENGTH:
            assert held == value
        elif wire_type == VARINT:
            assert (field.value, held) == (value, varint(value))
        else:
            assert held == value.to_bytes(8 if wire_type == FIXED64 else 4, "little")


@given(UINT64)
def test_a_varint_comes_back(value: int) -> None:
    (field,) = fields(tag(3, VARINT) + varint(value), 0, len(tag(3, VARINT)) + len(varint(value)))

    assert field.value == value


@given(st.sampled_from(NUMBERS), st.binary(max_size=300))
def test_what_is_delimited_is_as_protobuf_writes_it(number: int, value: bytes) -> None:
    expected = MESSAGES[LENGTH](**{f"f{number}": value}).SerializeToString()

    assert delimited(number, value) == expected
    assert prefix(number, len(value)) + value == expected


@given(st.lists(encoded_fields(), min_size=1, max_size=6), st.data())
def test_what_is_cut_short_within_a_field_is_refused(
    written: list[tuple[int, int, Any, bytes]], data: st.DataObject
) -> None:
    body = b"".join(encoding for *_, encoding in written)
    cut = data.draw(st.integers(1, len(written[-1][3]) - 1))

    with pytest.raises(ValueError, match=r"does not end|runs over"):
        list(fields(body, 0, len(body) - cut))


@given(st.binary(max_size=200))
def test_whatever_the_bytes_they_are_fields_or_refused(data: bytes) -> None:
    try:
        found = list(fields(data, 0, len(data)))
    except ValueError:
        return
    edges = [edge for field in found for edge in (field.start, field.stop)]
    assert edges == sorted(edges)
    assert not edges or edges[-1] == len(data)


@given(st.binary(max_size=200))
def test_whatever_the_bytes_tensors_are_found_or_refused(data: bytes) -> None:
    try:
        found = tensor_bytes(data, 0, len(data), pb.HvpRequest.DESCRIPTOR)
    except ValueError:
        return
    assert all(0 <= low <= high <= len(data) for low, high in found.values())


@pytest.mark.parametrize(
    "data", [b"\x00", b"\x01", b"\x0b", b"\x0c", b"\x0e", b"\x0f", b"\x80" * 11, b"\x08" + b"\xff" * 11]
)
def test_what_is_no_field_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"field|number"):
        list(fields(data + bytes(20), 0, len(data) + 20))


ARRAYS = st.lists(st.floats(-9, 9), min_size=1, max_size=4)


def named(name: str, values: list[float]) -> NamedTensor:
    return NamedTensor(name=name, tensor=to_tensor(values))


@given(st.lists(ARRAYS, max_size=4), st.lists(ARRAYS, max_size=4), st.binary(max_size=9), st.randoms())
def test_the_elements_of_all_tensors_are_found_by_path(
    inputs: list[list[float]], tangents: list[list[float]], around: bytes, random: Any
) -> None:
    parts = [pb.HvpRequest(inputs=[named("x", values)]).SerializeToString() for values in inputs]
    rest = [
        pb.HvpRequest(function="f", stacked=True, wrt=["x", "y"], output="value").SerializeToString(),
        tag(99, 0) + b"\5",
    ]
    rest += [pb.HvpRequest(tangents=[named("x", values)]).SerializeToString() for values in tangents]
    for part in rest:  # what is repeated keeps its order among its like
        parts.insert(random.randint(0, len(parts)) if part in rest[:2] else len(parts), part)
    body = b"".join(parts)

    found = tensor_bytes(around + body + around, len(around), len(around) + len(body), pb.HvpRequest.DESCRIPTOR)

    held = {path: (around + body)[low:high] for path, (low, high) in found.items()}
    message = pb.HvpRequest.FromString(body)
    assert held == {
        f"{name}[{index}].tensor.data": tensor.tensor.data
        for name in ("inputs", "tangents")
        for index, tensor in enumerate(getattr(message, name))
    }


X = named("x", [1.0, 2.0])


@pytest.mark.parametrize(
    "body",
    [
        delimited(1, b"f") + delimited(1, b"f"),
        delimited(2, X.SerializeToString() + NamedTensor(tensor=X.tensor).SerializeToString()),
        delimited(2, delimited(2, X.tensor.SerializeToString() + delimited(3, bytes(16)))),
    ],
    ids=["a string", "a tensor", "elements"],
)
def test_what_is_given_twice_is_refused(body: bytes) -> None:
    pb.GradientRequest.FromString(body)  # the library merges it
    with pytest.raises(ValueError, match="given twice"):
        tensor_bytes(body, 0, len(body), pb.GradientRequest.DESCRIPTOR)


@given(st.lists(ARRAYS, min_size=1, max_size=3), st.binary(max_size=5), st.data())
def test_a_template_fits_what_differs_in_the_holes_alone(
    inputs: list[list[float]], before: bytes, data: st.DataObject
) -> None:
    body = pb.GradientRequest(function="f", inputs=[named("x", values) for values in inputs]).SerializeToString()
    holes = list(tensor_bytes(body, 0, len(body), pb.GradientRequest.DESCRIPTOR).values())
    template = Template(before + body, len(before), len(before) + len(body), [
        (low + len(before), high + len(before)) for low, high in data.draw(st.permutations(holes))
    ])  # fmt: skip
    position = data.draw(st.integers(0, len(body) - 1))
    changed = bytearray(body)
    changed[position] ^= data.draw(st.integers(1, 255))

    inside = any(low <= position < high for low, high in holes)
    assert template.fits(body, 0)
    assert template.fits(before + bytes(changed) + before, len(before)) == inside
    assert template.size == len(body) - sum(high - low for low, high in holes)
