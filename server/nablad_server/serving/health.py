"""The standard health service (grpc.health.v1): what the server says of itself, when asked and whenever it changes."""

import threading
from collections.abc import Callable

from grpc_health.v1 import health_pb2 as pb

from nablad.errors import MalformedRequest, NabladError, NotFound
from nablad_server.serving.call import Call, Handler
from nablad_server.serving.endpoint import parsed

SERVICE = pb.DESCRIPTOR.services_by_name["Health"]


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

    def methods(self) -> dict[str, Callable[[Call], Handler]]:
        """For each RPC, by its full name, what makes a handler for a call."""
        return {
            f"/{SERVICE.full_name}/Check": lambda call: _Check(self, call),
            f"/{SERVICE.full_name}/Watch": lambda call: _Watch(self, call),
        }

    def add(self, watch: "_Watch") -> None:
        """Has a watch told of changes from now on."""
        with self._lock:
            self._watches.add(watch)

    def discard(self, watch: "_Watch") -> None:
        """A watch is over."""
        with self._lock:
            self._watches.discard(watch)


class _Check:
    """One call of Check."""

    def __init__(self, health: Health, call: Call) -> None:
        self._health = health
        self._call = call

    def received(self, message: bytes | None) -> None:
        """The request has come."""
        try:
            service = _service(message)
            status = self._health.status(service)
            if status is None:
                raise NotFound(f"there is no service {service[:100]!r}; '' asks for the server as a whole")
        except NabladError as error:
            self._call.end(error)
        else:
            self._call.answer(_response(status))

    def sent(self) -> None:
        """Nothing follows the response."""

    def closed(self) -> None:
        """It held nothing."""

    def dismiss(self, error: NabladError) -> None:
        """It is answered already."""


class _Watch:
    """One call of Watch: one status is on its way at a time, and what changes meanwhile is seen after it."""

    def __init__(self, health: Health, call: Call) -> None:
        self.service = ""
        self._health = health
        self._call = call
        self._lock = threading.Lock()
        self._sending = False
        self._told: int | None = None
        self._over = False

    def received(self, message: bytes | None) -> None:
        """The request has come."""
        try:
            self.service = _service(message)
        except NabladError as error:
            self._call.end(error)
            return
        if not self._over:
            self._health.add(self)
            self.tell()

    def tell(self) -> None:
        """Sends the status, unless it was the last one sent. From any thread."""
        with self._lock:
            status = self._health.status(self.service)
            known = pb.HealthCheckResponse.SERVICE_UNKNOWN if status is None else status
            if self._sending or known == self._told:
                return
            self._told, self._sending = known, True
        self._call.send(_response(known))

    def sent(self) -> None:
        """The status sent last was taken."""
        with self._lock:
            self._sending = False
        self.tell()

    def closed(self) -> None:
        """Nobody watches any more."""
        self._over = True
        self._health.discard(self)

    def dismiss(self, error: NabladError) -> None:
        """The server stops."""
        self._call.end(error)


def _service(message: bytes | None) -> str:
    """The service that a request is about. Raises MalformedRequest if the bytes are no request, or there are none."""
    if message is None:
        raise MalformedRequest("the call ended without a request")
    return str(parsed(pb.HealthCheckRequest, message).service)


def _response(status: int) -> bytes:
    response: bytes = pb.HealthCheckResponse(status=status).SerializeToString()
    return response
