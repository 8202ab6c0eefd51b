"""Protobuf's framing, written by hand where what it surrounds is better not copied: for both ends of the wire.

Reading is the server's (`nablad_server.serving.wire`). https://protobuf.dev/programming-guides/encoding
"""

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
