"""Judges the answers of one conversation: each to a question of this caller, once, and to no other's."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from numpy.typing import NDArray

from nablad.v1 import differentiation_pb2 as pb
from resilience.corpus import Rpc
from resilience.mutation import parsed
from resilience.questions import gradient_request, is_gradient

DEFECTS = frozenset({grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DATA_LOSS})
_DEFECT_NUMBERS = frozenset(code.value[0] for code in DEFECTS)
MARKED = range(7_000_000_000, 7_000_000_100)
"""The ids of operations whose answers are known: each asks about a point that its id tells."""


def marked(identity: int) -> pb.PipelineRequest:
    """A message with one operation whose answer is known."""
    return pb.PipelineRequest(operations=[pb.Operation(id=identity, gradient=gradient_request(_point(identity)))])


def _point(identity: int) -> NDArray[np.float64]:
    return np.random.default_rng(identity).uniform(-2.0, 2.0, 3)


def _is_right(answer: Any) -> bool:
    return answer.HasField("error") or is_gradient(_point(answer.id), answer.gradient)


def functions_in(message: Message) -> Iterator[str]:
    """The functions that an answer is about, by name, without their versions."""
    for field, value in message.ListFields():
        if field.name == "function" and field.type == FieldDescriptor.TYPE_STRING:
            yield value.partition("@")[0]
        elif field.message_type is not None and not field.message_type.GetOptions().map_entry:
            for child in value if field.is_repeated else (value,):
                if child.DESCRIPTOR.full_name == "nablad.v1.Function":
                    yield child.name
                yield from functions_in(child)


class Verdict:
    """What is known of one conversation so far."""

    def __init__(self, rpc: Rpc, frames: tuple[bytes, ...], functions: frozenset[str] | None) -> None:
        """`frames` are what was asked; `functions` those that answers may be about, None for all."""
        self._rpc = rpc
        self._functions = functions
        self._name = rpc.path.rpartition("/")[2]
        self._asked: Counter[int] | None = None
        self._cancelled: set[int] = set()
        self._answered: Counter[int] = Counter()
        self._row: int | None = None
        messages = [parsed(rpc.request, frame) for frame in frames]
        # Of a message that is broken the server answers what stands before the fault: what that is, is not known here.
        if self._name in ("Pipeline", "Linearize") and None not in messages:
            items = [item for message in messages for item in _items(message)]
            self._asked = Counter(item.id for item in items)
            if self._name == "Pipeline":
                self._cancelled = {identity for message in messages for identity in message.cancelled_ids}

    def answer(self, data: bytes) -> Iterator[str]:
        """What is wrong with an answer."""
        message = parsed(self._rpc.response, data)
        if message is None:
            yield f"{self._rpc.path} answered with what is no {self._rpc.response.__name__}"
            return
        if self._functions is not None:
            for name in set(functions_in(message)) - self._functions:
                yield f"{self._rpc.path} told of {name!r}, which this caller may not use"
        if self._name in ("Pipeline", "Linearize"):
            for answer in message.answers:
                yield from self._judged(answer)
        elif self._name in ("StreamHessian", "StreamJacobian"):
            yield from self._in_order(message)

    def end(self, code: grpc.StatusCode, *, whole: bool) -> Iterator[str]:
        """What is wrong now that it is over; `whole`: every answer was read."""
        if code is grpc.StatusCode.OK and whole and self._asked is not None:
            for identity, times in (self._asked - self._answered).items():
                if identity not in self._cancelled:
                    yield f"{self._rpc.path} ended well and left {identity} unanswered, {times} times"

    def _judged(self, answer: Any) -> Iterator[str]:
        self._answered[answer.id] += 1
        if self._asked is not None and self._answered[answer.id] > self._asked[answer.id]:
            asked, times = self._asked[answer.id], self._answered[answer.id]
            yield f"{self._rpc.path} answered {answer.id} {times} times, which was asked {asked} times"
        if answer.HasField("error") and answer.error.code in _DEFECT_NUMBERS:
            yield f"{self._rpc.path} answered with {answer.error.code}: {answer.error.message}"
        elif self._name == "Pipeline" and answer.id in MARKED and not _is_right(answer):
            yield f"the answer to {answer.id} is that to another question"

    def _in_order(self, message: Any) -> Iterator[str]:
        """Rows follow each other, from the first one that was asked for on."""
        if message.HasField("header"):
            self._row = message.header.first_row
        elif self._row is None or message.block.first_row != self._row:
            yield f"{self._rpc.path} sent row {message.block.first_row}; expected {self._row}"
        else:
            self._row += message.block.tensor.shape[0]


def _items(message: Any) -> Any:
    return message.operations if isinstance(message, pb.PipelineRequest) else message.products
