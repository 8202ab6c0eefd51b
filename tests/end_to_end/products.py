"""A client of Linearize as any language would write it, and the memory that the server says it keeps."""

import queue
import urllib.request
from collections.abc import Iterable
from typing import Any

import grpc
from numpy.typing import ArrayLike
from prometheus_client.parser import text_string_to_metric_families

from end_to_end.pipelines import named
from nablad.v1 import differentiation_pb2 as pb
from nablad.v1 import function_pb2
from nablad.v1.differentiation_pb2_grpc import DifferentiationServiceStub
from servers import ServerProcess

HVP, JVP, VJP = function_pb2.OPERATOR_HVP, function_pb2.OPERATOR_JVP, function_pb2.OPERATOR_VJP


class ProductStream:
    """An open stream.

    Attributes:
        call: gRPC's own, to be cancelled or asked for its status.
    """

    def __init__(self, channel: grpc.Channel, timeout: float = 120, token: str = "") -> None:
        self._sending: queue.SimpleQueue[pb.LinearizeRequest | None] = queue.SimpleQueue()
        metadata = (("authorization", f"Bearer {token}"),) if token else ()
        self.call: Any = DifferentiationServiceStub(channel).Linearize(
            iter(self._sending.get, None), timeout=timeout, metadata=metadata
        )
        self._come: list[pb.ProductAnswer] = []

    def send(self, *products: pb.Product, point: pb.LinearizePoint | None = None) -> None:
        """Sends one message."""
        self._sending.put(pb.LinearizeRequest(point=point, products=products))

    def opened(self) -> pb.LinearizeOpened:
        """The answer to the point, which must come first."""
        response = next(self.call)
        assert response.HasField("opened")
        self._come += response.answers
        opened: pb.LinearizeOpened = response.opened
        return opened

    def take(self, count: int) -> list[pb.ProductAnswer]:
        """The next so many answers, in the order in which they come."""
        while len(self._come) < count:
            response = next(self.call)
            assert not response.HasField("opened")
            self._come += response.answers
        taken, self._come = self._come[:count], self._come[count:]
        return taken

    def rest(self) -> list[pb.ProductAnswer]:
        """All answers until the server ends the stream, which the client ends now."""
        self._sending.put(None)
        return self._come + [answer for response in self.call for answer in response.answers]


def point(function: str, x: ArrayLike, **options: Any) -> pb.LinearizePoint:
    """A function of x at a point."""
    return pb.LinearizePoint(function=function, inputs=[named("x", x)], **options)


def product(identity: int, operator: Any, vector: ArrayLike, name: str = "x", *, stacked: bool = False) -> pb.Product:
    """One product with one vector, or with a stack of them."""
    return pb.Product(id=identity, operator=operator, vectors=[named(name, vector)], stacked=stacked)


def by_id(answers: Iterable[pb.ProductAnswer]) -> dict[int, pb.ProductAnswer]:
    """Answers by their ids; every id is answered once."""
    found: dict[int, pb.ProductAnswer] = {}
    for answer in answers:
        assert answer.id not in found, "answered twice"
        found[answer.id] = answer
    return found


def gauges(process: ServerProcess) -> dict[str, float]:
    """How many linearisations are open, and how many bytes they keep, as a scrape reads it."""
    (line,) = [line for line in process.log if line["event"] == "metrics"]
    with urllib.request.urlopen(f"http://{line['address']}/metrics") as answer:
        families = text_string_to_metric_families(answer.read().decode())
    return {family.name: family.samples[0].value for family in families if "linearization" in family.name}
