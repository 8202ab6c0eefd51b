"""Requests as bytes. All but the data of its tensors is encoded once, and used for every call of a kind.

Fields are written in the order of their numbers, as protobuf does: the same request is the same bytes.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from nablad.framing import VARINT, delimited, prefix, tag, varint
from nablad.tensors import DTYPES
from nablad.v1 import tensor_pb2

_NAMED_TENSOR = tensor_pb2.NamedTensor.DESCRIPTOR
_TENSOR = tensor_pb2.NamedTensor.TENSOR_FIELD_NUMBER
_DATA = tensor_pb2.Tensor.DATA_FIELD_NUMBER


def number(field: int, value: int) -> bytes:
    """A field that holds a whole number; nothing if it is 0, which is what an absent one means."""
    return tag(field, VARINT) + varint(value) if value else b""


def numbers(field: int, values: Iterable[int]) -> bytes:
    """A repeated field of whole numbers; nothing if there are none."""
    packed = b"".join(map(varint, values))
    return delimited(field, packed) if packed else b""


@dataclass(frozen=True, slots=True)
class Frame:
    """A request without the data of its tensors.

    Attributes:
        parts: the bytes before, between and after the data: one more than there are tensors.
        size: bytes of the whole request, data included.
    """

    parts: tuple[bytes, ...]
    size: int

    def around(self, data: Iterable[Iterable[bytes]]) -> list[bytes]:
        """The request in pieces. `data` gives the pieces of each tensor's data."""
        pieces = [self.parts[0]]
        for chunks, part in zip(data, self.parts[1:], strict=True):
            pieces += chunks
            pieces.append(part)
        return pieces


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a tensor stands in a request.

    Attributes:
        field: of the request.
        example: the tensor, its data left out.
        size: bytes of the data.
        shared: whether the tensor stays as it is when the request is about many points.
    """

    field: int
    example: tensor_pb2.NamedTensor
    size: int
    shared: bool

    def before_and_after(self, points: int | None) -> tuple[bytes, bytes, int]:
        """The bytes around the data, and the size of the data; `points`: as many rows, one for each point."""
        batched = points is not None and not self.shared
        named = tensor_pb2.NamedTensor(name=self.example.name, batched=batched or self.example.batched)
        tensor = tensor_pb2.Tensor(dtype=self.example.tensor.dtype, shape=self.example.tensor.shape)
        size = self.size
        if batched and points is not None:
            tensor.shape[:] = [points, *tensor.shape]
            size *= points
        inner = tensor.SerializeToString() + (prefix(_DATA, size) if size else b"")
        name = tensor_pb2.NamedTensor(name=named.name).SerializeToString() + prefix(_TENSOR, len(inner) + size)
        after = tensor_pb2.NamedTensor(batched=named.batched).SerializeToString()
        return prefix(self.field, len(name) + len(inner) + size + len(after)) + name + inner, after, size


def _tensor_fields(request: Message) -> list[FieldDescriptor]:
    return [field for field in request.DESCRIPTOR.fields if field.message_type == _NAMED_TENSOR]


def tensors_of(request: Message) -> list[tensor_pb2.Tensor]:
    """The tensors of a request, in the order in which they stand in it."""
    return [named.tensor for field in _tensor_fields(request) for named in getattr(request, field.name)]


class Skeleton:
    """What all requests of a kind have in common: the frames for one point and for any number of them."""

    def __init__(self, request: Message, shared: Sequence[bool] = ()) -> None:
        """`request` is one of the kind. `shared`: for each tensor, whether all points share it; by default none is."""
        repeated = _tensor_fields(request)
        tensors = [(field.number, named) for field in repeated for named in getattr(request, field.name)]
        self._places = [
            _Place(
                field,
                tensor_pb2.NamedTensor(
                    name=named.name,
                    tensor=tensor_pb2.Tensor(dtype=named.tensor.dtype, shape=named.tensor.shape),
                    batched=named.batched,
                ),
                math.prod(named.tensor.shape) * DTYPES[named.tensor.dtype].itemsize,
                shared[index] if shared else False,
            )
            for index, (field, named) in enumerate(tensors)
        ]
        self.function: str = getattr(request, "function", "")
        self._before = delimited(1, self.function.encode()) if self.function else b""
        rest = type(request).FromString(request.SerializeToString())
        for name in (*(["function"] if self.function else []), *(field.name for field in repeated)):
            rest.ClearField(name)
        self._after = rest.SerializeToString()
        self._frames: dict[int | None, Frame] = {}

    @property
    def batched(self) -> bool:
        """Whether the request itself is about many points."""
        return any(place.example.batched for place in self._places)

    @property
    def dtypes(self) -> list[np.dtype[Any]]:
        """The dtype of each tensor."""
        return [DTYPES[place.example.tensor.dtype] for place in self._places]

    @property
    def sizes(self) -> list[int]:
        """Bytes of each tensor's data, for one point."""
        return [place.size for place in self._places]

    @property
    def shared(self) -> list[bool]:
        """For each tensor, whether all points share it."""
        return [place.shared for place in self._places]

    def frame(self, points: int | None) -> Frame:
        """The request about so many points; None: about one, its tensors without an axis for points."""
        frame = self._frames.get(points)
        if frame is None:
            parts, size = [self._before], 0
            for place in self._places:
                before, after, data = place.before_and_after(points)
                parts[-1] += before
                parts.append(after)
                size += data
            parts[-1] += self._after
            frame = Frame(tuple(parts), size + sum(map(len, parts)))
            self._frames[points] = frame
        return frame
