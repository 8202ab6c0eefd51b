"""Makes messages that no client would send: valid ones with a field or a few bytes changed, and made-up ones."""

import random
import struct
from collections.abc import Iterator
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message

NAMES = [
    "", "x", "A", "b", "value", "y", "mask", "rosenbrock", "rosenbrock@1", "rosenbrock@99", "matvec", "x" * 300,
    "\0", "ñandú", "../../etc/passwd", "rosenbrock@-1",
]  # fmt: skip
WHOLE = [0, 1, 2, 3, 5, 127, 128, 255, 65_535, 2**31 - 1, 2**31, 2**32 - 1, 2**53, 2**63 - 1, 2**64 - 1]
REAL = [0.0, -0.0, 1.0, -1.0, 0.5, 1e-6, 1e-320, 1e308, float("inf"), float("-inf"), float("nan")]
SIZES = [0, 1, 2, 3, 3, 3, 4, 7, 2**31, 2**40, -1]
LIMITS = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}
ITEM_BYTES = {1: 8, 2: 4, 3: 2, 4: 2, 5: 1, 6: 2, 7: 4, 8: 8, 9: 1, 10: 2, 11: 4, 12: 8, 13: 1, 14: 8, 15: 16}
DEPTH = 4
"""How deep made-up messages are nested."""


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def _scalar(field: FieldDescriptor, chance: random.Random) -> Any:
    """A value for a field that is not a message; None for a kind that the protocol does not use."""
    kind = field.cpp_type
    if kind in LIMITS:
        low, high = LIMITS[kind]
        return min(high, max(low, chance.choice(WHOLE) * (1 if low == 0 else chance.choice((1, -1)))))
    if field.enum_type is not None:
        return chance.choice([*field.enum_type.values_by_number, 99])
    if kind == FieldDescriptor.CPPTYPE_STRING:
        if field.type == FieldDescriptor.TYPE_BYTES:
            return chance.randbytes(chance.choice((0, 1, 8, 24, 100)))
        return chance.choice(NAMES)
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return chance.random() < 0.5
    return chance.choice(REAL)


def _fill_tensor(tensor: Any, chance: random.Random) -> None:
    """A tensor whose bytes, mostly, fit its shape and dtype."""
    tensor.dtype = chance.choice([1, 1, 1, 2, *ITEM_BYTES])
    shape = [chance.choice(SIZES) for _ in range(chance.choice((0, 1, 1, 1, 2, 2, 3, 40)))]
    count = 1
    for size in shape:
        count *= size
    if not 0 <= count <= 10_000 or len(shape) > 3:
        count = 3
    tensor.shape[:] = shape
    size = count * ITEM_BYTES[tensor.dtype]
    if tensor.dtype == 1 and chance.random() < 0.8:
        tensor.data = struct.pack(f"<{count}d", *(chance.choice((*REAL, chance.uniform(-2, 2))) for _ in range(count)))
    else:
        tensor.data = bytes(size) if chance.random() < 0.5 else chance.randbytes(size)


def fill(message: Any, chance: random.Random, depth: int = DEPTH) -> None:
    """Sets about half of the message's fields to something, by their types."""
    if message.DESCRIPTOR.full_name == "nablad.v1.Tensor" and chance.random() < 0.8:
        _fill_tensor(message, chance)
        return
    for field in message.DESCRIPTOR.fields:
        if chance.random() < 0.5:
            set_field(message, field, chance, depth)


def set_field(message: Any, field: FieldDescriptor, chance: random.Random, depth: int = DEPTH) -> None:
    """Gives one field another value, or one more if it is repeated."""
    if field.message_type is None:
        if field.is_repeated:
            getattr(message, field.name).extend(_scalar(field, chance) for _ in range(chance.choice((0, 1, 2, 5))))
        else:
            setattr(message, field.name, _scalar(field, chance))
    elif _is_map(field):
        getattr(message, field.name)[chance.choice(NAMES)] = chance.choice((0, 1, 3, 2**40, -1))
    elif depth:
        for _ in range(chance.choice((0, 1, 1, 2)) if field.is_repeated else 1):
            child = getattr(message, field.name).add() if field.is_repeated else getattr(message, field.name)
            fill(child, chance, depth - 1)
            if not field.is_repeated:
                child.SetInParent()


def _nodes(message: Message) -> Iterator[Any]:
    """The message and all messages in it."""
    yield message
    for field, value in message.ListFields():
        if field.message_type is not None and not _is_map(field):
            for child in value if field.is_repeated else (value,):
                yield from _nodes(child)


def change_field(message: Message, chance: random.Random) -> None:
    """Changes one field somewhere in the message: clears it, repeats it, or gives it another value."""
    node = chance.choice(list(_nodes(message)))
    if not node.DESCRIPTOR.fields:
        return
    field = chance.choice(node.DESCRIPTOR.fields)
    action = chance.random()
    if action < 0.2:
        node.ClearField(field.name)
    elif action < 0.35 and field.is_repeated and not _is_map(field):
        values = list(getattr(node, field.name))
        getattr(node, field.name).extend(values[: chance.choice((1, 4))])
    elif node.DESCRIPTOR.full_name == "nablad.v1.Tensor" and action < 0.7:
        _fill_tensor(node, chance)
    else:
        set_field(node, field, chance, 2)


def change_bytes(data: bytes, chance: random.Random) -> bytes:
    """Flips, inserts, removes, repeats, or cuts a few bytes."""
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 4, 16))):
        at = chance.randrange(len(changed) + 1)
        action = chance.randrange(6)
        if action == 0 and at < len(changed):
            changed[at] ^= 1 << chance.randrange(8)
        elif action == 1:
            changed[at:at] = chance.randbytes(chance.choice((1, 2, 8)))
        elif action == 2:
            del changed[at : at + chance.choice((1, 2, 8))]
        elif action == 3:
            changed[at:at] = changed[at : at + chance.choice((2, 16, 64))]
        elif action == 4:
            # A length or a number where there may be one: ten bytes, nine bytes with the high bit set, or one.
            changed[at : at + 1] = chance.choice((b"\xff" * 9 + b"\x01", b"\xff" * 10, b"\x80", b"\x7f", b"\x00"))
        elif chance.random() < 0.3:
            del changed[at:]
    return bytes(changed)


def broken(valid: Message, chance: random.Random) -> bytes:
    """One message for the wire, made from a valid one of the same type."""
    action = chance.random()
    if action < 0.05:
        return chance.randbytes(chance.choice((0, 1, 5, 50, 500)))
    message = type(valid)()
    if action < 0.2:
        fill(message, chance)
    else:
        message.CopyFrom(valid)
        if action < 0.75:
            for _ in range(chance.choice((1, 1, 2, 3))):
                change_field(message, chance)
    data = message.SerializeToString()
    return change_bytes(data, chance) if action > 0.65 else data


def parsed(kind: type[Message], data: bytes) -> Any:
    """The message, or None if the bytes are none of this type."""
    try:
        return kind.FromString(data)
    except DecodeError:
        return None
