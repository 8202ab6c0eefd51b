"""The readers that are fuzzed, by name."""

from collections.abc import Mapping, Sequence

from google.protobuf.message import Message

from nablad.v1 import differentiation_pb2 as pb
from nablad.v1.tensor_pb2 import Tensor
from nablad_server.serving.work import KINDS
from resilience.corpus import STREAMS, UNARY
from resilience.read_operations import check_operations
from resilience.read_replies import ROWS, STATUSES, check_rows, check_status
from resilience.read_requests import NAMES, POINT, check_framing, check_product, check_request, check_tensor
from resilience.reader import Reader


def _numbered(requests: Mapping[str, Sequence[Message]]) -> list[bytes]:
    return [bytes([number]) + each.SerializeToString() for number, name in enumerate(NAMES) for each in requests[name]]


def _messages(stream: str) -> list[bytes]:
    return [each.SerializeToString() for each in STREAMS[stream]()]


_PRODUCTS: list[pb.Product] = [
    product for message in STREAMS["Linearize"]() if isinstance(message, pb.LinearizeRequest)
    for product in message.products
]  # fmt: skip

READERS: dict[str, Reader] = {
    "framing": Reader(check_framing, [seed[1:] for seed in _numbered(UNARY)]),
    "tensors": Reader(check_tensor, [named.tensor.SerializeToString() for named in POINT.point.inputs], [Tensor]),
    "requests": Reader(check_request, _numbered(UNARY), [KINDS[name].request for name in NAMES], numbered=True),
    "products": Reader(
        check_product,
        [b"\0" + POINT.point.SerializeToString(), *(b"\1" + each.SerializeToString() for each in _PRODUCTS)],
        [pb.LinearizePoint, pb.Product], numbered=True,
    ),
    "operations": Reader(check_operations, _messages("Pipeline"), [pb.PipelineRequest]),
    "rows": Reader(check_rows, ROWS, [pb.StreamHessianResponse]),
    "statuses": Reader(check_status, STATUSES),
}  # fmt: skip
