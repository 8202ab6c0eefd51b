"""What messages came to that repeat themselves: found again without parsing them.

Callers repeat themselves: a message mostly equals an earlier one in all but the elements of its tensors. What was
concluded from that one then holds for this one too, and all that is left to do is to find the elements.
"""

from collections.abc import Sequence
from typing import Generic, NamedTuple, TypeVar

from google.protobuf.message import Message

from nablad_server.serving.wire import Template, tensor_bytes

MAX_TEMPLATES = 4096
MAX_TEMPLATES_OF_A_LENGTH = 8
MAX_TEMPLATE_BYTES = 4096
COPIED_BYTES = 4096
"""Up to this size a tensor's elements are copied out of the message; those of larger ones are looked at in place."""

_Known = TypeVar("_Known")


class Found(NamedTuple, Generic[_Known]):
    """What is known of a message, and the elements of its tensors."""

    known: _Known
    data: tuple[bytes | memoryview, ...]


class Templates(Generic[_Known]):
    """What is known of messages, by kind and length and then by template."""

    def __init__(self) -> None:
        self._known: dict[tuple[type[Message], int], list[tuple[Template, _Known]]] = {}

    def find(self, kind: type[Message], message: bytes, start: int, stop: int) -> Found[_Known] | None:
        """What is known of the message[start:stop] of a kind; None if none like it was added."""
        for template, known in self._known.get((kind, stop - start), ()):
            if template.fits(message, start):
                data: list[bytes | memoryview] = []
                for low, high in template.holes:
                    first, last = start + low, start + high
                    data.append(
                        message[first:last] if last - first <= COPIED_BYTES else memoryview(message)[first:last]
                    )
                return Found(known, tuple(data))
        return None

    def add(
        self, kind: type[Message], message: bytes, start: int, stop: int, *, paths: Sequence[str], known: _Known
    ) -> None:
        """Keeps what the message[start:stop] came to, if it is made in a way that can be recognised.

        `paths` are those of the tensors in it, in the order in which `find` is to give their elements.
        """
        try:
            found = tensor_bytes(message, start, stop, kind.DESCRIPTOR)
            holes = [found[f"{path}.tensor.data"] for path in paths]
        except (ValueError, KeyError):  # framed in a way that the library puts together, or without elements
            return
        template = Template(message, start, stop, holes)
        if template.size > MAX_TEMPLATE_BYTES:
            return
        if len(self._known) >= MAX_TEMPLATES:
            self._known.clear()
        alike = self._known.setdefault((kind, stop - start), [])
        if len(alike) >= MAX_TEMPLATES_OF_A_LENGTH:
            alike.pop()
        alike.insert(0, (template, known))
