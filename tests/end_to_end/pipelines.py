"""A client of Pipeline as any language would write it: messages go out, answers come in, and nothing is assumed."""

import queue
from collections.abc import Iterable
from typing import Any

import grpc
import numpy as np
from numpy.typing import ArrayLike, NDArray

from nablad.tensors import to_tensor
from nablad.v1 import differentiation_pb2 as pb
from nablad.v1.differentiation_pb2_grpc import DifferentiationServiceStub
from nablad.v1.tensor_pb2 import NamedTensor

METHOD = "/nablad.v1.DifferentiationService/Pipeline"


class Stream:
    """An open stream.

    Attributes:
        call: gRPC's own, to be cancelled or asked for its status.
    """

    def __init__(self, channel: grpc.Channel, timeout: float = 120, token: str = "") -> None:
        self._sending: queue.SimpleQueue[pb.PipelineRequest | None] = queue.SimpleQueue()
        metadata = (("authorization", f"Bearer {token}"),) if token else ()
        self.call: Any = DifferentiationServiceStub(channel).Pipeline(
            iter(self._sending.get, None), timeout=timeout, metadata=metadata
        )
        self._come: list[pb.Answer] = []

    def send(self, *operations: pb.Operation, cancelled: Iterable[int] = ()) -> None:
        """Sends one message."""
        self._sending.put(pb.PipelineRequest(operations=operations, cancelled_ids=cancelled))

    def end(self) -> None:
        """Sends no more."""
        self._sending.put(None)

    def take(self, count: int) -> list[pb.Answer]:
        """The next so many answers, in the order in which they come."""
        while len(self._come) < count:
            self._come += next(self.call).answers
        taken, self._come = self._come[:count], self._come[count:]
        return taken

    def rest(self) -> list[pb.Answer]:
        """All answers until the server ends the stream, which the client has ended."""
        self.end()
        return self._come + [answer for response in self.call for answer in response.answers]


def named(name: str, values: ArrayLike, *, batched: bool = False) -> NamedTensor:
    """A tensor of a request."""
    return NamedTensor(name=name, tensor=to_tensor(values), batched=batched)


def array(tensor: NamedTensor | Any) -> NDArray[np.float64]:
    """The numbers of a tensor of a response, in 64 bits."""
    found: NDArray[np.float64] = np.frombuffer(tensor.tensor.data).reshape(tuple(tensor.tensor.shape))
    return found


def gradient(identity: int, x: ArrayLike, function: str = "rosenbrock", timeout: int = 0) -> pb.Operation:
    """Asks for the gradient at x."""
    request = pb.GradientRequest(function=function, inputs=[named("x", x)])
    return pb.Operation(id=identity, gradient=request, timeout_nanoseconds=timeout)


def evaluate(identity: int, function: str, x: float, timeout: int = 0) -> pb.Operation:
    """Asks for the value at x."""
    request = pb.EvaluateRequest(function=function, inputs=[named("x", x)])
    return pb.Operation(id=identity, evaluate=request, timeout_nanoseconds=timeout)
