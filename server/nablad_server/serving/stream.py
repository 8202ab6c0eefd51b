"""What streams of many requests by id have in common: how much is read, and how answers are gathered and sent."""

import threading
import time
from abc import abstractmethod
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from nablad.errors import MalformedRequest, NabladError, to_wire
from nablad.framing import VARINT, Field, fields, prefix, tag, varint
from nablad.v1 import differentiation_pb2 as pb
from nablad_server.batching.ticket import Ticket
from nablad_server.serving.call import Call
from nablad_server.serving.layout import Part
from nablad_server.serving.work import Desk

TURN_SECONDS = 3e-3
"""So long at most a stream's operations are taken in before others have a turn: those of new shapes are traced for
milliseconds each."""

ID_TAG = tag(pb.Answer.DESCRIPTOR.fields_by_name["id"].number, VARINT)
ERROR = pb.Answer.DESCRIPTOR.fields_by_name["error"].number
"""The parts that the answers of all streams have are numbered alike."""


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


class Stream:
    """One stream. Messages come in the transport's thread, answers in any.

    Attributes:
        request: the full name of the messages that come.
        answers: the number of the answers in the messages that go.
        call: what the stream is carried by.
        desk: what requests are given to.
        arrived: when the message came that is being read, on time.monotonic's clock.
    """

    request: str
    answers: int

    def __init__(self, call: Call, desk: Desk, window: Window) -> None:
        self.call = call
        self.desk = desk
        self.arrived = 0.0
        self._window = window
        self._lock = threading.Lock()
        self._open: dict[int, tuple[Ticket | None, int]] = {}  # by id: the ticket, and the bytes of the request
        self._held = 0  # bytes of the requests that are open
        self._ready: deque[tuple[list[Part], int]] = deque()
        self._unsent = 0  # bytes of the answers that are ready
        self._sending = 0  # bytes of the answers on their way
        self._message = b""
        self._fields: Iterator[Field] | None = None  # of the message, those not yet taken in
        self._reading = True  # a message has been asked for
        self._postponed = False  # taking in goes on later
        self._gathering = False  # a message is being read: answers wait for each other
        self._half_closed = False
        self._awaiting_first = False  # answers wait for the one that is to be the first
        self._ended = False

    @abstractmethod
    def take(self, message: bytes, field: Field) -> None:
        """Takes in one field of a message. Raises MalformedRequest if the stream is to end for it."""

    def received(self, message: bytes | None) -> None:
        """A message has come, or the client has sent all."""
        with self._lock:
            self._reading = False
            self._half_closed |= message is None
            if message is not None:  # with the lock: until it is here to be seen, no other may be asked for
                self._message, self.arrived = message, time.monotonic()
                self._fields = self.ordered(fields(message, 0, len(message)))
        self._read_on()

    def ordered(self, found: Iterator[Field]) -> Iterator[Field]:
        """The fields of a message in the order in which they are to be taken in."""
        return found

    def sent(self) -> None:
        """The client's side has taken the answers on their way."""
        with self._lock:
            self._sending = 0
        self._read_on()

    def closed(self) -> None:
        """The stream is over: what was not begun need not be."""
        self._over()

    def dismiss(self, error: NabladError) -> None:
        """Ends the stream, whatever is still open."""
        if self._over():
            self.call.end(error)

    def enter(self, identity: int, size: int) -> bool:
        """Opens an operation whose request has so many bytes; False if one of this id is open."""
        with self._lock:
            if identity in self._open:
                return False
            self._open[identity] = (None, size)
            self._held += size
            return True

    def begun(self, identity: int, ticket: Ticket) -> None:
        """Says by which ticket an operation can be cancelled."""
        with self._lock:
            if identity in self._open:  # it may be answered already
                self._open[identity] = (ticket, self._open[identity][1])

    def cancel(self, identity: int) -> None:
        """Forgets an operation, unless it is under way or done."""
        with self._lock:
            ticket, _ = self._open.get(identity, (None, 0))
        if ticket is not None and self.desk.cancel(ticket):
            with self._lock:
                self._forget(identity)

    @property
    def busy(self) -> bool:
        """Whether something is not yet answered."""
        return bool(self._open)

    def fail(self, identity: int, error: NabladError, *, owned: bool = True) -> None:
        """Answers with an error. `owned`: the id is that of the request that failed, and free now. From any thread."""
        body = to_wire(error).SerializeToString()
        header = ID_TAG + varint(identity) + prefix(ERROR, len(body))
        length = len(header) + len(body)
        self.answer(identity if owned else None, [prefix(self.answers, length) + header, body], length)

    def answer(self, identity: int | None, parts: list[Part], length: int, *, first: bool = False) -> None:
        """Sends so many bytes of a message, and closes an operation, if one is named. From any thread."""
        with self._lock:
            if identity is not None:
                self._forget(identity)
            if self._ended:
                return
            if first:
                self._awaiting_first = False
                self._ready.appendleft((parts, length))
            else:
                self._ready.append((parts, length))
            self._unsent += length
            if self._gathering:
                return
        self._go_on()

    def _over(self) -> bool:
        """Lets go of everything; False if the stream had ended already."""
        with self._lock:
            already, self._ended = self._ended, True
            tickets = [ticket for ticket, _ in self._open.values() if ticket is not None]
            self._open.clear()
            self._ready.clear()
        for ticket in tickets:
            self.desk.cancel(ticket)
        return not already

    def _read_on(self) -> None:
        """Takes in as many operations of the message at hand as there is room for. In the transport's thread."""
        waiting = self._fields
        if waiting is not None and not self._ended and not self._postponed:
            with self._lock:
                self._gathering = True
            try:
                finish_by = time.monotonic() + TURN_SECONDS
                while self._has_room() and not self._ended:
                    field = next(waiting, None)
                    if field is None:
                        self._fields, self._message = None, b""
                        break
                    self.take(self._message, field)
                    if time.monotonic() > finish_by:
                        self._postponed = True
                        self.call.later(self._resume)
                        break
            except MalformedRequest as error:
                self.dismiss(error)
            except (ValueError, DecodeError) as error:
                self.dismiss(
                    MalformedRequest(f"{len(self._message)} bytes are not a well-formed {self.request}: {error}")
                )
            # What is light is answered before this returns; those answers go together. What is left for later joins it.
            if not self._postponed:
                self.desk.together()
            with self._lock:
                self._gathering = False
        self._go_on()

    def _resume(self) -> None:
        """Goes on taking in, once others have had their turn."""
        self._postponed = False
        self._read_on()

    def _has_room(self) -> bool:
        window = self._window
        return len(self._open) < window.operations and self._held < window.size and self._unsent < window.size

    def _forget(self, identity: int) -> None:
        _, size = self._open.pop(identity, (None, 0))
        self._held -= size

    def _go_on(self) -> None:
        """Sends what is ready, reads on if there is room, and ends the stream when all is done."""
        with self._lock:
            if self._ended or self._gathering:
                return
            parts: list[Part] = []
            if not self._sending and not self._awaiting_first:
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
            self.call.send(b"".join(parts))
        if read:
            self.call.receive()
        if done:
            self.call.end()
