"""The standard health service (grpc.health.v1): what the server says of itself, when asked and whenever it changes.

The package grpcio-health-checking has one, too. It sends while it holds the lock that the end of a watch needs, and
the one thread that sends learns of ends: a watch that ended while another began stopped every RPC of grpc.server for
good.
"""

import threading
from collections.abc import Callable
from typing import Any

import grpc
from grpc_health.v1 import health_pb2 as pb
from grpc_status import rpc_status

from nablad.errors import NabladError, to_status
from nablad_server.serving.endpoint import parsed

SERVICE = pb.DESCRIPTOR.services_by_name["Health"]

Send = Callable[["bytes | None"], Any]
"""Sends a message and returns when it is sent; None ends the call."""


class Health:
    """The statuses of services, by their names; "" is the server as a whole."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # never held while something is sent
        self._statuses: dict[str, int] = {}
        self._watches: set[_Watch] = set()

    def set(self, service: str, status: int) -> None:
        """Changes a service's status, a HealthCheckResponse.ServingStatus, and tells those who watch it."""
        with self._lock:
            self._statuses[service] = status
            told = [watch for watch in self._watches if watch.service == service]
        for watch in told:
            watch.tell()

    def status(self, service: str) -> int | None:
        """The service's status; None if there is no such service."""
        with self._lock:
            return self._statuses.get(service)

    def handlers(self) -> grpc.GenericRpcHandler:
        """The service's handlers, which take and give bytes."""
        # It takes what sends as a third argument, and holds no thread while nothing changes.
        watch: Any = lambda data, context, send: self._watch(data, context, send)  # noqa: PLW0108
        watch.experimental_non_blocking = True
        watch.experimental_thread_pool = None
        return grpc.method_handlers_generic_handler(
            SERVICE.full_name,
            {
                "Check": grpc.unary_unary_rpc_method_handler(self._check),
                "Watch": grpc.unary_stream_rpc_method_handler(watch),
            },
        )

    def _check(self, data: bytes, context: grpc.ServicerContext) -> bytes:
        status = self.status(_service(data, context))
        if status is None:
            context.set_code(grpc.StatusCode.NOT_FOUND)
            return b""
        return _response(status)

    def _watch(self, data: bytes, context: grpc.ServicerContext, send: Send) -> None:
        watch = _Watch(self, _service(data, context), send)
        with self._lock:
            self._watches.add(watch)

        def ended() -> None:
            with self._lock:
                self._watches.discard(watch)
            send(None)

        if context.add_callback(ended):
            watch.tell()
        else:
            ended()  # it is over already


class _Watch:
    """One call of Watch."""

    def __init__(self, health: Health, service: str, send: Send) -> None:
        self.service = service
        self._health = health
        self._send = send
        self._lock = threading.Lock()  # statuses in their order
        self._told: int | None = None

    def tell(self) -> None:
        """Sends the status, unless it was the last one sent."""
        with self._lock:
            status = self._health.status(self.service)
            known = pb.HealthCheckResponse.SERVICE_UNKNOWN if status is None else status
            if known != self._told:
                self._told = known
                self._send(_response(known))


def _service(data: bytes, context: grpc.ServicerContext) -> str:
    """The service that a request is about. Ends the call if the bytes are no request."""
    try:
        return str(parsed(pb.HealthCheckRequest, data).service)
    except NabladError as error:
        context.abort_with_status(rpc_status.to_status(to_status(error)))
        raise AssertionError("abort_with_status raises") from None


def _response(status: int) -> bytes:
    response: bytes = pb.HealthCheckResponse(status=status).SerializeToString()
    return response
