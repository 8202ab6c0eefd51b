"""AdminService: what the operator of a server asks of it."""

import threading

import grpc

from nablad.v1 import admin_pb2 as pb
from nablad_server.serving.endpoint import waiting_endpoint
from nablad_server.serving.gate import Gate
from nablad_server.serving.reload import Reloader

SERVICE = pb.DESCRIPTOR.services_by_name["AdminService"]

MAX_WAITING = 2
"""So many calls may be under way, each in a thread."""


def admin_service(*, reloader: Reloader, gate: Gate) -> grpc.GenericRpcHandler:
    """The service's handlers."""
    room = threading.Semaphore(MAX_WAITING)

    def reload(_: pb.ReloadRequest, seconds: float) -> pb.ReloadResponse:
        report = reloader.reload(seconds)
        return pb.ReloadResponse(
            added=report.added,
            replaced=report.replaced,
            removed=report.removed,
            refused=[pb.Refusal(source=source, reason=reason) for source, reason in report.refused],
            nanoseconds=int(report.seconds * 1e9),
        )

    handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
        "Reload": waiting_endpoint("Reload", pb.ReloadRequest, reload, gate, room),
    }
    return grpc.method_handlers_generic_handler(SERVICE.full_name, handlers)
