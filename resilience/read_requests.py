"""How requests are read: by hand and by what an earlier one came to, beside protobuf's own parser.

Where a message is read by hand, or recognised without being parsed, both must come to the same.
"""

import zlib
from collections.abc import Callable
from typing import Any

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

from nablad.errors import InvalidTensor, NabladError
from nablad.framing import FIXED32, FIXED64, VARINT, fields
from nablad.tensors import read, to_array
from nablad.v1 import differentiation_pb2 as pb
from nablad.v1.tensor_pb2 import Tensor
from nablad_server.derivatives.patterns import Patterns
from nablad_server.functions.registration import build
from nablad_server.functions.registry import Registry
from nablad_server.functions.sources.builtin import FUNCTIONS
from nablad_server.serving.decode import Decoded, Decoder
from nablad_server.serving.decode_products import Products
from nablad_server.serving.endpoint import parsed
from nablad_server.serving.sparsity import Pending
from nablad_server.serving.work import KINDS
from resilience.corpus import STREAMS
from resilience.mutation import parsed as parsed_or_none
from resilience.reader import Disagreement

REGISTRY = Registry([build(call, "builtin") for call in FUNCTIONS if call.__name__ in ("rosenbrock", "matvec")])
PATTERNS = Patterns(1 << 24)
MAX_POINTS, MAX_RESULT_BYTES = 100, 1 << 20
NAMES = tuple(sorted(KINDS))
AROUND = b"\x0aaround"
"""Requests lie in the midst of others' bytes, which must not be taken for theirs."""
POINT: Any = STREAMS["Linearize"]()[0]


def check_framing(data: bytes) -> None:
    """The fields found by hand are those that protobuf finds."""
    try:
        found = [
            (
                field.number,
                field.wire_type,
                field.value if field.wire_type == VARINT else data[field.start : field.stop],
            )
            for field in fields(data, 0, len(data))
        ]
    except ValueError:
        found = None
    message = parsed_or_none(Empty, data)
    if message is None or found is None:
        # Protobuf knows groups, which nobody has written for long, and no numbers beyond its own.
        return
    expected = []
    unknown: Any = UnknownFieldSet(message)  # its types do not say that it is a sequence
    for field in unknown:
        value = field.data
        if field.wire_type in (FIXED32, FIXED64):
            value = value.to_bytes(4 if field.wire_type == FIXED32 else 8, "little")
        expected.append((field.field_number, field.wire_type, value))
    if found != expected:
        raise Disagreement(f"{data.hex()} are the fields {expected}; read by hand: {found}")


def check_tensor(data: bytes) -> None:
    """A tensor is an array whose bytes are its own, or refused."""
    tensor = parsed_or_none(Tensor, data)
    if tensor is None:
        return
    try:
        checked = read(tensor, "tensor")
        array = to_array(tensor)
    except InvalidTensor:
        return
    if (array.dtype, array.shape, array.tobytes()) != (checked.dtype, tuple(tensor.shape), tensor.data):
        raise Disagreement(f"{tensor} became {array!r}")


def check_request(data: bytes) -> None:
    """A request comes to what parsing it gives, though others were read before: the same, or one nearly like it.

    The first byte says which of NAMES it is.
    """
    name = NAMES[data[0] % len(NAMES)] if data else NAMES[0]
    kind, message = KINDS[name], data[1:]
    plain, learned = (Decoder(REGISTRY, PATTERNS, MAX_POINTS, MAX_RESULT_BYTES) for _ in range(2))
    for each in (message, message, _other_elements(kind.request, message), _other_byte(message)):
        surrounded, start = AROUND + each + AROUND, len(AROUND)
        expected = _outcome(lambda: kind.decode(plain, parsed(kind.request, each)))  # noqa: B023 - called at once
        found = _outcome(lambda: learned.read(kind, surrounded, start, start + len(each)))  # noqa: B023
        if found != expected:
            raise Disagreement(f"{name} {each.hex()} is {expected}; read as one seen before: {found}")


def check_product(data: bytes) -> None:
    """As `check_request`, for what is sent over a Linearize stream: points if the first byte is even, or products."""
    message = data[1:]
    kind: type[Message] = pb.Product if data and data[0] % 2 else pb.LinearizePoint
    learned = Products()
    decoder = Decoder(REGISTRY, PATTERNS, MAX_POINTS, MAX_RESULT_BYTES)
    for each in (message, message, _other_elements(kind, message), _other_byte(message)):
        expected = _outcome(lambda: _read_product(Products(), decoder, kind, each))  # noqa: B023 - called at once
        found = _outcome(lambda: _read_product(learned, decoder, kind, each))  # noqa: B023
        if found != expected:
            raise Disagreement(f"{kind.__name__} {each.hex()} is {expected}; read as one seen before: {found}")


def _read_product(products: Products, decoder: Decoder, kind: type[Message], message: bytes) -> tuple[Any, ...]:
    surrounded, start = AROUND + message + AROUND, len(AROUND)
    if kind is pb.LinearizePoint:
        opened = products.point(decoder, surrounded, start, start + len(message))
        return opened.reference, opened.place.values, tuple(map(bytes, opened.data))
    point = POINT.point.SerializeToString()
    place = products.point(decoder, point, 0, len(point)).place
    form, vectors = products.product(decoder, place, surrounded, start, start + len(message))
    return form.query, form.length, form.slots, tuple(map(bytes, vectors))


def _outcome(reading: Callable[[], Any]) -> tuple[Any, ...]:
    """All that matters of what was read, or of the error that it gave."""
    try:
        found = reading()
    except NabladError as error:
        return type(error), error.message, error.field, error.metadata
    except Pending as pending:
        return Pending, pending.query
    if isinstance(found, Decoded):
        return found.query, found.points.count, tuple(map(bytes, found.points.data)), found.layout.batched
    return tuple(found)


def _other_elements(kind: type[Message], message: bytes) -> bytes:
    """The message with other elements in those of its tensors that can be told from everything around them."""
    known = parsed_or_none(kind, message)
    if known is None:
        return message
    changed = message
    for field, value in known.ListFields():
        if field.is_repeated and field.message_type is not None and field.message_type.name == "NamedTensor":
            for named in value:
                elements = named.tensor.data
                if len(elements) >= 8 and changed.count(elements) == 1:
                    changed = changed.replace(elements, elements[::-1])
    return changed


def _other_byte(message: bytes) -> bytes:
    """The message with another byte in one place, which depends on the message."""
    if not message:
        return message
    changed = bytearray(message)
    changed[zlib.crc32(message) % len(message)] ^= 1
    return bytes(changed)
