"""DiagnosticsService: whether a derivative can be trusted, and how it behaves."""

from collections.abc import Callable

from nablad.v1 import diagnostics_pb2 as pb
from nablad_server.derivatives.inspection import Inspections
from nablad_server.functions.registry import Registry
from nablad_server.serving.call import Call, Handler
from nablad_server.serving.check import GradientChecker
from nablad_server.serving.curvature import curvature
from nablad_server.serving.decode import Decoder
from nablad_server.serving.endpoint import Endpoint
from nablad_server.serving.gate import Gate
from nablad_server.serving.layers import LayerInspector
from nablad_server.serving.threads import Threads
from nablad_server.serving.work import Desk

SERVICE = pb.DESCRIPTOR.services_by_name["DiagnosticsService"]

THREADS, WAITING = 2, 16
"""So many calls may be under way, which take long and ask for much, and so many wait for those."""


def methods(
    *, registry: Registry, decoder: Decoder, desk: Desk, gate: Gate, inspections: Inspections
) -> dict[str, Callable[[Call], Handler]]:
    """For each RPC, by its full name, what makes a handler for a call."""
    threads = Threads("nablad-diagnostics", THREADS, waiting=WAITING)
    checker = GradientChecker(registry, decoder, desk)
    inspector = LayerInspector(decoder, desk, inspections)

    def summarize_curvature(request: pb.SummarizeCurvatureRequest, seconds: float) -> pb.SummarizeCurvatureResponse:
        return curvature(request, decoder, desk, seconds)

    found: dict[str, Callable[[Call], Handler]] = {
        "CheckGradient": Endpoint(pb.CheckGradientRequest, checker.check, gate, threads),
        "InspectLayers": Endpoint(pb.InspectLayersRequest, inspector.inspect, gate, threads),
        "SummarizeCurvature": Endpoint(pb.SummarizeCurvatureRequest, summarize_curvature, gate, threads),
    }
    return {f"/{SERVICE.full_name}/{name}": make for name, make in found.items()}
