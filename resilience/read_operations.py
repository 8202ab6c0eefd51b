"""How the operations of a Pipeline stream are found in its messages, by hand, beside protobuf's own parser."""

from dataclasses import dataclass, field
from typing import Any

from google.protobuf.message import DecodeError

from nablad.errors import NabladError
from nablad.framing import fields
from nablad.v1 import differentiation_pb2 as pb
from nablad_server.serving.caller import Caller
from nablad_server.serving.limits import Accounts, Limits
from nablad_server.serving.pipeline import Pipeline
from nablad_server.serving.stream import Window
from nablad_server.serving.work import KINDS
from resilience.mutation import parsed
from resilience.reader import Disagreement

_KINDS_BY_FIELD = {
    each.name: next(kind.request for kind in KINDS.values() if kind.request.DESCRIPTOR is each.message_type)
    for each in pb.Operation.DESCRIPTOR.oneofs_by_name["request"].fields
}
"""The messages of operations, by the field of Operation that they stand in."""


@dataclass
class _Taken:
    """Stands where the desk does, and notes what it is given: nothing is computed."""

    requests: list[tuple[str, bytes]] = field(default_factory=list)

    def take(self, name: str, message: bytes, start: int, stop: int, **_: Any) -> object:
        self.requests.append((name, message[start:stop]))
        return object()


@dataclass
class _Carrier:
    """Stands where the call does: nothing is sent."""

    account: Any = field(default_factory=lambda: Accounts(Limits()).of("fuzzer"))
    caller: Caller = field(default_factory=lambda: Caller(key="fuzzer"))
    deadline: float = float("inf")


class _Reading(Pipeline):
    """A pipeline that keeps what it reads: ids let in, errors answered, and ids to be cancelled."""

    def __init__(self) -> None:
        self.taken = _Taken()
        super().__init__(_Carrier(), self.taken, Window())  # type: ignore[arg-type]  # see _Carrier and _Taken
        self.entered: list[int] = []
        self.failed: list[tuple[int, str]] = []
        self.cancelled: list[int] = []

    def enter(self, identity: int, size: int) -> bool:
        entered = super().enter(identity, size)
        if entered:
            self.entered.append(identity)
        return entered

    def fail(self, identity: int, error: NabladError, *, owned: bool = True) -> None:  # noqa: ARG002 - as Stream's
        self.failed.append((identity, error.reason))

    def cancel(self, identity: int) -> None:
        self.cancelled.append(identity)


def check_operations(data: bytes) -> None:
    """The operations taken in, and their ids, are those that protobuf finds."""
    reading = _Reading()
    message = parsed(pb.PipelineRequest, data)
    try:
        for each in fields(data, 0, len(data)):
            reading.take(data, each)
    except (NabladError, ValueError, DecodeError):
        # Groups, which protobuf skips, end the stream: no client writes them.
        return
    if message is None:
        return  # what is in an operation is looked at when it is read
    expected_ids, expected, failed = _expected(message)
    found = [(name, parsed(KINDS[name].request, body)) for name, body in reading.taken.requests]
    if (reading.entered, found, reading.failed, reading.cancelled) != (
        expected_ids, expected, failed, list(message.cancelled_ids)
    ):  # fmt: skip
        raise Disagreement(
            f"{data.hex()} asks for {expected} as {expected_ids}; by hand {found} as {reading.entered}, refused "
            f"{reading.failed} for {failed}, cancelled {reading.cancelled}"
        )


def _expected(message: pb.PipelineRequest) -> tuple[list[int], list[tuple[str, Any]], list[tuple[int, str]]]:
    """The ids, and requests by the names of their operators, that a message asks for, and what is refused of it."""
    names = {kind.request: name for name, kind in KINDS.items()}
    ids: list[int] = []
    requests: list[tuple[str, Any]] = []
    failed: list[tuple[int, str]] = []
    for operation in message.operations:
        part = operation.WhichOneof("request")
        if part is None:
            failed.append((operation.id, "INVALID_OPTION"))
        elif operation.id in ids:
            failed.append((operation.id, "DUPLICATE_NAME"))
        else:
            ids.append(operation.id)
            requests.append((names[_KINDS_BY_FIELD[part]], getattr(operation, part)))
    return ids, requests, failed
