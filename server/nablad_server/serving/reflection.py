"""The standard reflection service, with malformed requests answered as such.

As grpcio-reflection registers it, grpc.server parses the requests and reports a malformed one as an internal error.
"""

from collections.abc import Iterator, Sequence

import grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2
from grpc_status import rpc_status

from nablad.errors import NabladError, to_status
from nablad_server.serving.endpoint import parsed

SERVICE_NAME: str = reflection.SERVICE_NAME


def reflection_service(names: Sequence[str]) -> grpc.GenericRpcHandler:
    """The service's handlers. `names` are the full names of the services that it lists."""
    servicer = reflection.ReflectionServicer(names)

    def info(frames: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        try:
            requests = (parsed(reflection_pb2.ServerReflectionRequest, frame) for frame in frames)
            for response in servicer.ServerReflectionInfo(requests, context):
                yield response.SerializeToString()
        except NabladError as error:
            context.abort_with_status(rpc_status.to_status(to_status(error)))

    handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
        "ServerReflectionInfo": grpc.stream_stream_rpc_method_handler(info)
    }
    return grpc.method_handlers_generic_handler(SERVICE_NAME, handlers)
