"""Protobuf's framing, written and read by hand where what it surrounds is better not copied: for both ends of the wire.

https://protobuf.dev/programming-guides/encoding
"""

from collections.abc import Iterator
from typing import NamedTuple

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5
"""The wire types."""


def varint(value: int) -> bytes:
    """A number of up to 64 bits, not negative, seven bits a byte."""
    if value < 0x80:
        return bytes((value,))
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def tag(number: int, wire_type: int) -> bytes:
    """What precedes a field's value."""
    return varint(number << 3 | wire_type)


def prefix(number: int, length: int) -> bytes:
    """What precedes the `length` bytes of a message, a string or bytes."""
    return tag(number, LENGTH) + varint(length)


def delimited(number: int, value: bytes) -> bytes:
    """A field that is a message, a string or bytes."""
    return prefix(number, len(value)) + value


class Field(NamedTuple):
    """One field of a message: its number, its wire type, and where its value lies; of a varint, the value too."""

    number: int
    wire_type: int
    start: int
    stop: int
    value: int


def fields(data: bytes, start: int, stop: int) -> Iterator[Field]:
    """The fields of the message in data[start:stop], in order.

    Raises:
        ValueError: it is not well-formed.
    """
    position = start
    while position < stop:
        key, position = _varint(data, position, stop)
        number, wire_type = key >> 3, key & 7
        value = 0
        if wire_type == LENGTH:
            length, first = _varint(data, position, stop)
            position = first + length
        elif wire_type == VARINT:
            first = position
            value, position = _varint(data, position, stop)
        elif wire_type in (FIXED64, FIXED32):
            first = position
            position = first + (8 if wire_type == FIXED64 else 4)
        else:
            raise ValueError(f"field {number} has the wire type {wire_type}")
        if position > stop or number == 0:
            raise ValueError(f"field {number} runs over the end of its message")
        yield Field(number, wire_type, first, position, value)


def _varint(data: bytes, position: int, stop: int) -> tuple[int, int]:
    """The number that begins at `position`, and the position after it."""
    value = shift = 0
    while position < stop:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, position
        shift += 7
        if shift >= 70:
            break
    raise ValueError("a number does not end")
