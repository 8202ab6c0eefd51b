"""A log line for every call of the fast transport that is over, where that is asked for."""

import time
from collections.abc import Callable, Mapping

import structlog

from nablad.errors import NabladError
from nablad_server.serving.transport import Call, Handler

log = structlog.get_logger("nablad")


def logged(methods: Mapping[str, Callable[[Call], Handler]]) -> dict[str, Callable[[Call], Handler]]:
    """The same methods, whose calls are logged."""

    def of(name: str, make: Callable[[Call], Handler]) -> Callable[[Call], Handler]:
        return lambda call: _Logged(name.rpartition("/")[2], make(call), call)

    return {name: of(name, make) for name, make in methods.items()}


class _Logged:
    """Has one line logged at the end of a call."""

    __slots__ = ("_began", "_call", "_handler", "_name")

    def __init__(self, name: str, handler: Handler, call: Call) -> None:
        self._name = name
        self._handler = handler
        self._call = call
        self._began = time.monotonic()

    def received(self, message: bytes | None) -> None:
        """A message has come."""
        self._handler.received(message)

    def sent(self) -> None:
        """One has gone."""
        self._handler.sent()

    def closed(self) -> None:
        """The call is over."""
        self._handler.closed()
        call = self._call
        failure = call.failure
        outcome = "OK" if call.ended else "CANCELLED"
        if failure is not None:
            outcome = failure.reason or failure.code.name
        # Where a defect of the server is to blame, its own line has the same request id.
        known = {} if failure is None or "request_id" not in failure.metadata else {
            "request_id": failure.metadata["request_id"]
        }  # fmt: skip
        log.info("call", rpc=self._name, outcome=outcome, seconds=round(time.monotonic() - self._began, 6),
                 caller=call.caller.key, **known)  # fmt: skip

    def dismiss(self, error: NabladError) -> None:
        """The server stops."""
        self._handler.dismiss(error)
