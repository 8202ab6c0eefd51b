"""DifferentiationService: a unary call for each operator, and the streams."""

from collections.abc import Callable

from nablad.errors import MalformedRequest, NabladError
from nablad.v1 import differentiation_pb2 as pb
from nablad_server.batching.ticket import Ticket
from nablad_server.serving.call import Call, Handler
from nablad_server.serving.decode_rows import ROW_KINDS
from nablad_server.serving.layout import Part
from nablad_server.serving.linearize import Linearizations, Linearize
from nablad_server.serving.pipeline import Pipeline
from nablad_server.serving.rows import RowStream
from nablad_server.serving.stream import Window
from nablad_server.serving.work import KINDS, Desk

SERVICE = pb.DESCRIPTOR.services_by_name["DifferentiationService"]

OPERATORS = frozenset(f"/{SERVICE.full_name}/{name}" for name in KINDS)
"""The full names of the operators' RPCs, each a unary one."""

STREAMS = frozenset(f"/{SERVICE.full_name}/{name}" for name in (*ROW_KINDS, "Pipeline", "Linearize"))
"""The full names of the RPCs whose calls are streams."""


def methods(desk: Desk, window: Window, linearizations: Linearizations) -> dict[str, Callable[[Call], Handler]]:
    """For each RPC, by its full name, what makes a handler for a call."""

    def unary(name: str) -> Callable[[Call], Handler]:
        return lambda call: Unary(name, call, desk)

    def rows(name: str) -> Callable[[Call], Handler]:
        return lambda call: RowStream(name, call, desk)

    found: dict[str, Callable[[Call], Handler]] = {f"/{SERVICE.full_name}/{name}": unary(name) for name in KINDS}
    found |= {f"/{SERVICE.full_name}/{name}": rows(name) for name in ROW_KINDS}
    found[f"/{SERVICE.full_name}/Pipeline"] = lambda call: Pipeline(call, desk, window)
    found[f"/{SERVICE.full_name}/Linearize"] = lambda call: Linearize(call, desk, window, linearizations)
    return found


class Unary:
    """One unary call."""

    __slots__ = ("_call", "_desk", "_name", "_ticket")

    def __init__(self, name: str, call: Call, desk: Desk) -> None:
        self._name = name
        self._call = call
        self._desk = desk
        self._ticket: Ticket | None = None

    def received(self, message: bytes | None) -> None:
        """The request has come."""
        if message is None:
            self._call.end(MalformedRequest("the call ended without a request"))
            return
        self._ticket = self._desk.take(
            self._name, message, 0, len(message),
            allowed=self._call.caller.functions, owner=self._call.account.owner, deadline=self._call.deadline,
            written=self._written, failed=self._failed,
        )  # fmt: skip

    def sent(self) -> None:
        """Nothing follows the response."""

    def closed(self) -> None:
        """The caller has the response, or went away: then what was not begun need not be."""
        if self._ticket is not None:
            self._desk.cancel(self._ticket)

    def _written(self, parts: list[Part], _: int) -> None:
        self._call.answer(b"".join(parts))

    def _failed(self, error: NabladError) -> None:
        self._call.end(error)

    def dismiss(self, error: NabladError) -> None:
        """It will be answered, or its caller has been told."""
