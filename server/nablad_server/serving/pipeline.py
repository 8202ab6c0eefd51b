"""Pipeline: many operations over one stream, answered as they are done."""

import functools
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from nablad.errors import DuplicateName, InvalidOption, MalformedRequest, NabladError, to_wire
from nablad.framing import LENGTH, VARINT, prefix, tag, varint
from nablad.v1 import differentiation_pb2 as pb
from nablad_server.batching.ticket import Ticket
from nablad_server.serving.layout import Part
from nablad_server.serving.transport import Call
from nablad_server.serving.wire import Field, fields
from nablad_server.serving.work import KINDS, Desk

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


@dataclass(frozen=True)
class Window:
    """What one stream may hold that is not yet answered.

    Attributes:
        operations: so many operations.
        size: so many bytes of requests, and again so many of answers that the client has not taken.
        message: answers that are ready go together in messages of about so many bytes.
    """

    operations: int = 1024
    size: int = 32 << 20
    message: int = 1 << 20


class Pipeline:
    """One stream. Messages come in the transport's thread, answers in any."""

    def __init__(self, call: Call, desk: Desk, window: Window) -> None:
        self._call = call
        self._desk = desk
        self._window = window
        self._lock = threading.Lock()
        self._open: dict[int, tuple[Ticket | None, int]] = {}  # by id: the ticket, and the bytes of the request
        self._held = 0  # bytes of the requests that are open
        self._ready: deque[tuple[list[Part], int]] = deque()
        self._unsent = 0  # bytes of the answers that are ready
        self._sending = 0  # bytes of the answers on their way
        self._message = b""
        self._arrived = 0.0
        self._fields: Iterator[Field] | None = None  # of the message, those not yet taken in
        self._reading = True  # a message has been asked for
        self._gathering = False  # a message is being read: answers wait for each other
        self._half_closed = False
        self._ended = False

    def received(self, message: bytes | None) -> None:
        """A message has come, or the client has sent all."""
        with self._lock:
            self._reading = False
            self._half_closed |= message is None
            if message is not None:  # with the lock: until it is here to be seen, no other may be asked for
                self._message, self._arrived = message, time.monotonic()
                self._fields = fields(message, 0, len(message))
        self._read_on()

    def sent(self) -> None:
        """The client's side has taken the answers on their way."""
        with self._lock:
            self._sending = 0
        self._read_on()

    def closed(self) -> None:
        """The stream is over: what was not begun need not be."""
        with self._lock:
            self._ended = True
            tickets = [ticket for ticket, _ in self._open.values() if ticket is not None]
            self._open.clear()
            self._ready.clear()
        for ticket in tickets:
            self._desk.cancel(ticket)

    def _read_on(self) -> None:
        """Takes in as many operations of the message at hand as there is room for. In the transport's thread."""
        waiting = self._fields
        if waiting is not None and not self._ended:
            with self._lock:
                self._gathering = True
            try:
                while self._has_room():
                    field = next(waiting, None)
                    if field is None:
                        self._fields = None
                        break
                    if field.number == OPERATIONS and field.wire_type == LENGTH:
                        self._begin(self._message, field)
                    elif field.number == CANCELLED:
                        self._cancel(self._message, field)
            except (ValueError, DecodeError) as error:
                what = f"{len(self._message)} bytes are not a well-formed nablad.v1.PipelineRequest"
                self.dismiss(MalformedRequest(f"{what}: {error}"))
                return
            # What is light is answered before this returns; those answers go together.
            self._desk.together()
            with self._lock:
                self._gathering = False
        self._go_on()

    def _has_room(self) -> bool:
        window = self._window
        return len(self._open) < window.operations and self._held < window.size and self._unsent < window.size

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
        with self._lock:
            taken = identity in self._open
            if not taken and request is not None:
                size = request.stop - request.start
                self._open[identity] = (None, size)
                self._held += size
        if taken:
            self._answer_error(identity, DuplicateName(f"the id {identity} is that of an operation not yet answered"))
            return
        if request is None:
            self._answer_error(
                identity, InvalidOption(f"operation {identity} asks for nothing; set one of its requests")
            )
            return
        deadline = min(self._call.deadline, self._arrived + timeout * 1e-9 if timeout else float("inf"))
        ticket = self._desk.take(
            REQUESTS[request.number], message, request.start, request.stop,
            deadline=deadline,
            written=functools.partial(self._written, identity, request.number),
            failed=functools.partial(self._failed, identity),
        )  # fmt: skip
        if ticket is not None:
            with self._lock:
                self._open[identity] = (ticket, size)

    def _cancel(self, message: bytes, field: Field) -> None:
        if field.wire_type == VARINT:
            identities = [field.value]
        else:  # a packed list looks like the fields of a message whose numbers have no tags
            identities = pb.PipelineRequest.FromString(
                prefix(CANCELLED, field.stop - field.start) + message[field.start : field.stop]
            ).cancelled_ids[:]
        for identity in identities:
            with self._lock:
                ticket, _ = self._open.get(identity, (None, 0))
            if ticket is not None and self._desk.cancel(ticket):
                with self._lock:
                    self._forget(identity)

    def _written(self, identity: int, number: int, parts: list[Part], length: int) -> None:
        header = ID_TAG + varint(identity) + prefix(number, length)
        self._answer(identity, [prefix(ANSWERS, len(header) + length) + header, *parts], length + len(header))

    def _failed(self, identity: int, error: NabladError) -> None:
        with self._lock:
            self._forget(identity)
        self._answer_error(identity, error)

    def _answer_error(self, identity: int, error: NabladError) -> None:
        body = to_wire(error).SerializeToString()
        header = ID_TAG + varint(identity) + prefix(ERROR, len(body))
        self._answer(None, [prefix(ANSWERS, len(header) + len(body)) + header, body], len(header) + len(body))

    def _answer(self, identity: int | None, parts: list[Part], length: int) -> None:
        with self._lock:
            if identity is not None:
                self._forget(identity)
            if self._ended:
                return
            self._ready.append((parts, length))
            self._unsent += length
            if self._gathering:
                return
        self._go_on()

    def _forget(self, identity: int) -> None:
        _, size = self._open.pop(identity, (None, 0))
        self._held -= size

    def _go_on(self) -> None:
        """Sends what is ready, reads on if there is room, and ends the stream when all is done."""
        with self._lock:
            if self._ended or self._gathering:
                return
            parts: list[Part] = []
            if not self._sending:
                while self._ready and (not parts or self._sending + self._ready[0][1] <= self._window.message):
                    some, length = self._ready.popleft()
                    parts += some
                    self._sending += length
                self._unsent -= self._sending
            all_read = self._fields is None
            read = all_read and not self._reading and not self._half_closed and self._has_room()
            self._reading |= read
            done = all_read and self._half_closed and not (self._open or self._ready or self._sending)
            self._ended |= done
        if parts:
            self._call.send(b"".join(parts))
        if read:
            self._call.receive()
        if done:
            self._call.end()

    def dismiss(self, error: NabladError) -> None:
        """Ends the stream, whatever is still open."""
        with self._lock:
            if self._ended:
                return
            self._ended = True
            tickets = [ticket for ticket, _ in self._open.values() if ticket is not None]
            self._open.clear()
        for ticket in tickets:
            self._desk.cancel(ticket)
        self._call.end(error)
