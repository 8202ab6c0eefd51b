"""StreamHessian and StreamJacobian: a matrix in blocks of rows, each computed when the one before has been taken."""

import functools
import threading
from collections.abc import Callable

from google.protobuf.message import Message

from nablad.errors import MalformedRequest, NabladError
from nablad.framing import VARINT, delimited, prefix, tag, varint
from nablad.tensors import NUMBERS
from nablad.v1 import differentiation_pb2 as pb
from nablad_server.batching.ticket import Outcome, Ticket
from nablad_server.derivatives.query import Query
from nablad_server.derivatives.runner import Points, Results
from nablad_server.serving.call import Call
from nablad_server.serving.decode import Decoder
from nablad_server.serving.decode_rows import ROW_KINDS, RowPlan
from nablad_server.serving.endpoint import parsed
from nablad_server.serving.layout import elements, non_finite
from nablad_server.serving.work import Desk

HEADER = pb.StreamHessianResponse.DESCRIPTOR.fields_by_name["header"].number
BLOCK = pb.StreamHessianResponse.DESCRIPTOR.fields_by_name["block"].number
"""The parts of a response are numbered alike in both."""

_FIRST_ROW, _TENSOR, _NON_FINITE = (
    pb.RowBlock.DESCRIPTOR.fields_by_name[name].number for name in ("first_row", "tensor", "non_finite")
)


class RowStream:
    """One stream. While one block is sent another one is computed, and then waits: a slow reader slows the work down.

    The request comes in the transport's thread, results in any.
    """

    def __init__(self, name: str, call: Call, desk: Desk) -> None:
        self._name = name
        self._kind = ROW_KINDS[name]
        self._call = call
        self._desk = desk
        self._lock = threading.Lock()
        self._plan: RowPlan | None = None
        self._next = 0  # the first row that was not yet begun
        self._begun = 0  # how many tickets
        self._ticket: Ticket | None = None
        self._computing = False
        self._ready = b""  # the message that is sent next
        self._sending = False
        self._ended = False

    def received(self, message: bytes | None) -> None:
        """The request has come."""
        if message is None:
            self.dismiss(MalformedRequest("the call ended without a request"))
            return
        kind = self._kind
        plan = self._plan = self._desk.read(
            self._name, kind.operator, lambda decoder: self._planned(decoder, parsed(kind.request, message)),
            self.dismiss,
        )  # fmt: skip
        if plan is not None:
            self._next = plan.header.first_row
            self._computing = True
            self._begin(plan.head.query, plan.head.points, lambda outcome: self._computed(header(plan, outcome)))

    def sent(self) -> None:
        """The transport has taken what was sent last."""
        with self._lock:
            self._sending = False
        self._go_on()

    def closed(self) -> None:
        """The stream is over: what was not begun need not be."""
        with self._lock:
            self._ended = True
            self._plan, self._ready = None, b""  # call and handler know each other: what is large is let go of now
        self._cancel()

    def dismiss(self, error: NabladError) -> None:
        """Ends the stream with an error, if it has not ended."""
        with self._lock:
            if self._ended:
                return
            self._ended = True
            self._call.end(error)
        self._cancel()

    def _planned(self, decoder: Decoder, request: Message) -> RowPlan:
        allowed = self._call.caller.functions
        work = functools.partial(self._kind.plan, decoder, request)
        return work() if allowed is None else allowed.only(request, work)

    def _begin(self, query: Query, points: Points, answered: Callable[[Outcome], None]) -> None:
        with self._lock:
            self._begun += 1
            number = self._begun
        ticket = self._desk.begin(
            self._name, query, points,
            owner=self._call.account.owner, deadline=self._call.deadline, answered=answered, failed=self.dismiss,
        )  # fmt: skip
        with self._lock:
            if self._begun == number:  # else it is answered already, and another one was begun meanwhile
                self._ticket = ticket
            ended = self._ended
        if ended:
            self._cancel()

    def _cancel(self) -> None:
        """Drops what waits to be computed. A ticket that was answered is past that."""
        with self._lock:
            ticket, self._ticket = self._ticket, None
        if ticket is not None:
            self._desk.cancel(ticket)

    def _computed(self, message: bytes) -> None:
        with self._lock:
            self._computing = False
            self._ready = b"" if self._ended else message
        self._go_on()

    def _go_on(self) -> None:
        """Sends what is ready, begins the next block if nothing waits to be sent, and ends when all is done."""
        with self._lock:
            plan = self._plan
            if self._ended or plan is None:
                return
            if self._ready and not self._sending:
                self._call.send(self._ready)
                self._ready, self._sending = b"", True
            if self._ready or self._computing:
                return
            first = self._next
            if first == plan.header.row_count:
                if not self._sending:
                    self._ended = True
                    self._call.end()
                return
            self._next += plan.rows(first)
            self._computing = True
        self._begin(plan.query, plan.points(first), lambda outcome: self._computed(block(plan, first, outcome)))


def header(plan: RowPlan, outcome: Outcome) -> bytes:
    """The first message. Values, gradients and execution have the numbers that they have in a response of their own."""
    parts, length = plan.head.layout.write(outcome)
    known = plan.header.SerializeToString()
    return b"".join((prefix(HEADER, len(known) + length), known, *parts))


def block(plan: RowPlan, first: int, outcome: Outcome) -> bytes:
    """The message with the block that begins with this row. The elements are copied once."""
    results: Results = outcome.result
    (((computed,),),) = results.groups
    count = plan.rows(first)
    # A block that would have passed the end was computed as the last rows of the matrix.
    rows = computed[0, len(computed[0]) - count :]
    sizes = varint(count) + varint(plan.tensor.shape[1])
    head = tag(1, VARINT) + varint(NUMBERS[plan.tensor.dtype]) + delimited(2, sizes)
    head += prefix(3, rows.nbytes) if rows.nbytes else b""
    before = tag(_FIRST_ROW, VARINT) + varint(first) if first else b""
    before += prefix(_TENSOR, len(head) + rows.nbytes) + head
    after = tag(_NON_FINITE, VARINT) + b"\1" if non_finite(rows) else b""
    return b"".join((
        prefix(BLOCK, len(before) + rows.nbytes + len(after)), before, elements(rows), after
    ))  # fmt: skip
