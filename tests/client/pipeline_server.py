"""A server of Pipeline that misbehaves when told to: real gRPC, gradients of one function in closed form."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import grpc
import numpy as np

from nablad import errors
from nablad.tensors import to_array, to_tensor
from nablad.v1 import catalog_pb2, error_pb2, function_pb2, tensor_pb2
from nablad.v1 import differentiation_pb2 as pb

POISON = -1e9
"""A point with this as its first element makes the function fail."""
LARGE = -2e9
"""A point with this as its first element has a result that is too large for three points at once."""


@dataclass
class Faults:
    """What goes wrong from now on.

    Attributes:
        backwards: messages are answered last operation first.
        refuse: the error that each operation gets, before all else; so many times.
        break_after: the stream breaks, with this code, after so many answers; so many times.
        silent: operations are read and not answered.
        deaf: nothing is read until this is set.
        unknown_ids: answers to what was not asked come along.
        garbled: answers are no messages.
    """

    backwards: bool = False
    refuse: error_pb2.Error | None = None
    refusals: int = 0
    break_after: int = 0
    breaks: int = 0
    break_code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE
    silent: bool = False
    deaf: threading.Event | None = None
    unknown_ids: bool = False
    garbled: bool = False


@dataclass
class Seen:
    """What arrived.

    Attributes:
        streams: how many were begun.
        described: how often a description was asked for.
        messages: the size of each in bytes.
        operations: the number of points of each, in order; 0 for one without an axis for points.
        cancelled: ids.
        timeouts: of each operation, in nanoseconds.
    """

    streams: int = 0
    described: int = 0
    messages: list[int] = field(default_factory=list)
    operations: list[int] = field(default_factory=list)
    cancelled: list[int] = field(default_factory=list)
    timeouts: list[int] = field(default_factory=list)


class PipelineServer(grpc.GenericRpcHandler):
    """Serves the function `bowl`, Σ x², of the inputs x (float64, any size) and, shared or not, its weight w.

    Attributes:
        address: where it listens.
        faults: what goes wrong.
        seen: what arrived.
    """

    def __init__(self) -> None:
        self.faults = Faults()
        self.seen = Seen()
        self.arrived = threading.Condition()
        self._gone = threading.Event()
        self._pool = ThreadPoolExecutor(8)
        self._server = grpc.server(self._pool, [self], options=[("grpc.max_receive_message_length", -1)])
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._gone.set()
        if self.faults.deaf is not None:
            self.faults.deaf.set()
        self._server.stop(None).wait()
        self._pool.shutdown()

    def wait_until(self, condition: Any) -> None:
        """Waits until `condition(seen)` holds."""
        with self.arrived:
            assert self.arrived.wait_for(lambda: condition(self.seen), 60)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> "grpc.RpcMethodHandler[Any, Any] | None":
        method = str(handler_call_details.method)
        if method.endswith("/DescribeFunction"):
            return grpc.unary_unary_rpc_method_handler(self._describe)
        if method.endswith("/Pipeline"):
            return grpc.stream_stream_rpc_method_handler(self._pipeline)
        return None

    def _describe(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        self.seen.described += 1
        name = catalog_pb2.DescribeFunctionRequest.FromString(request).function
        if name not in ("bowl", "tilted"):
            context.abort(grpc.StatusCode.NOT_FOUND, f"there is no function {name}")
        vector = function_pb2.TensorSpec(
            name="x", dtypes=[tensor_pb2.DTYPE_FLOAT64], shape=[function_pb2.Dimension(symbol="n")], differentiable=True
        )
        weight = function_pb2.TensorSpec(name="w", dtypes=[tensor_pb2.DTYPE_FLOAT64], differentiable=True)
        value = function_pb2.TensorSpec(name="value", dtypes=[tensor_pb2.DTYPE_FLOAT64], differentiable=True)
        signature = function_pb2.Signature(inputs=[vector] if name == "bowl" else [vector, weight], outputs=[value])
        function = function_pb2.Function(name=name, version=1, signature=signature)
        return catalog_pb2.DescribeFunctionResponse(function=function).SerializeToString()

    def _pipeline(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        self.seen.streams += 1
        answered = 0
        if self.faults.breaks and not self.faults.break_after:
            self.faults.breaks -= 1
            context.abort(self.faults.break_code, "broken on purpose")
        if self.faults.deaf is not None:
            self.faults.deaf.wait()
        for data in requests:
            request = pb.PipelineRequest.FromString(data)
            with self.arrived:
                self.seen.messages.append(len(data))
                self.seen.operations += [_points(operation) for operation in request.operations]
                self.seen.timeouts += [operation.timeout_nanoseconds for operation in request.operations]
                self.seen.cancelled += request.cancelled_ids
                self.arrived.notify_all()
            if self.faults.silent:
                continue
            if self.faults.garbled:
                yield b"\xff"
            operations = list(request.operations)
            for operation in reversed(operations) if self.faults.backwards else operations:
                answers = [self._answer(operation)]
                if self.faults.unknown_ids:
                    answers += [pb.Answer(id=999_999_999), answers[0]]
                yield pb.PipelineResponse(answers=answers).SerializeToString()
                answered += 1
                if self.faults.breaks and answered == self.faults.break_after:
                    self.faults.breaks -= 1
                    context.abort(self.faults.break_code, "broken on purpose")

    def _answer(self, operation: pb.Operation) -> pb.Answer:
        if self.faults.refuse is not None and self.faults.refusals:
            self.faults.refusals -= 1
            return pb.Answer(id=operation.id, error=self.faults.refuse)
        if operation.WhichOneof("request") != "gradient":
            return pb.Answer(id=operation.id, error=errors.to_wire(errors.InvalidOption("only gradients here")))
        request = operation.gradient
        inputs = {named.name: named for named in request.inputs}
        batched = any(named.batched for named in request.inputs)
        x = to_array(inputs["x"].tensor)
        x = x if inputs["x"].batched else x[None]
        if np.any(x[:, :1] == POISON):
            return pb.Answer(id=operation.id, error=errors.to_wire(errors.FunctionFailed("poison")))
        if len(x) > 2 and np.any(x[:, :1] == LARGE):
            return pb.Answer(id=operation.id, error=errors.to_wire(errors.ResultTooLarge("too large")))
        w = to_array(inputs["w"].tensor) if "w" in inputs else np.ones(())
        w = np.broadcast_to(w, len(x))
        found = {"x": 2 * w[:, None] * x, "w": (x * x).sum(axis=1)}
        value = w * found["w"]
        names = request.wrt or list(inputs)
        return pb.Answer(
            id=operation.id,
            gradient=pb.GradientResponse(
                values=[_named("value", value, batched)],
                gradients=[_named(name, found[name], batched) for name in names],
                execution=pb.Execution(function=f"{request.function}@1", batch_points=len(x)),
            ),
        )


def _points(operation: pb.Operation) -> int:
    tensors = [named for named in getattr(operation, operation.WhichOneof("request") or "").inputs if named.batched]
    return tensors[0].tensor.shape[0] if tensors else 0


def _named(name: str, rows: Any, batched: bool) -> tensor_pb2.NamedTensor:
    finite = bool(np.all(np.isfinite(rows)))
    return tensor_pb2.NamedTensor(
        name=name, tensor=to_tensor(rows if batched else rows[0]), batched=batched, non_finite=not finite
    )
