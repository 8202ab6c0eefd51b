"""What surrounds a unary RPC that a thread answers: parsing, readiness, and exceptions → statuses.

The request is here, whole, before it takes a thread: nobody holds one by sending slowly.
"""

import functools
import time
import uuid
from collections.abc import Callable
from typing import Generic, TypeVar

import structlog
from google.protobuf.message import DecodeError, Message

from nablad.errors import Internal, MalformedRequest, NabladError, ResourceExhausted
from nablad_server.serving.call import Call, Handler
from nablad_server.serving.caller import CURRENT
from nablad_server.serving.gate import Gate
from nablad_server.serving.limits import OWNER
from nablad_server.serving.threads import Threads

MAX_SECONDS = 600.0
"""So long a call without a deadline may hold its thread."""

_Request = TypeVar("_Request", bound=Message)

log = structlog.get_logger("nablad")


class Endpoint(Generic[_Request]):
    """A unary RPC."""

    def __init__(
        self,
        request_type: type[_Request],
        respond: Callable[[_Request, float], Message],
        gate: Gate,
        threads: Threads,
    ) -> None:
        """`respond` is called in one of the threads, with the request and the seconds that are left for it.

        It computes the response or raises a NabladError, which becomes the call's status; any other exception is a
        defect of this server. It learns from `caller.current` and `limits.OWNER` whose call it is.
        """
        self._request_type = request_type
        self._respond = respond
        self._gate = gate
        self._threads = threads

    def __call__(self, call: Call) -> Handler:
        """The handler of one call."""
        return _Answered(self, call)

    def take(self, call: Call, message: bytes) -> None:
        """Has a request answered; in the transport's thread."""
        refused = self._gate.enter()
        if refused is None and not self._threads.run(functools.partial(self._answer, call, message), len(message)):
            self._gate.leave()
            name = call.method.rpartition("/")[2]
            refused = ResourceExhausted(
                f"too many calls of {name} and its like wait already; retry later", retry_after=1.0
            )
        if refused is not None:
            call.end(refused)

    def _answer(self, call: Call, message: bytes) -> None:
        CURRENT.set(call.caller)
        OWNER.set(call.account.owner)
        try:
            response = self._response(call, message)
        except Exception as error:
            call.end(reported(call.method.rpartition("/")[2], error))
        else:
            call.answer(response)
        finally:
            self._gate.leave()

    def _response(self, call: Call, message: bytes) -> bytes:
        request = parsed(self._request_type, message)
        seconds = min(MAX_SECONDS, call.deadline - time.monotonic())
        work = functools.partial(self._respond, request, seconds)
        allowed = call.caller.functions
        return (work() if allowed is None else allowed.only(request, work)).SerializeToString()


class _Answered:
    """One call of an Endpoint."""

    __slots__ = ("_call", "_endpoint")

    def __init__(self, endpoint: Endpoint[_Request], call: Call) -> None:
        self._endpoint = endpoint
        self._call = call

    def received(self, message: bytes | None) -> None:
        """The request has come."""
        if message is None:
            self._call.end(MalformedRequest("the call ended without a request"))
        else:
            self._endpoint.take(self._call, message)

    def sent(self) -> None:
        """Nothing follows the response."""

    def closed(self) -> None:
        """Whoever waits for something in its thread waits no longer than the call's deadline."""

    def dismiss(self, error: NabladError) -> None:
        """It will be answered, or its caller has been told."""


def parsed(request_type: type[_Request], data: bytes) -> _Request:
    """The message. Raises MalformedRequest if the bytes are none of this type."""
    try:
        return request_type.FromString(data)
    except DecodeError as error:
        raise MalformedRequest(
            f"{len(data)} bytes are not a well-formed {request_type.DESCRIPTOR.full_name}: {error}"
        ) from None


def reported(name: str, error: Exception) -> NabladError:
    """The error for the caller: a defect of this server becomes INTERNAL, with a request id that the log bears too."""
    if isinstance(error, NabladError) and not isinstance(error, Internal):
        return error
    request_id = uuid.uuid4().hex
    log.error("internal error", rpc=name, request_id=request_id, exc_info=error)
    return Internal(
        f"a defect of the server ended this call; report it with the request id {request_id}",
        metadata={"request_id": request_id},
    )
