"""DifferentiationService: each RPC is a row, decode → run → encode."""

import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import grpc
from google.protobuf.message import Message

from nablad.v1 import differentiation_pb2 as pb
from nablad_server.batching.batcher import Batcher
from nablad_server.batching.ticket import Outcome, Ticket
from nablad_server.serving import encode
from nablad_server.serving.decode import Decoded, Decoder
from nablad_server.serving.endpoint import endpoint
from nablad_server.serving.gate import Gate

SERVICE = pb.DESCRIPTOR.services_by_name["DifferentiationService"]
DAY = 86400.0


class Rpc(NamedTuple):
    """How one RPC is answered."""

    request: type[Message]
    decode: Callable[[Decoder, Any], Decoded]
    encode: Callable[[Decoded, Outcome], Message]


RPCS = {
    "Evaluate": Rpc(pb.EvaluateRequest, Decoder.evaluate, encode.evaluate),
    "Gradient": Rpc(pb.GradientRequest, Decoder.gradient, encode.gradient),
    "Jacobian": Rpc(pb.JacobianRequest, Decoder.jacobian, encode.jacobian),
    "Hessian": Rpc(pb.HessianRequest, Decoder.hessian, encode.hessian),
    "Hvp": Rpc(pb.HvpRequest, Decoder.hvp, encode.hvp),
    "Jvp": Rpc(pb.JvpRequest, Decoder.jvp, encode.jvp),
    "Vjp": Rpc(pb.VjpRequest, Decoder.vjp, encode.vjp),
    "DirectionalDerivative": Rpc(
        pb.DirectionalDerivativeRequest, Decoder.directional_derivative, encode.directional_derivative
    ),
    "Derivative": Rpc(pb.DerivativeRequest, Decoder.derivative, encode.derivative),
}


def ticket_of(decoded: Decoded, deadline: float = float("inf")) -> Ticket:
    """The ticket for a decoded request; the deadline is on time.monotonic's clock."""
    return Ticket(
        key=decoded.query,
        payload=decoded.points,
        points=decoded.points.count,
        size=sum(map(len, decoded.points.data)),
        alone=any(decoded.query.shared),
        deadline=deadline,
    )


def _cancel(batcher: Batcher, ticket: Ticket) -> None:
    batcher.cancel(ticket)


def _deadline(context: grpc.ServicerContext) -> float:
    """The call's deadline on time.monotonic's clock; one too far off to count with is none."""
    remaining = context.time_remaining()
    return float("inf") if remaining is None or remaining > DAY else time.monotonic() + remaining


def differentiation_service(decoder: Decoder, batcher: Batcher, gate: Gate) -> grpc.GenericRpcHandler:
    """The service's handlers."""

    def responder(rpc: Rpc) -> Callable[[Message, grpc.ServicerContext], Message]:
        def respond(request: Message, context: grpc.ServicerContext) -> Message:
            decoded = rpc.decode(decoder, request)
            ticket = ticket_of(decoded, _deadline(context))
            # Called when the caller goes away, and harmlessly at the end of every call.
            if not context.add_callback(functools.partial(_cancel, batcher, ticket)):
                _cancel(batcher, ticket)
            return rpc.encode(decoded, batcher.call(ticket, gate.parked))

        return respond

    return grpc.method_handlers_generic_handler(
        SERVICE.full_name,
        {name: endpoint(name, rpc.request, responder(rpc), gate) for name, rpc in RPCS.items()},
    )
