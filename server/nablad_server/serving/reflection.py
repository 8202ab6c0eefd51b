"""The standard reflection service, for tools such as grpcurl."""

from collections.abc import Callable, Sequence

from grpc_reflection.v1alpha import reflection, reflection_pb2

from nablad.errors import NabladError
from nablad_server.serving.call import Call, Handler
from nablad_server.serving.endpoint import parsed

SERVICE_NAME: str = reflection.SERVICE_NAME

METHOD = f"/{SERVICE_NAME}/ServerReflectionInfo"


def methods(names: Sequence[str]) -> dict[str, Callable[[Call], Handler]]:
    """For its RPC, by its full name, what makes a handler for a call. `names` are the services that it lists."""
    servicer = reflection.ReflectionServicer(names)
    return {METHOD: lambda call: _Reflection(servicer, call)}


class _Reflection:
    """One stream: each request is answered before the next one is read."""

    def __init__(self, servicer: reflection.ReflectionServicer, call: Call) -> None:
        self._servicer = servicer
        self._call = call

    def received(self, message: bytes | None) -> None:
        """A request has come, or the client has sent all."""
        if message is None:
            self._call.end()
            return
        try:
            request = parsed(reflection_pb2.ServerReflectionRequest, message)
        except NabladError as error:
            self._call.end(error)
            return
        for response in self._servicer.ServerReflectionInfo(iter([request]), None):
            self._call.send(response.SerializeToString())

    def sent(self) -> None:
        """The answer was taken."""
        self._call.receive()

    def closed(self) -> None:
        """It held nothing."""

    def dismiss(self, error: NabladError) -> None:
        """The server stops, or the caller may not read the catalogue any more."""
        self._call.end(error)
