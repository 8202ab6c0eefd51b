"""A server of Linearize that misbehaves when told to, in the ways of the PipelineServer."""

from collections.abc import Iterator
from typing import Any

import grpc

from client.pipeline_server import PipelineServer
from nablad.errors import LinearizationExpired, to_status
from nablad.tensors import to_array, to_tensor
from nablad.v1 import differentiation_pb2 as pb
from nablad.v1 import tensor_pb2


class LinearizeServer(PipelineServer):
    """Serves products with the Hessian of `bowl`, Σ x²: twice the vector.

    Attributes:
        points: the functions that the streams were opened for.
        expire_after: the stream expires after so many answers; 0: never.
    """

    def __init__(self) -> None:
        super().__init__()
        self.points: list[str] = []
        self.expire_after = 0

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> "grpc.RpcMethodHandler[Any, Any] | None":
        if str(handler_call_details.method).endswith("/Linearize"):
            return grpc.stream_stream_rpc_method_handler(self._linearize)
        return super().service(handler_call_details)

    def _linearize(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        self.seen.streams += 1
        answered = 0
        for data in requests:
            request = pb.LinearizeRequest.FromString(data)
            with self.arrived:
                self.seen.operations += [product.id for product in request.products]
                self.arrived.notify_all()
            if self.faults.garbled:
                yield b"\xff"
            if request.HasField("point"):
                self.points.append(request.point.function)
                self._break_off(answered, context)
                yield _opened(request.point).SerializeToString()
            if self.faults.silent:
                continue
            for product in request.products:
                answers = [self._product(product)]
                if self.faults.unknown_ids:
                    answers += [pb.ProductAnswer(id=999_999_999), answers[0]]
                yield pb.LinearizeResponse(answers=answers).SerializeToString()
                answered += 1
                self._break_off(answered, context)
                if answered == self.expire_after:
                    status = to_status(LinearizationExpired("nothing was asked for in 1 s"))
                    context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
                    context.abort(grpc.StatusCode.FAILED_PRECONDITION, status.message)

    def _break_off(self, answered: int, context: grpc.ServicerContext) -> None:
        if self.faults.breaks and answered == self.faults.break_after:
            self.faults.breaks -= 1
            context.abort(self.faults.break_code, "broken on purpose")

    def _product(self, product: pb.Product) -> pb.ProductAnswer:
        if self.faults.refuse is not None and self.faults.refusals:
            self.faults.refusals -= 1
            return pb.ProductAnswer(id=product.id, error=self.faults.refuse)
        (vector,) = product.vectors
        doubled = tensor_pb2.NamedTensor(name="x", tensor=to_tensor(2 * to_array(vector.tensor)))
        return pb.ProductAnswer(id=product.id, products=[doubled])


def _opened(point: pb.LinearizePoint) -> pb.LinearizeResponse:
    x = to_array(point.inputs[0].tensor)
    value = tensor_pb2.NamedTensor(name="value", tensor=to_tensor((x * x).sum()))
    execution = pb.Execution(function="bowl@7", batch_points=1)
    return pb.LinearizeResponse(opened=pb.LinearizeOpened(values=[value], idle_seconds=1.0, execution=execution))
