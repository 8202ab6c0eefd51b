"""The way of one request, call or operation of a stream: read → run → written."""

import contextlib
import time
from collections.abc import Callable

from nablad.errors import NabladError
from nablad.v1 import differentiation_pb2 as pb
from nablad.v1 import function_pb2
from nablad_server.batching.batcher import Batcher
from nablad_server.batching.ticket import Outcome, Ticket
from nablad_server.serving.decode import Decoded, Decoder, Kind
from nablad_server.serving.endpoint import reported
from nablad_server.serving.gate import Gate
from nablad_server.serving.layout import Part
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
Failed = Callable[[NabladError], None]


class Desk:
    """Takes in requests, gathers them, and has those that came together worked on together.

    Used by the transport's thread; answers are given in whichever thread the work was done in.
    """

    def __init__(self, decoder: Decoder, batcher: Batcher, gate: Gate, statistics: Statistics) -> None:
        self._decoder = decoder
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
        deadline: float,
        written: Written,
        failed: Failed,
    ) -> Ticket | None:
        """Takes in the request message[start:stop] of an operator.

        It is worked on with the next `together`, and then either `written` or `failed` is called, once, from any
        thread; neither if the ticket is cancelled before. None, and `failed` was called, if nothing is to be done.
        """
        refused = self._gate.enter()
        if refused is not None:
            failed(refused)
            return None
        try:
            decoded = self._decoder.read(KINDS[name], message, start, stop)
        except Exception as error:
            self._gate.leave()
            rejected = reported(name, error)
            self._statistics.of("", _OPERATORS[name]).rejected(rejected)
            failed(rejected)
            return None
        query, points, layout, _ = decoded
        series = self._statistics.of_query(query)

        def done(outcome: Outcome | NabladError) -> None:
            try:
                if isinstance(outcome, tuple):
                    finished = time.perf_counter()
                    written(*layout.write(outcome))
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

        ticket = Ticket(
            query,
            points,
            points.count,
            stop - start,
            done,
            alone=any(query.shared),
            deadline=deadline,
        )
        self._gathered.append(ticket)
        return ticket

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


def ticket_of(decoded: Decoded, done: Callable[[Outcome | NabladError], None]) -> Ticket:
    """A ticket for a request that nobody sent."""
    query, points, _, _ = decoded
    return Ticket(query, points, points.count, sum(map(len, points.data)), done, alone=any(query.shared))
