"""A Reader: something that reads bytes from the wire, and what must be true of it whatever the bytes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from google.protobuf.message import Message


class Disagreement(AssertionError):
    """Bytes were read to something else than what they say."""


@dataclass(frozen=True)
class Reader:
    """Something that reads.

    Attributes:
        check: raises Disagreement for bytes that it does not read as it should; whatever else it raises is a defect.
        seeds: bytes that it can read.
        kinds: the messages that the bytes are; if `numbered`, the first byte says which of them, and they follow it.
        numbered: whether there is such a byte.
    """

    check: Callable[[bytes], None]
    seeds: Sequence[bytes]
    kinds: Sequence[type[Message]] = ()
    numbered: bool = False
