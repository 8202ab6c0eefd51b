"""AdminService: what the operator of a server asks of it."""

from collections.abc import Callable

from nablad.v1 import admin_pb2 as pb
from nablad_server.serving.call import Call, Handler
from nablad_server.serving.endpoint import Endpoint
from nablad_server.serving.gate import Gate
from nablad_server.serving.reload import Reloader
from nablad_server.serving.threads import Threads

SERVICE = pb.DESCRIPTOR.services_by_name["AdminService"]

THREADS, WAITING = 2, 16
"""So many calls may be under way, and so many wait for those."""


def methods(*, reloader: Reloader, gate: Gate) -> dict[str, Callable[[Call], Handler]]:
    """For each RPC, by its full name, what makes a handler for a call."""
    threads = Threads("nablad-admin", THREADS, waiting=WAITING)

    def reload(_: pb.ReloadRequest, seconds: float) -> pb.ReloadResponse:
        report = reloader.reload(seconds)
        return pb.ReloadResponse(
            added=report.added,
            replaced=report.replaced,
            removed=report.removed,
            refused=[pb.Refusal(source=source, reason=reason) for source, reason in report.refused],
            nanoseconds=int(report.seconds * 1e9),
        )

    return {f"/{SERVICE.full_name}/Reload": Endpoint(pb.ReloadRequest, reload, gate, threads)}
