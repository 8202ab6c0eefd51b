"""Pipeline: many operations over one stream, answered as they are done."""

import functools

from nablad.errors import DuplicateName, InvalidOption, NabladError, to_wire
from nablad.framing import LENGTH, VARINT, Field, fields, prefix, tag, varint
from nablad.v1 import differentiation_pb2 as pb
from nablad_server.serving.layout import Part
from nablad_server.serving.stream import Stream
from nablad_server.serving.work import KINDS

OPERATIONS = pb.PipelineRequest.DESCRIPTOR.fields_by_name["operations"].number
CANCELLED = pb.PipelineRequest.DESCRIPTOR.fields_by_name["cancelled_ids"].number
ID = pb.Operation.DESCRIPTOR.fields_by_name["id"].number
TIMEOUT = pb.Operation.DESCRIPTOR.fields_by_name["timeout_nanoseconds"].number
ANSWERS = pb.PipelineResponse.DESCRIPTOR.fields_by_name["answers"].number
ERROR = pb.Answer.DESCRIPTOR.fields_by_name["error"].number
REQUESTS = {
    field.number: next(name for name, kind in KINDS.items() if kind.request.DESCRIPTOR is field.message_type)
    for field in pb.Operation.DESCRIPTOR.oneofs_by_name["request"].fields
}
"""The operators, by the number of their request in an Operation, which is the number of their response in an Answer."""

ID_TAG = tag(ID, VARINT)


class Pipeline(Stream):
    """One stream of operations."""

    request = pb.PipelineRequest.DESCRIPTOR.full_name

    def take(self, message: bytes, field: Field) -> None:
        """Begins an operation, or cancels some."""
        if field.number == OPERATIONS and field.wire_type == LENGTH:
            self._begin(message, field)
        elif field.number == CANCELLED:
            self._cancel(message, field)

    def _begin(self, message: bytes, operation: Field) -> None:
        identity = timeout = 0
        request: Field | None = None
        for field in fields(message, operation.start, operation.stop):
            if field.number == ID and field.wire_type == VARINT:
                identity = field.value
            elif field.number == TIMEOUT and field.wire_type == VARINT:
                timeout = field.value
            elif field.number in REQUESTS and field.wire_type == LENGTH:
                request = field
        if request is None:
            self._answer_error(
                identity, InvalidOption(f"operation {identity} asks for nothing; set one of its requests")
            )
            return
        if not self.enter(identity, request.stop - request.start):
            self._answer_error(identity, DuplicateName(f"the id {identity} is that of an operation not yet answered"))
            return
        deadline = min(self.call.deadline, self.arrived + timeout * 1e-9 if timeout else float("inf"))
        ticket = self.desk.take(
            REQUESTS[request.number], message, request.start, request.stop,
            deadline=deadline,
            written=functools.partial(self._written, identity, request.number),
            failed=functools.partial(self._failed, identity),
        )  # fmt: skip
        if ticket is not None:
            self.begun(identity, ticket)

    def _cancel(self, message: bytes, field: Field) -> None:
        if field.wire_type == VARINT:
            identities = [field.value]
        else:  # a packed list looks like the fields of a message whose numbers have no tags
            identities = pb.PipelineRequest.FromString(
                prefix(CANCELLED, field.stop - field.start) + message[field.start : field.stop]
            ).cancelled_ids[:]
        for identity in identities:
            self.cancel(identity)

    def _written(self, identity: int, number: int, parts: list[Part], length: int) -> None:
        header = ID_TAG + varint(identity) + prefix(number, length)
        self.answer(identity, [prefix(ANSWERS, len(header) + length) + header, *parts], length + len(header))

    def _failed(self, identity: int, error: NabladError) -> None:
        self._answer_error(identity, error, owned=True)

    def _answer_error(self, identity: int, error: NabladError, *, owned: bool = False) -> None:
        """`owned`: the id is that of the operation that failed, and free now."""
        body = to_wire(error).SerializeToString()
        header = ID_TAG + varint(identity) + prefix(ERROR, len(body))
        self.answer(
            identity if owned else None,
            [prefix(ANSWERS, len(header) + len(body)) + header, body],
            len(header) + len(body),
        )
