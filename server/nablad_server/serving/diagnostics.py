"""DiagnosticsService: whether a derivative can be trusted, and how it behaves."""

import threading

import grpc

from nablad.v1 import diagnostics_pb2 as pb
from nablad_server.derivatives.inspection import Inspections
from nablad_server.functions.registry import Registry
from nablad_server.serving.check import GradientChecker
from nablad_server.serving.curvature import curvature
from nablad_server.serving.decode import Decoder
from nablad_server.serving.endpoint import waiting_endpoint
from nablad_server.serving.gate import Gate
from nablad_server.serving.layers import LayerInspector
from nablad_server.serving.work import Desk

SERVICE = pb.DESCRIPTOR.services_by_name["DiagnosticsService"]

MAX_WAITING = 2
"""So many calls may be under way, each in a thread: they take long, and leave threads to the catalogue and to health
checks."""


def diagnostics_service(
    *, registry: Registry, decoder: Decoder, desk: Desk, gate: Gate, inspections: Inspections
) -> grpc.GenericRpcHandler:
    """The service's handlers."""
    room = threading.Semaphore(MAX_WAITING)
    checker = GradientChecker(registry, decoder, desk)
    inspector = LayerInspector(decoder, desk, inspections)

    def summarize_curvature(request: pb.SummarizeCurvatureRequest, seconds: float) -> pb.SummarizeCurvatureResponse:
        return curvature(request, decoder, desk, seconds)

    handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
        "CheckGradient": waiting_endpoint("CheckGradient", pb.CheckGradientRequest, checker.check, gate, room),
        "InspectLayers": waiting_endpoint("InspectLayers", pb.InspectLayersRequest, inspector.inspect, gate, room),
        "SummarizeCurvature": waiting_endpoint(
            "SummarizeCurvature", pb.SummarizeCurvatureRequest, summarize_curvature, gate, room
        ),
    }
    return grpc.method_handlers_generic_handler(SERVICE.full_name, handlers)
