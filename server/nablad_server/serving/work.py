"""The way of one request, call or operation of a stream: read → run → written."""

import contextlib
import time
from collections.abc import Callable
from typing import TypeVar

from nablad.errors import NabladError
from nablad.v1 import differentiation_pb2 as pb
from nablad.v1 import function_pb2
from nablad_server.batching.batcher import Batcher
from nablad_server.batching.ticket import Outcome, Owner, State, Ticket
from nablad_server.derivatives.inspection import Inspection
from nablad_server.derivatives.patterns import Patterns
from nablad_server.derivatives.query import Query
from nablad_server.derivatives.runner import Points
from nablad_server.serving.caller import Allowed
from nablad_server.serving.decode import Decoded, Decoder, Kind
from nablad_server.serving.endpoint import reported
from nablad_server.serving.gate import Gate
from nablad_server.serving.layout import Part
from nablad_server.serving.sparsity import Pending
from nablad_server.serving.statistics import Statistics

KINDS = {
    "Evaluate": Kind(pb.EvaluateRequest, Decoder.evaluate),
    "Gradient": Kind(pb.GradientRequest, Decoder.gradient),
    "Jacobian": Kind(pb.JacobianRequest, Decoder.jacobian),
    "Hessian": Kind(pb.HessianRequest, Decoder.hessian),
    "Hvp": Kind(pb.HvpRequest, Decoder.hvp),
    "Jvp": Kind(pb.JvpRequest, Decoder.jvp),
    "Vjp": Kind(pb.VjpRequest, Decoder.vjp),
    "DirectionalDerivative": Kind(pb.DirectionalDerivativeRequest, Decoder.directional_derivative),
    "Derivative": Kind(pb.DerivativeRequest, Decoder.derivative),
    "Laplacian": Kind(pb.LaplacianRequest, Decoder.laplacian),
}
"""The operators, by the name of their RPC."""

_OPERATORS = {
    name: function_pb2.Operator.Value(f"OPERATOR_{''.join('_' * c.isupper() + c for c in name)[1:].upper()}")
    for name in KINDS
}

Written = Callable[[list[Part], int], None]
"""Takes the parts of a response, and how many bytes they are together."""
Answered = Callable[[Outcome], None]
Failed = Callable[[NabladError], None]

_Read = TypeVar("_Read")


class Desk:
    """Takes in requests, gathers them, and has those that came together worked on together.

    Used by the transport's thread; answers are given in whichever thread the work was done in.
    """

    def __init__(
        self, decoder: Decoder, patterns: Patterns, batcher: Batcher, gate: Gate, statistics: Statistics
    ) -> None:
        self._decoder = decoder
        self._patterns = patterns
        self._batcher = batcher
        self._gate = gate
        self._statistics = statistics
        self._gathered: list[Ticket] = []

    def take(
        self,
        name: str,
        message: bytes,
        start: int,
        stop: int,
        *,
        allowed: Allowed | None,
        owner: Owner,
        deadline: float,
        written: Written,
        failed: Failed,
    ) -> Ticket | None:
        """Takes in the request message[start:stop] of an operator.

        It is worked on with the next `together`, and then either `written` or `failed` is called, once, from any
        thread; neither if the ticket is cancelled before. None, and `failed` was called, if nothing is to be done.
        `allowed` are the functions that it may be about; None for all.
        """
        refused = self._gate.enter()
        if refused is not None:
            failed(refused)
            return None
        decoded = self.read(name, _OPERATORS[name], _reader(name, message, start, stop, allowed), failed)
        if decoded is None:
            self._gate.leave()
            return None
        if isinstance(decoded, Pending):
            return self._later(
                name, message[start:stop], decoded, owner=owner, deadline=deadline, written=written, failed=failed
            )
        query, points, layout, _ = decoded
        answered = lambda outcome: written(*layout.write(outcome))
        ticket = self._ticket(
            name, query, points, stop - start, owner=owner, deadline=deadline, answered=answered, failed=failed
        )
        self._gathered.append(ticket)
        return ticket

    def _later(
        self, name: str, message: bytes, pending: Pending, *, owner: Owner, deadline: float, written: Written,
        failed: Failed,
    ) -> Ticket | None:  # fmt: skip
        """A ticket for a request that cannot be read before a pattern is found: it can be cancelled from now on.

        Once the pattern is there the request is read anew, in the thread that found it, and handed to the workers.
        None, and `failed` was called, if the pattern cannot be waited for.
        """
        size = len(message)

        def done(outcome: Outcome | NabladError) -> None:  # while there is nothing to run, it can only be refused
            if isinstance(outcome, NabladError):
                rejected = reported(name, outcome)
                self._statistics.of("", _OPERATORS[name]).rejected(rejected)
                failed(rejected)
            self._gate.leave()

        ticket = Ticket(None, None, 0, size, done, deadline=deadline, owner=owner)
        ticket.arrived = time.monotonic()

        def found() -> None:
            if ticket.state is not State.NEW:  # its caller has gone
                return
            try:
                decoded = _reader(name, message, 0, size, None)(self._decoder)  # allowed before
                if isinstance(decoded, Pending):
                    self._patterns.request(decoded.query, found, owner)
                    return
            except Exception as error:
                self._batcher.refuse(ticket, reported(name, error))
                return
            query, points, layout, _ = decoded
            answered = lambda outcome: written(*layout.write(outcome))
            ready = self._ticket(
                name, query, points, size, owner=owner, deadline=deadline, answered=answered, failed=failed
            )
            ticket.key, ticket.payload, ticket.points = ready.key, ready.payload, ready.points
            ticket.alone, ticket.done = ready.alone, ready.done
            self._batcher.offer(ticket)

        try:
            self._patterns.request(pending.query, found, owner)
        except NabladError as error:
            done(error)
            return None
        return ticket

    def read(
        self, name: str, operator: function_pb2.Operator.ValueType, read: Callable[[Decoder], _Read], failed: Failed
    ) -> _Read | None:
        """What `read` makes of a request; None, and `failed` was called, if it is refused."""
        try:
            return read(self._decoder)
        except Exception as error:
            rejected = reported(name, error)
            self._statistics.of("", operator).rejected(rejected)
            failed(rejected)
            return None

    def begin(
        self, name: str, query: Query | Inspection, points: Points, *, owner: Owner, deadline: float,
        answered: Answered, failed: Failed,
    ) -> Ticket | None:  # fmt: skip
        """Begins work of a call that was read before: at once, from any thread.

        Then either `answered` or `failed` is called, once, from any thread and perhaps before this returns; neither if
        the ticket is cancelled before. None, and `failed` was called, if nothing is to be done.
        """
        ticket = self.admit(
            name, query, points, sum(map(len, points.data)),
            owner=owner, deadline=deadline, answered=answered, failed=failed,
        )  # fmt: skip
        if ticket is not None:
            self._batcher.take([ticket])
        return ticket

    def admit(
        self,
        name: str,
        query: Query | Inspection,
        points: Points,
        size: int,
        *,
        owner: Owner,
        deadline: float,
        answered: Answered,
        failed: Failed,
    ) -> Ticket | None:
        """A ticket for what was read before, to be gathered or offered. Otherwise as `begin`."""
        refused = self._gate.enter()
        if refused is not None:
            failed(refused)
            return None
        return self._ticket(name, query, points, size, owner=owner, deadline=deadline, answered=answered, failed=failed)

    def gather(self, ticket: Ticket) -> None:
        """Has a ticket worked on with the next `together`. In the transport's thread."""
        self._gathered.append(ticket)

    def _ticket(
        self,
        name: str,
        query: Query | Inspection,
        points: Points,
        size: int,
        *,
        owner: Owner,
        deadline: float,
        answered: Answered,
        failed: Failed,
    ) -> Ticket:
        """A ticket for what was let in; what it comes to is counted, and then lets it out."""
        series = self._statistics.of_query(query if isinstance(query, Query) else query.query)

        def done(outcome: Outcome | NabladError) -> None:
            try:
                if isinstance(outcome, tuple):
                    finished = time.perf_counter()
                    answered(outcome)
                    series.answered(points.count, outcome, time.perf_counter() - finished)
                else:
                    rejected = reported(name, outcome)
                    series.rejected(rejected)
                    failed(rejected)
            except Exception as error:
                rejected = reported(name, error)
                with contextlib.suppress(Exception):  # what answers is what failed: the thread goes on to the next call
                    failed(rejected)
            finally:
                self._gate.leave()

        return Ticket(
            query,
            points,
            points.count,
            size,
            done,
            alone=any(query.shared),
            deadline=deadline,
            owner=owner,
        )

    def cancel(self, ticket: Ticket) -> bool:
        """Drops a request whose work has not begun: it gets no answer. False if it has one, or will have one."""
        if not self._batcher.cancel(ticket):
            return False
        self._gate.leave()
        return True

    def together(self) -> None:
        """Has all that was taken in since the last time worked on."""
        if self._gathered:
            gathered, self._gathered = self._gathered, []
            self._batcher.take(gathered)


def _reader(
    name: str, message: bytes, start: int, stop: int, allowed: Allowed | None
) -> Callable[[Decoder], Decoded | Pending]:
    """What reads the request message[start:stop] of an operator, or says what has to be found first."""

    def read(decoder: Decoder) -> Decoded | Pending:
        try:
            return decoder.read(KINDS[name], message, start, stop, allowed)
        except Pending as pending:
            return pending

    return read


def ticket_of(decoded: Decoded, done: Callable[[Outcome | NabladError], None]) -> Ticket:
    """A ticket for a request that nobody sent."""
    query, points, _, _ = decoded
    return Ticket(query, points, points.count, sum(map(len, points.data)), done, alone=any(query.shared))
