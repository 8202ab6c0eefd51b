"""Pipeline: many operations over one stream, answered as they are done."""

import functools

from nablad.errors import DuplicateName, InvalidOption
from nablad.framing import LENGTH, VARINT, Field, fields, prefix, varint
from nablad.v1 import differentiation_pb2 as pb
from nablad_server.serving.layout import Part
from nablad_server.serving.stream import ID_TAG, Stream
from nablad_server.serving.work import KINDS

OPERATIONS = pb.PipelineRequest.DESCRIPTOR.fields_by_name["operations"].number
CANCELLED = pb.PipelineRequest.DESCRIPTOR.fields_by_name["cancelled_ids"].number
ID = pb.Operation.DESCRIPTOR.fields_by_name["id"].number
TIMEOUT = pb.Operation.DESCRIPTOR.fields_by_name["timeout_nanoseconds"].number
ANSWERS = pb.PipelineResponse.DESCRIPTOR.fields_by_name["answers"].number
REQUESTS = {
    field.number: next(name for name, kind in KINDS.items() if kind.request.DESCRIPTOR is field.message_type)
    for field in pb.Operation.DESCRIPTOR.oneofs_by_name["request"].fields
}
"""The operators, by the number of their request in an Operation, which is the number of their response in an Answer."""


class Pipeline(Stream):
    """One stream of operations."""

    request = pb.PipelineRequest.DESCRIPTOR.full_name
    answers = ANSWERS

    def take(self, message: bytes, field: Field) -> None:
        """Begins an operation, or cancels some."""
        if field.number == OPERATIONS and field.wire_type == LENGTH:
            self._begin(message, field)
        elif field.number == CANCELLED and field.wire_type in (LENGTH, VARINT):  # as protobuf
            self._cancel(message, field)

    def _begin(self, message: bytes, operation: Field) -> None:
        identity = timeout = 0
        given: list[Field] = []
        for field in fields(message, operation.start, operation.stop):
            if field.number == ID and field.wire_type == VARINT:
                identity = field.value
            elif field.number == TIMEOUT and field.wire_type == VARINT:
                timeout = field.value
            elif field.number in REQUESTS and field.wire_type == LENGTH:
                # One that comes in parts is the whole of them, and of different ones the last counts, as in protobuf.
                given = [*given, field] if given and given[0].number == field.number else [field]
        if not given:
            nothing = InvalidOption(f"operation {identity} asks for nothing; set one of its requests")
            self.fail(identity, nothing, owned=False)
            return
        number, start, stop = given[0].number, given[0].start, given[0].stop
        if len(given) > 1:
            message = b"".join(message[part.start : part.stop] for part in given)
            start, stop = 0, len(message)
        if not self.enter(identity, stop - start):
            taken = DuplicateName(f"the id {identity} is that of an operation not yet answered")
            self.fail(identity, taken, owned=False)
            return
        refused = self.call.account.spend()
        if refused is not None:
            self.fail(identity, refused)
            return
        deadline = min(self.call.deadline, self.arrived + timeout * 1e-9 if timeout else float("inf"))
        ticket = self.desk.take(
            REQUESTS[number], message, start, stop,
            allowed=self.call.caller.functions,
            owner=self.call.account.owner,
            deadline=deadline,
            written=functools.partial(self._written, identity, number),
            failed=functools.partial(self.fail, identity),
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
