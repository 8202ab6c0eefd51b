"""One call on the transport, and what its events go to."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import structlog
from grpc._cython import cygrpc  # type: ignore[attr-defined]  # its stubs leave it out
from grpc_status import rpc_status

from nablad.errors import Internal, NabladError, to_status
from nablad_server.serving.caller import NOBODY, Caller
from nablad_server.serving.limits import Account

DAY = 86400.0

LARGE_BYTES = 64 << 10
"""Responses from this size on are counted until they are taken. Smaller ones are bounded by the number of calls."""

log = structlog.get_logger("nablad")


class Handler(Protocol):
    """What becomes of one call. Its methods are called in the transport's thread."""

    def received(self, message: bytes | None) -> None:
        """A message has come; None: there will be no more."""

    def sent(self) -> None:
        """The message sent last has been taken by the transport; another one may be sent."""

    def closed(self) -> None:
        """The call is over: answered, cancelled by the caller, past its deadline, or broken."""

    def dismiss(self, error: NabladError) -> None:
        """The server stops: a call that would go on for ever is to be ended with this error. From any thread."""


class Carrier(Protocol):
    """What carries calls, and is told of their events."""

    def came(self, call: "Call") -> None:
        """A message of a call has come."""

    def ended(self, call: "Call") -> None:
        """A call is over."""

    def later(self, work: Callable[[], None]) -> None:
        """Something is to be done once what has arrived meanwhile is taken in."""


class Call:
    """One call. Its methods can be used from any thread.

    Attributes:
        method: its full name, `/package.Service/Method`.
        began: when it came, on time.monotonic's clock.
        account: its caller's.
        caller: whose call it is, and what they may do now.
        metadata: what came with the call.
        counted: whether it was let in, and counts there as open.
        stream: whether it counts there as a stream.
        deadline: on time.monotonic's clock; infinite if it has none.
        ended: whether it was ended here, and not by the caller.
        failure: the error that it was ended with, if it was.
        handler: what its events go to.
    """

    __slots__ = (
        "_begun", "_call", "_carrier", "account", "began", "caller", "counted", "deadline", "ended", "failure",
        "handler", "metadata", "method", "stream",
    )  # fmt: skip

    def __init__(self, carrier: "Carrier", method: str, event: Any) -> None:
        self._carrier = carrier
        self._call = event.call
        self.method = method
        self.began = time.monotonic()
        remaining = event.call_details.deadline - time.time()
        # One too far off to count with is none.
        self.deadline = self.began + remaining if remaining < DAY else float("inf")
        self._begun = False
        self.ended = False
        self.failure: NabladError | None = None
        self.metadata: Sequence[tuple[str, str | bytes]] = event.invocation_metadata
        self.account: Account
        self.caller: Caller = NOBODY
        self.counted = False
        self.stream = False
        self.handler: Handler

    @property
    def peer(self) -> str:
        """The connection that it came over: the caller's address."""
        found: str | bytes = self._call.peer()
        return found.decode() if isinstance(found, bytes) else found

    def certificate(self) -> Mapping[Any, Any] | None:
        """What TLS knows of the other end, such as the names in its certificate; None without TLS."""
        known: Mapping[Any, Any] | None = cygrpc.auth_context(self._call)
        return known

    def begin(self, handler: Handler) -> None:
        """Says where the call's events go, and receives the first message."""
        self.handler = handler
        self.receive()

    def watch(self) -> None:
        """Has `closed` called when the call is over."""
        self._call.start_server_batch((cygrpc.ReceiveCloseOnServerOperation(0),), self._on_closed)

    def later(self, work: Callable[[], None]) -> None:
        """Has something done in the transport's thread, in which this is called, once others have had their turn."""
        self._carrier.later(work)

    def receive(self) -> None:
        """Asks for the next message: `received` will be called once."""
        self._call.start_server_batch((cygrpc.ReceiveMessageOperation(0),), self._on_received)

    def send(self, message: bytes) -> None:
        """Sends a message; `sent` will be called once, and no other may be sent before."""
        operation = cygrpc.SendMessageOperation(message, 0)
        self._call.start_server_batch((*self._beginning(), operation), self._on_sent)

    def answer(self, message: bytes) -> None:
        """Sends the only message, and ends the call with OK."""
        self.ended = True
        taken = self._unread(len(message)) if len(message) >= LARGE_BYTES else ignore
        self._call.start_server_batch(
            (
                cygrpc.SendInitialMetadataOperation(None, 0),
                cygrpc.SendMessageOperation(message, 0),
                cygrpc.SendStatusFromServerOperation(None, 0, b"", 0),
            ),
            taken,
        )

    def _unread(self, size: int) -> Callable[[Any], None]:
        """Counts bytes until the caller has taken them; what is to be called then."""
        account = self.account
        account.unread_by(size)
        return lambda _: account.unread_by(-size)

    def end(self, error: NabladError | None = None) -> None:
        """Ends the call, with OK or with the status that the error stands for."""
        self.ended, self.failure = True, error
        if error is None:
            status = cygrpc.SendStatusFromServerOperation(None, 0, b"", 0)
        else:
            rich = rpc_status.to_status(to_status(error))
            code: int = error.code.value[0]
            status = cygrpc.SendStatusFromServerOperation(rich.trailing_metadata, code, rich.details, 0)
        self._call.start_server_batch((*self._beginning(), status), ignore)

    def _beginning(self) -> tuple[Any, ...]:
        if self._begun:
            return ()
        self._begun = True
        return (cygrpc.SendInitialMetadataOperation(None, 0),)

    def _on_received(self, event: Any) -> None:
        self._carrier.came(self)
        try:
            self.handler.received(event.batch_operations[0].message())
        except Exception:  # nobody else would answer
            log.exception("internal error", rpc="transport")
            self.end(Internal("a defect of the server ended this call"))

    def _on_sent(self, event: Any) -> None:
        if event.success:
            self.handler.sent()

    def _on_closed(self, _: Any) -> None:
        self._carrier.ended(self)
        # They know each other: the core's call, and all of its headers, would stay until the collector looks.
        handler, self.handler = self.handler, REFUSED
        handler.closed()


class Refused:
    """The handler of a call that was not taken on, or is given up."""

    def received(self, message: bytes | None) -> None:
        """Nothing is expected."""

    def sent(self) -> None:
        """Nothing is sent."""

    def closed(self) -> None:
        """As it should be."""

    def dismiss(self, error: NabladError) -> None:
        """It is ended already."""


REFUSED = Refused()


def ignore(_: Any) -> None:
    """The end of a call is told by `closed`."""
