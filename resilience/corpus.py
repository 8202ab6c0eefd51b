"""Valid requests for every RPC that a server has, which the fuzzer breaks."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from nablad.tensors import to_tensor
from nablad.v1 import admin_pb2, catalog_pb2, diagnostics_pb2
from nablad.v1 import differentiation_pb2 as pb
from nablad.v1.function_pb2 import OPERATOR_HVP
from nablad.v1.tensor_pb2 import NamedTensor


@dataclass(frozen=True, slots=True)
class Rpc:
    """One RPC and valid requests for it.

    Attributes:
        path: its name on the wire.
        request: the class of its requests.
        response: the class of its responses.
        sends: whether requests are a stream.
        receives: whether responses are a stream.
        valid: conversations, each of the messages that the caller sends.
    """

    path: str
    request: type[Message]
    response: type[Message]
    sends: bool
    receives: bool
    valid: tuple[tuple[Message, ...], ...]


def _named(name: str, values: Any, *, batched: bool = False) -> NamedTensor:
    return NamedTensor(name=name, tensor=to_tensor(values), batched=batched)


X = [_named("x", np.array([1.0, 2.0, 3.0]))]
MANY = [_named("x", np.arange(12.0).reshape(4, 3), batched=True)]
MATVEC = [_named("A", np.arange(6.0).reshape(2, 3)), _named("x", np.array([1.0, -1.0, 0.5]))]
VECTOR = [_named("x", np.array([0.0, 1.0, -1.0]))]
UNARY: dict[str, list[Message]] = {
    "Evaluate": [
        pb.EvaluateRequest(function="rosenbrock", inputs=X),
        pb.EvaluateRequest(function="matvec", inputs=MATVEC),
    ],
    "Gradient": [
        pb.GradientRequest(function="rosenbrock", inputs=X, wrt=["x"], mode=pb.MODE_REVERSE),
        pb.GradientRequest(function="rosenbrock", inputs=MANY, clipping=pb.Clipping(global_norm=1.0)),
        pb.GradientRequest(
            function="rosenbrock",
            inputs=X,
            finite_difference=pb.FiniteDifference(scheme=pb.DIFFERENCE_SCHEME_CENTRAL, step=1e-6),
        ),
    ],
    "Jacobian": [
        pb.JacobianRequest(function="matvec", inputs=MATVEC, wrt=["x", "A"], mode=pb.MODE_FORWARD),
        pb.JacobianRequest(function="matvec", inputs=MATVEC, structure=pb.JACOBIAN_STRUCTURE_SPARSE),
    ],
    "Hessian": [
        pb.HessianRequest(function="rosenbrock", inputs=MANY, columns=["x"]),
        pb.HessianRequest(function="rosenbrock", inputs=X, structure=pb.HESSIAN_STRUCTURE_SPARSE, known_pattern=b"a"),
        pb.HessianRequest(
            function="rosenbrock",
            inputs=X,
            structure=pb.HESSIAN_STRUCTURE_DIAGONAL,
            estimate=pb.Estimate(samples=4, seed=1),
        ),
    ],
    "Hvp": [pb.HvpRequest(function="rosenbrock", inputs=X, tangents=VECTOR)],
    "Jvp": [pb.JvpRequest(function="rosenbrock", inputs=X, tangents=VECTOR)],
    "Vjp": [pb.VjpRequest(function="rosenbrock", inputs=X, cotangents=[_named("value", 1.0)])],
    "DirectionalDerivative": [pb.DirectionalDerivativeRequest(function="rosenbrock", inputs=X, direction=VECTOR)],
    "Laplacian": [pb.LaplacianRequest(function="rosenbrock", inputs=X, estimate=pb.Estimate(samples=3, seed=2))],
    "Derivative": [pb.DerivativeRequest(function="rosenbrock", inputs=X, direction=VECTOR, order=2)],
    "StreamJacobian": [pb.StreamJacobianRequest(function="matvec", inputs=MATVEC, wrt=["x"])],
    "StreamHessian": [pb.StreamHessianRequest(function="rosenbrock", inputs=X, first_row=1)],
    "ListFunctions": [catalog_pb2.ListFunctionsRequest()],
    "DescribeFunction": [catalog_pb2.DescribeFunctionRequest(function="rosenbrock")],
    "GetStatistics": [catalog_pb2.GetStatisticsRequest()],
    "GetSparsity": [catalog_pb2.GetSparsityRequest(hessian=pb.HessianRequest(function="rosenbrock", inputs=X))],
    "Explain": [catalog_pb2.ExplainRequest(hvp=pb.HvpRequest(function="rosenbrock", inputs=X, tangents=VECTOR))],
    "CheckGradient": [diagnostics_pb2.CheckGradientRequest()],
    "InspectLayers": [diagnostics_pb2.InspectLayersRequest()],
    "SummarizeCurvature": [diagnostics_pb2.SummarizeCurvatureRequest()],
    "Reload": [admin_pb2.ReloadRequest()],
    "Check": [health_pb2.HealthCheckRequest(service="nablad.v1.DifferentiationService")],
    "Watch": [health_pb2.HealthCheckRequest()],
}


def _pipeline() -> tuple[Message, ...]:
    fields = {
        field.message_type.name: field.name
        for field in pb.Operation.DESCRIPTOR.oneofs_by_name["request"].fields
        if field.message_type
    }
    asked = [request for requests in UNARY.values() for request in requests if request.DESCRIPTOR.name in fields]
    operations = [
        pb.Operation(id=1000 + index, **{fields[request.DESCRIPTOR.name]: request})  # type: ignore[arg-type]
        for index, request in enumerate(asked)
    ]
    return (
        pb.PipelineRequest(operations=operations[:5]),
        pb.PipelineRequest(operations=operations[5:], cancelled_ids=[1003]),
    )


def _linearize() -> tuple[Message, ...]:
    return (
        pb.LinearizeRequest(point=pb.LinearizePoint(function="rosenbrock", inputs=X)),
        pb.LinearizeRequest(products=[pb.Product(id=7, operator=OPERATOR_HVP, vectors=VECTOR)]),
    )


def _reflection() -> tuple[Message, ...]:
    return (
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="nablad.v1.DifferentiationService"),
    )


STREAMS: dict[str, Callable[[], tuple[Message, ...]]] = {
    "Pipeline": _pipeline,
    "Linearize": _linearize,
    "ServerReflectionInfo": _reflection,
}
SERVICES: tuple[ServiceDescriptor, ...] = tuple(
    module.DESCRIPTOR.services_by_name[name]
    for module, name in (
        (pb, "DifferentiationService"),
        (catalog_pb2, "CatalogService"),
        (diagnostics_pb2, "DiagnosticsService"),
        (admin_pb2, "AdminService"),
        (health_pb2, "Health"),
        (reflection_pb2, "ServerReflection"),
    )
)


def _subject(request: Message) -> Message:
    """The request with a function and a point, if it has fields for them and none is set."""
    fields = request.DESCRIPTOR.fields_by_name
    if "function" in fields and not getattr(request, "function"):  # noqa: B009 - a message of any type
        setattr(request, "function", "rosenbrock")  # noqa: B010
        if "inputs" in fields:
            getattr(request, "inputs").extend(X)  # noqa: B009
    return request


def rpcs() -> list[Rpc]:
    """Every RPC of every service."""
    found = []
    for service in SERVICES:
        for method in service.methods:
            if method.name in STREAMS:
                valid: tuple[tuple[Message, ...], ...] = (STREAMS[method.name](),)
            else:
                valid = tuple((_subject(request),) for request in UNARY.get(method.name, []))
            request, response = GetMessageClass(method.input_type), GetMessageClass(method.output_type)
            found.append(
                Rpc(
                    f"/{service.full_name}/{method.name}",
                    request,
                    response,
                    method.client_streaming,
                    method.server_streaming,
                    valid or ((request(),),),
                )
            )
    return found
