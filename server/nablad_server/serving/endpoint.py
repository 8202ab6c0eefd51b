"""What surrounds every RPC of grpc.server: parsing, readiness, and exceptions → statuses.

Handlers take and give bytes, so that a malformed message is answered by this service, with a reason, instead of by the
transport as its own internal error.
"""

import functools
import threading
import uuid
from collections.abc import Callable
from typing import TypeVar

import grpc
import structlog
from google.protobuf.message import DecodeError, Message
from grpc_status import rpc_status

from nablad.errors import Internal, MalformedRequest, NabladError, ResourceExhausted, to_status
from nablad_server.serving.caller import current
from nablad_server.serving.gate import Gate

MAX_SECONDS = 600.0
"""So long a call without a deadline may hold its thread."""

_Request = TypeVar("_Request", bound=Message)

log = structlog.get_logger("nablad")


def endpoint(
    name: str, request_type: type[_Request], respond: Callable[[_Request], Message], gate: Gate
) -> "grpc.RpcMethodHandler[bytes, bytes]":
    """A unary RPC's handler.

    `respond` computes the response or raises a NabladError, which becomes the call's status; any other exception is a
    defect of this server.
    """
    return _handler(name, request_type, lambda request, _: respond(request), gate)


def waiting_endpoint(
    name: str,
    request_type: type[_Request],
    respond: Callable[[_Request, float], Message],
    gate: Gate,
    room: threading.Semaphore,
) -> "grpc.RpcMethodHandler[bytes, bytes]":
    """As `endpoint`, for what has to be waited for; `respond` is also told for how many seconds the answer is wanted.

    Whoever waits holds a thread: only as many may as there is room for, so that health checks find one.
    """

    def respond_or_refuse(request: _Request, seconds: float) -> Message:
        if not room.acquire(blocking=False):
            raise ResourceExhausted(f"too many calls of {name} and its like wait already; retry later", retry_after=1.0)
        try:
            return respond(request, seconds)
        finally:
            room.release()

    return _handler(name, request_type, respond_or_refuse, gate)


def _handler(
    name: str, request_type: type[_Request], respond: Callable[[_Request, float], Message], gate: Gate
) -> "grpc.RpcMethodHandler[bytes, bytes]":
    def behave(data: bytes, context: grpc.ServicerContext) -> bytes:
        failed = gate.enter()
        if failed is None:
            try:
                seconds = context.time_remaining()
                request = parsed(request_type, data)
                allowed = current().functions
                work = functools.partial(respond, request, MAX_SECONDS if seconds is None else seconds)
                return (work() if allowed is None else allowed.only(request, work)).SerializeToString()
            except Exception as error:
                failed = reported(name, error)
            finally:
                gate.leave()
        context.abort_with_status(rpc_status.to_status(to_status(failed)))
        raise AssertionError("abort_with_status raises")

    return grpc.unary_unary_rpc_method_handler(behave)


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
