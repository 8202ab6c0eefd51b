"""What a pipeline does, as a state machine: calls in, messages out; answers in, futures settled.

It has no threads, no sockets and no clock, and is not safe for threads: `_stream` and `_aio_stream` see to that.
Calls of one kind that wait together become one operation, a Pack, whose inputs are batched: a call then costs its bytes
and little else. Futures are settled by `Operation.settle`, which runs their callbacks and so is called without a lock.
"""

import asyncio
import concurrent.futures
import contextlib
import heapq
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import grpc

from nablad import errors
from nablad._channel import ATTEMPTS
from nablad._plans import PACK_BYTES, PACK_POINTS, Plan, rows
from nablad._wire import number, numbers
from nablad.framing import prefix
from nablad.results import Result
from nablad.v1 import differentiation_pb2 as pb

MESSAGE_BYTES = 1 << 20
"""A message carries operations of so many bytes, unless one alone is larger."""
UNSENT_POINTS = 65_536
UNSENT_BYTES = 64 << 20
"""So many points, or bytes of arguments, may wait to be sent before those who submit have to wait."""
PACK_SECONDS = 0.1
"""A pack that waits takes in calls for so long, since all of them share the deadline of the last."""
GRACE_SECONDS = 0.25
"""How much later than the server the client gives up, so that the server has its say."""

CLIENT_CLOSED = "the client was closed"
LATE = (
    "no answer came in time; a first call for new shapes waits for a compilation: try again, or set a longer timeout="
)
ENDED = "the server ended the stream before it had answered everything"

_OPERATIONS = pb.PipelineRequest.OPERATIONS_FIELD_NUMBER
_CANCELLED = pb.PipelineRequest.CANCELLED_IDS_FIELD_NUMBER
_SAME_FOR_ALL = (
    errors.InvalidReference, errors.UnknownInput, errors.MissingInput, errors.DuplicateName, errors.UnknownOutput,
    errors.InvalidOption, errors.NotScalar, errors.NotDifferentiable,
)  # fmt: skip
_REFUTING = (grpc.StatusCode.INVALID_ARGUMENT.value[0], grpc.StatusCode.NOT_FOUND.value[0])
_TOLD = (asyncio.InvalidStateError, concurrent.futures.InvalidStateError)
"""What a future raises that its owner has cancelled meanwhile."""


class Settable(Protocol):
    """What concurrent.futures.Future and asyncio.Future have in common."""

    operation: "Operation | None"

    def set_result(self, result: Any, /) -> None:
        """Settles it with a result."""

    def set_exception(self, exception: BaseException, /) -> None:
        """Settles it with an exception."""

    def done(self) -> bool:
        """Whether it is settled or cancelled."""

    def cancelled(self) -> bool:
        """Whether its owner does not want it any more."""

    def cancel(self) -> bool:
        """Gives it up."""


def part_points(error: Exception, points: int) -> int:
    """How many points the parts have in which an operation that failed is to be sent again; 0: the error stands.

    One of the points may be to blame and the others innocent, so each goes alone. What was too large goes in halves.
    """
    families = (errors.FailedPrecondition, errors.OutOfRange, errors.InvalidArgument, errors.Internal)
    if points == 1 or not isinstance(error, families) or isinstance(error, _SAME_FOR_ALL):
        return 0
    return (points + 1) // 2 if isinstance(error, errors.ResultTooLarge) else 1


def refutes(answer: Any) -> bool:
    """Whether the server understands the function differently than the client, which had its description."""
    return answer.error.code in _REFUTING


class Dialect:
    """What is spoken over a stream: here, that of Pipeline.

    Attributes:
        method: of the RPC.
        closed: what is said of calls made after the end.
        malformed: what is said of messages that are none.
        cancels: whether the server is told what is not wanted any more.
        renewed: whether, after a gRPC stream that failed for good, calls try another.
    """

    method = "/nablad.v1.DifferentiationService/Pipeline"
    closed = "the pipeline is closed; make calls before that, within its `with` block"
    malformed = "the server sent something that is no PipelineResponse"
    cancels = True
    renewed = True

    def first(self) -> bytes:
        """What the first message of every gRPC stream begins with."""
        return b""

    def read(self, data: bytes) -> Any:
        """A message with `answers`. Raises DecodeError if it is none."""
        return pb.PipelineResponse.FromString(data)


class Operation:
    """One operation of the stream.

    Attributes:
        id: in the stream.
        function: the reference that it asks for.
        futures: what it settles: one, or one for each point.
        points: how many it is about.
        size: bytes of its arguments, or of its whole request.
        deadline: when its answer is of no use any more, by the clock that the shell has; infinite for none.
        wanted: how many futures are not cancelled.
        attempts: how often no server answered it.
    """

    def __init__(self, function: str, field: int, read: Callable[[Any], Any]) -> None:
        """`field`: of the operator in Operation and Answer."""
        self.id = 0
        self.function = function
        self.futures: list[Any] = []
        self.points = 0
        self.size = 0
        self.deadline = float("inf")
        self.wanted = 0
        self.attempts = 0
        self._field = field
        self._read = read

    @property
    def weight(self) -> int:
        """How much there is to it: bytes, each point counted with its share of a pack at least."""
        return max(self.size, self.points * (PACK_BYTES // PACK_POINTS))

    def body(self) -> Sequence[bytes]:
        """The request in pieces."""
        raise NotImplementedError

    def seal(self) -> None:
        """Ends what it can take in: it is about to be sent."""

    def encode(self, now: float) -> tuple[list[bytes], int]:
        """The field of a PipelineRequest, in pieces, and their size."""
        body = self.body()
        request = sum(map(len, body))
        timeout = 0 if self.deadline == float("inf") else max(1, int((self.deadline - now) * 1e9))
        opening = number(pb.Operation.ID_FIELD_NUMBER, self.id)
        opening += number(pb.Operation.TIMEOUT_NANOSECONDS_FIELD_NUMBER, timeout) + prefix(self._field, request)
        opening = prefix(_OPERATIONS, len(opening) + request) + opening
        return [opening, *body], len(opening) + request

    def settle(self, answer: Any, retries: bool) -> "list[Operation]":
        """Settles the futures with an answer. Gives what is to be sent instead, if the answer is not the last word."""
        kind = answer.WhichOneof("response")
        if kind == "error":
            return self._refused(errors.from_wire(answer.error), retries)
        try:
            if pb.Answer.DESCRIPTOR.fields_by_name[kind or "error"].number != self._field:
                raise errors.Internal(
                    f"the server answered with {kind or 'nothing'}; this client may be too old for it"
                )
            self.deliver(getattr(answer, kind or ""))
        except Exception as error:  # whatever reading an answer leads to is the futures' to raise
            self.fail(error)
        return []

    def deliver(self, response: Any) -> None:
        """Settles the futures with a response."""
        with contextlib.suppress(*_TOLD):
            self.futures[0].set_result(self._read(response))

    def fail(self, error: BaseException) -> None:
        """Settles the futures with an error."""
        for future in self.futures:
            with contextlib.suppress(*_TOLD):
                future.set_exception(error)

    def cancel(self) -> None:
        """Cancels the futures."""
        for future in self.futures:
            future.cancel()

    def parts(self, error: Exception) -> "list[Operation]":  # noqa: ARG002 - a single one has none
        """What to send instead, after an error; nothing if the error stands."""
        return []

    def _refused(self, error: errors.NabladError, retries: bool) -> "list[Operation]":
        if isinstance(error, errors.Unavailable) and retries:
            self.attempts += 1
            if self.attempts < ATTEMPTS:
                return [self]
        parts = self.parts(error)
        if not parts:
            self.fail(error)
        return parts


class Single(Operation):
    """A request as it is, with one future."""

    def __init__(
        self, function: str, field: int, body: Sequence[bytes], read: Callable[[Any], Any], future: Settable
    ) -> None:
        """`body`: the request in pieces."""
        super().__init__(function, field, read)
        self.futures.append(future)
        self.points = self.wanted = 1
        self.size = sum(map(len, body))
        self._body = body
        future.operation = self

    def body(self) -> Sequence[bytes]:
        """The request in pieces."""
        return self._body


class Pack(Operation):
    """Calls of one kind, one future each: an operation with batched inputs, or the plain request if there is one."""

    def __init__(self, group: "Group") -> None:
        super().__init__(group.plan.function, group.plan.field, group.plan.read)
        self._group = group
        self.columns: list[list[bytes]] = [[] for _ in group.plan.encoders]

    def add(self, data: Iterable[bytes], future: Settable) -> None:
        """Takes in a call: the data of its arguments."""
        for column, item in zip(self.columns, data):  # noqa: B905 - a plan sees to it, and this runs for each call
            column.append(item)
        self.futures.append(future)
        future.operation = self
        self.points += 1
        self.size += self._group.plan.row_bytes
        self.wanted += 1

    def seal(self) -> None:
        """Ends what it can take in, and leaves out what was cancelled while it waited."""
        if self._group.pack is self:
            self._group.pack = None
        if self.wanted < len(self.futures):
            kept = [index for index, future in enumerate(self.futures) if not future.cancelled()]
            self.futures = [self.futures[index] for index in kept]
            self.columns = [[column[index] for index in kept] for column in self.columns]
        self.points = len(self.futures)

    def body(self) -> list[bytes]:
        """The request in pieces."""
        return self._group.plan.frame(self.points if self.points > 1 else None).around(self.columns)

    def deliver(self, response: Any) -> None:
        """Settles each future with the results of its point."""
        self._group.plan.learn(response, self.points)
        if self.points == 1:
            super().deliver(response)
            return
        result: Result = self._read(response)
        for future, row in zip(self.futures, rows(result, self.points), strict=True):
            try:
                future.set_result(row)
            except _TOLD:  # faster than a context manager for each point
                continue

    def parts(self, error: Exception) -> list[Operation]:
        """What to send instead, after an error; without those whose futures are cancelled."""
        points = part_points(error, self.points)
        if not points:
            return []
        if isinstance(error, errors.ResultTooLarge):
            self._group.plan.limit(points)
        kept = [index for index, future in enumerate(self.futures) if not future.cancelled()]
        parts: list[Operation] = []
        for start in range(0, len(kept), points):
            part = Pack(Group(self._group.plan))
            part.deadline = self.deadline
            for index in kept[start : start + points]:
                part.add([column[index] for column in self.columns], self.futures[index])
            parts.append(part)
        return parts


class Chunk(Single):
    """Many points of one kind with one future, whose result is the batched one; of one point the plain request."""

    def __init__(self, plan: Plan[Any], columns: Sequence[Sequence[bytes]], points: int, future: Settable) -> None:
        """`columns`: the pieces of the data of each tensor."""
        body = plan.frame(points if points > 1 else None).around(columns)
        super().__init__(plan.function, plan.field, body, plan.read, future)
        self.points = points
        self._plan = plan
        self._columns = columns

    def deliver(self, response: Any) -> None:
        """Settles the future with the results of all points."""
        self._plan.learn(response, self.points)
        super().deliver(response)

    @property
    def weight(self) -> int:
        """How much there is to it, its results included."""
        return max(super().weight, self.points * self._plan.answer_bytes)

    def split(self, error: Exception, future: Callable[[], Any]) -> "list[Chunk]":
        """What to send instead, after an error, with futures of their own; nothing if the error stands."""
        points = part_points(error, self.points)
        if not points:
            return []
        if isinstance(error, errors.ResultTooLarge):
            self._plan.limit(points)
        data = [b"".join(column) for column in self._columns]
        parts = []
        for start in range(0, self.points, points):
            stop = min(start + points, self.points)
            columns = [
                [item if shared else item[start * size : stop * size]]
                for item, size, shared in zip(data, self._plan.sizes, self._plan.shared, strict=True)
            ]
            part = Chunk(self._plan, columns, stop - start, future())
            part.deadline = self.deadline
            parts.append(part)
        return parts


class Leg:
    """One gRPC stream of those that follow each other when connections break.

    Attributes:
        over: whether nothing is to be sent over it any more.
        answered: whether something was answered over it.
    """

    def __init__(self) -> None:
        self.over = False
        self.answered = False


class Group:
    """Calls of one kind: how they are made, and the pack that takes them in."""

    def __init__(self, plan: Plan[Any], timeout: float | None = None) -> None:
        self.plan = plan
        self.timeout = timeout
        self.pack: Pack | None = None
        self.closes = 0.0


class Packing:
    """The operations of one pipeline that are not answered.

    Attributes:
        unsent_points: of operations that wait to be sent.
        unsent_bytes: of their arguments.
    """

    def __init__(self, cancels: bool = True) -> None:
        """`cancels`: whether messages say what is not wanted any more."""
        self._cancels = cancels
        self.unsent_points = 0
        self.unsent_bytes = 0
        self._next_id = 1
        self._waiting: OrderedDict[int, Operation] = OrderedDict()
        self._sent: dict[int, Operation] = {}
        self._settling = 0
        self._cancelled: list[int] = []
        self._deadlines: list[tuple[float, int]] = []

    @property
    def open(self) -> int:
        """How many operations are not settled."""
        return len(self._waiting) + len(self._sent) + self._settling

    @property
    def full(self) -> bool:
        """Whether as much waits to be sent as may."""
        return self.unsent_points >= UNSENT_POINTS or self.unsent_bytes >= UNSENT_BYTES

    @property
    def ready(self) -> bool:
        """Whether there is something to send."""
        return bool(self._waiting or self._cancelled)

    @property
    def deadline(self) -> float:
        """The next moment at which something may be late; infinite if nothing can be."""
        return self._deadlines[0][0] + GRACE_SECONDS if self._deadlines else float("inf")

    def add_row(self, group: Group, data: Sequence[bytes], future: Settable, now: float) -> bool:
        """Takes in one call. Says whether it began an operation, rather than joining one that waits already."""
        pack, plan = group.pack, group.plan
        begun = pack is None or now > group.closes
        if pack is None or begun:
            pack = group.pack = Pack(group)
            if group.timeout is not None:
                pack.deadline = now + group.timeout
            group.closes = now + PACK_SECONDS
            self._begin(pack)
        if group.timeout is not None:
            pack.deadline = now + group.timeout
        pack.add(data, future)
        self.unsent_points += 1
        self.unsent_bytes += plan.row_bytes
        if pack.points >= plan.points:
            group.pack = None
        return begun

    def add(self, operations: Iterable[Operation]) -> None:
        """Takes in operations, each under a new id."""
        for operation in operations:
            if operation.wanted:
                self._begin(operation)

    def _begin(self, operation: Operation) -> None:
        operation.id = self._next_id
        self._next_id += 1
        self._wait(operation)
        if operation.deadline != float("inf"):
            heapq.heappush(self._deadlines, (operation.deadline, operation.id))
        if len(self._deadlines) > 2 * self.open + 64:
            unanswered = self._waiting.keys() | self._sent.keys()
            self._deadlines = [entry for entry in self._deadlines if entry[1] in unanswered]
            heapq.heapify(self._deadlines)

    def message(self, now: float) -> bytes | None:
        """The next message, with as much of what waits as it may carry; None if there is nothing to send."""
        pieces: list[bytes] = []
        size = 0
        while self._waiting:
            operation = next(iter(self._waiting.values()))
            if size and size + operation.size > MESSAGE_BYTES:
                break
            self._unwait(operation)
            operation.seal()
            if not operation.points:  # all of them were cancelled this very moment
                continue
            self._sent[operation.id] = operation
            encoded, length = operation.encode(now)
            pieces += encoded
            size += length
        if self._cancelled:
            pieces.append(numbers(_CANCELLED, self._cancelled))
            self._cancelled = []
        return b"".join(pieces) if pieces else None

    def take(self, response: Any) -> list[tuple[Operation, Any]]:
        """The operations that a response answers. What was given up or is unknown is left out."""
        taken = [(self._sent.pop(answer.id), answer) for answer in response.answers if answer.id in self._sent]
        self._settling += len(taken)
        return taken

    def settled(self, operations: int, again: Sequence[Operation]) -> None:
        """Says that so many of what was taken is settled, except for what is to be sent again."""
        self.add(again)
        self._settling -= operations

    def late(self, now: float) -> list[Operation]:
        """Gives up what is late: the caller fails it."""
        found = []
        while self.deadline <= now:
            id_ = heapq.heappop(self._deadlines)[1]
            operation = self._waiting.get(id_) or self._sent.get(id_)
            if operation is None:
                continue
            if operation.deadline + GRACE_SECONDS > now:  # a pack that others have joined since
                heapq.heappush(self._deadlines, (operation.deadline, id_))
                continue
            self._remove(operation)
            found.append(operation)
        return found

    def unwanted(self, operation: Operation) -> None:
        """Takes note that one of an operation's futures was cancelled."""
        operation.wanted -= 1
        if operation.wanted == 0:
            if operation.id in self._sent and self._cancels:
                self._cancelled.append(operation.id)
            self._remove(operation)

    def resend(self) -> None:
        """Makes what is sent and not answered wait again, before all else: the stream that carried it is gone."""
        again = sorted(self._sent.values(), key=lambda operation: operation.id, reverse=True)
        self._sent.clear()
        self._cancelled.clear()
        for operation in again:
            if operation.wanted < len(operation.futures):
                operation.seal()
            self._wait(operation)
            self._waiting.move_to_end(operation.id, last=False)

    def clear(self) -> list[Operation]:
        """Gives up everything: the caller fails or cancels it."""
        given_up = [*self._sent.values(), *self._waiting.values()]
        for operation in given_up:
            self._remove(operation)
        return given_up

    def _wait(self, operation: Operation) -> None:
        self._waiting[operation.id] = operation
        self.unsent_points += operation.points
        self.unsent_bytes += operation.size

    def _unwait(self, operation: Operation) -> None:
        del self._waiting[operation.id]
        self.unsent_points -= operation.points
        self.unsent_bytes -= operation.size

    def _remove(self, operation: Operation) -> None:
        if operation.id in self._waiting:
            self._unwait(operation)
        else:
            self._sent.pop(operation.id, None)
        operation.seal()
