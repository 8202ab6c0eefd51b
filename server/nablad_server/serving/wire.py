"""Protobuf's wire format read by hand, where messages are too many or too large to be parsed by the library.

Only the framing is done here: which bytes of a message are which field.
"""

from collections.abc import Sequence
from typing import Any

from google.protobuf.descriptor import FieldDescriptor

from nablad.framing import LENGTH, fields


class Template:
    """All of a message but the elements of its tensors: what one caller's messages have in common.

    Two messages that agree in length and in everything outside the holes have the same framing, because the lengths of
    the holes stand outside them: they differ in the tensors' elements and in nothing else.
    """

    __slots__ = ("_literals", "holes")

    def __init__(self, message: bytes, start: int, stop: int, holes: Sequence[tuple[int, int]]) -> None:
        """Takes the message data[start:stop] apart; `holes` do not overlap and may be in any order."""
        self.holes = tuple((low - start, high - start) for low, high in holes)
        edges = [start, *(edge for hole in sorted(holes) for edge in hole), stop]
        self._literals = tuple(
            (low - start, message[low:high]) for low, high in zip(edges[::2], edges[1::2], strict=True)
        )

    @property
    def size(self) -> int:
        """How many bytes it keeps."""
        return sum(len(literal) for _, literal in self._literals)

    def fits(self, message: bytes, start: int) -> bool:
        """Whether the message that begins at `start`, and is as long as this, is made from it."""
        for offset, literal in self._literals:  # noqa: SIM110 - a loop is twice as fast as all() with a generator
            if not message.startswith(literal, start + offset):
                return False
        return True


def tensor_bytes(data: bytes, start: int, stop: int, message: Any, path: str = "") -> dict[str, tuple[int, int]]:
    """Where the elements of tensors lie in the message data[start:stop] of this type: every `bytes` field, by its path.

    `message` is the type's descriptor, of whichever implementation protobuf has.

    Raises:
        ValueError: it is not well-formed, or gives a field twice that is not repeated, which the library would merge.
    """
    found: dict[str, tuple[int, int]] = {}
    counts: dict[int, int] = {}
    for field in fields(data, start, stop):
        known = message.fields_by_number.get(field.number)
        if known is None or field.wire_type != LENGTH:
            continue
        count = counts.get(field.number, 0)
        counts[field.number] = count + 1
        if count and not known.is_repeated:
            raise ValueError(f"{path}{known.name} is given twice")
        here = f"{path}{known.name}[{count}]" if known.is_repeated else path + known.name
        if known.type == FieldDescriptor.TYPE_BYTES:
            found[here] = (field.start, field.stop)
        elif known.message_type is not None:
            found |= tensor_bytes(data, field.start, field.stop, known.message_type, here + ".")
    return found
