"""Linearize: many products at one point over one stream, answered as they are done."""

import functools
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from nablad.errors import (
    DuplicateName,
    LinearizationExpired,
    MalformedRequest,
    NabladError,
    TooManyLinearizations,
)
from nablad.framing import FIXED64, LENGTH, VARINT, Field, fields, prefix, tag, varint
from nablad.v1 import differentiation_pb2 as pb
from nablad.v1 import function_pb2
from nablad_server.batching.ticket import Outcome
from nablad_server.derivatives.query import Query
from nablad_server.derivatives.runner import Points
from nablad_server.serving.call import Call
from nablad_server.serving.caller import denied
from nablad_server.serving.decode_products import Opened, Products
from nablad_server.serving.layout_products import ProductLayout
from nablad_server.serving.linearizer import Kept, Linearizer
from nablad_server.serving.stream import ID_TAG, Stream, Window
from nablad_server.serving.work import Desk

NAME = "Linearize"

_REQUEST, _RESPONSE = pb.LinearizeRequest.DESCRIPTOR, pb.LinearizeResponse.DESCRIPTOR
POINT = _REQUEST.fields_by_name["point"].number
PRODUCTS = _REQUEST.fields_by_name["products"].number
ID = pb.Product.DESCRIPTOR.fields_by_name["id"].number
OPENED = _RESPONSE.fields_by_name["opened"].number
IDLE = pb.LinearizeOpened.DESCRIPTOR.fields_by_name["idle_seconds"].number
ANSWERS = _RESPONSE.fields_by_name["answers"].number

OPENING = -1
"""Stands among the ids of products for the point itself."""


@dataclass(frozen=True)
class Bounds:
    """How long, and how many, linearisations may be open.

    Attributes:
        idle_seconds: a stream without a product for so long is ended.
        per_caller: so many streams one caller may have open.
    """

    idle_seconds: float = 300.0
    per_caller: int = 64


class Linearizations(Collector):
    """All Linearize streams of a server. Safe for threads; a Prometheus registry can collect it."""

    def __init__(self, linearizer: Linearizer, bounds: Bounds) -> None:
        self.linearizer = linearizer
        self.bounds = bounds
        self.products = Products()
        self._lock = threading.Lock()
        self._streams: set[Linearize] = set()
        self._callers: Counter[str] = Counter()

    def enter(self, stream: "Linearize", caller: str) -> None:
        """Takes note of a stream. Raises TooManyLinearizations if its caller has too many."""
        limit = self.bounds.per_caller
        with self._lock:
            if self._callers[caller] < limit:
                self._callers[caller] += 1
                self._streams.add(stream)
                return
        raise TooManyLinearizations(
            f"this caller has {limit} linearizations open, the most that are allowed; close some",
            metadata={"limit": str(limit)},
        )

    def leave(self, stream: "Linearize", caller: str) -> None:
        """Forgets a stream that is over, if it was let in."""
        with self._lock:
            if stream in self._streams:
                self._streams.discard(stream)
                self._callers[caller] -= 1
                if not self._callers[caller]:
                    del self._callers[caller]

    def look(self) -> None:
        """Ends the streams that are idle for too long."""
        now = time.monotonic()
        seconds = self.bounds.idle_seconds
        with self._lock:
            idle = [stream for stream in self._streams if stream.idle(now) > seconds]
        for stream in idle:
            stream.dismiss(
                LinearizationExpired(
                    f"nothing was asked for in {seconds:g} s, and the point was let go; linearize anew",
                    metadata={"idle_seconds": f"{seconds:g}"},
                )
            )

    def collect(self) -> Iterator[Metric]:
        """As a scrape reads them."""
        yield GaugeMetricFamily("nablad_linearizations", "Linearize streams that are open.", value=len(self._streams))
        yield GaugeMetricFamily(
            "nablad_linearization_bytes", "Memory that their points keep.", value=self.linearizer.budget.used
        )


class Linearize(Stream):
    """One stream of products at one point."""

    request = _REQUEST.full_name
    answers = ANSWERS

    def __init__(self, call: Call, desk: Desk, window: Window, registry: Linearizations) -> None:
        super().__init__(call, desk, window)
        self._registry = registry
        self._caller = call.caller.key
        self._opened: Opened | None = None
        self._awaiting_first = True  # the answer to the point
        self._kept: dict[function_pb2.Operator.ValueType, Kept] = {}
        self._active = time.monotonic()

    def idle(self, now: float) -> float:
        """For how many seconds nothing was asked for, nor computed."""
        return 0.0 if self.busy else now - self._active

    def received(self, message: bytes | None) -> None:
        """A message has come, or the client has sent all."""
        self._active = time.monotonic()
        if message is None and self._opened is None:
            self.dismiss(MalformedRequest("the stream ended without a point"))
        super().received(message)

    def ordered(self, found: Iterator[Field]) -> Iterator[Field]:
        """Of the first message the point comes first, wherever it stands."""
        if self._opened is not None:
            return found
        return self._point_first(found)

    def _point_first(self, found: Iterable[Field]) -> Iterator[Field]:
        every = sorted(found, key=lambda field: field.number != POINT)
        if not every or every[0].number != POINT:
            raise MalformedRequest("the first message of a stream must hold the point")
        yield from every

    def take(self, message: bytes, field: Field) -> None:
        """Takes in the point, or a product."""
        if field.wire_type != LENGTH:
            return
        if field.number == PRODUCTS:
            self._product(message, field)
        elif field.number == POINT:
            if self._opened is not None:
                raise MalformedRequest("a stream is about one point, and it has one; open another for another")
            self._point(message, field)

    def closed(self) -> None:
        """The stream is over: what was not begun need not be, and nothing is kept."""
        super().closed()
        self._let_go()
        self._kept.clear()
        self._opened = None

    def dismiss(self, error: NabladError) -> None:
        """Ends the stream, whatever is still open."""
        super().dismiss(error)
        self._let_go()

    def _let_go(self) -> None:
        self._registry.leave(self, self._caller)
        for kept in list(self._kept.values()):
            kept.close()

    def _point(self, message: bytes, field: Field) -> None:
        products = self._registry.products
        opened = self.desk.read(
            NAME, function_pb2.OPERATOR_EVALUATE,
            lambda decoder: products.point(
                decoder, message, field.start, field.stop, self.call.caller.functions
            ),
            self.dismiss,
        )  # fmt: skip
        if opened is None:
            return
        try:
            self._registry.enter(self, self._caller)
        except TooManyLinearizations as error:
            self.dismiss(error)
            return
        self._opened = opened
        self.enter(OPENING, field.stop - field.start)
        ticket = self.desk.admit(
            NAME, opened.place.values, Points(1, opened.data), field.stop - field.start,
            owner=self.call.account.owner, deadline=self.call.deadline, answered=self._valued, failed=self.dismiss,
        )  # fmt: skip
        if ticket is not None:
            self.begun(OPENING, ticket)
            self.desk.gather(ticket)

    def _valued(self, outcome: Outcome) -> None:
        opened = self._opened
        if opened is None:
            return
        parts, length = opened.place.layout.write(outcome)
        idle = tag(IDLE, FIXED64) + struct.pack("<d", self._registry.bounds.idle_seconds)
        length += len(idle)
        self.answer(OPENING, [prefix(OPENED, length), *parts, idle], length, first=True)

    def _product(self, message: bytes, field: Field) -> None:
        opened = self._opened
        if opened is None:  # the point was refused, and the stream has ended
            return
        identity, start = 0, field.start
        # The id mostly comes first. What follows it is the same for all products of a kind but for the elements.
        first = next(fields(message, field.start, field.stop), None)
        if first is not None and first.number == ID and first.wire_type == VARINT:
            identity, start = first.value, first.stop
        else:
            identity = _identity(message, field)
        if not self.enter(identity, field.stop - field.start):
            error = DuplicateName(f"the id {identity} is that of a product not yet answered", field="id")
            self.fail(identity, error, owned=False)
            return
        failed = functools.partial(self._failed, identity)
        refused = self.call.account.spend()
        if refused is not None:
            failed(refused)
            return
        allowed = self.call.caller.functions
        if allowed is not None and not allowed.permits(opened.reference):  # any more
            failed(denied(opened.reference))
            return
        products = self._registry.products
        read = self.desk.read(
            NAME, function_pb2.OPERATOR_UNSPECIFIED,
            lambda decoder: products.product(decoder, opened.place, message, start, field.stop), failed,
        )  # fmt: skip
        if read is None:
            return
        form, data = read
        ticket = self.desk.admit(
            NAME, form.query, Points(1, (*opened.data, *data)), field.stop - field.start,
            owner=self.call.account.owner, deadline=self.call.deadline,
            answered=functools.partial(self._computed, identity, form.layout),
            failed=failed,
        )  # fmt: skip
        if ticket is None:
            return
        self.begun(identity, ticket)
        if self._keeper(form.whole, opened).direct(ticket, functools.partial(form.vectors, data)):
            self.desk.gather(ticket)

    def _keeper(self, query: Query, opened: Opened) -> Kept:
        kept = self._kept.get(query.operator)
        if kept is None:
            kept = self._kept[query.operator] = Kept(self._registry.linearizer, query, opened.data)
        return kept

    def _computed(self, identity: int, layout: ProductLayout, outcome: Outcome) -> None:
        self._active = time.monotonic()
        parts, length = layout.write(outcome)
        header = ID_TAG + varint(identity)
        length += len(header)
        self.answer(identity, [prefix(ANSWERS, length) + header, *parts], length)

    def _failed(self, identity: int, error: NabladError) -> None:
        self._active = time.monotonic()
        self.fail(identity, error)


def _identity(message: bytes, product: Field) -> int:
    """The id of a product, wherever it stands."""
    identity = 0
    for field in fields(message, product.start, product.stop):
        if field.number == ID and field.wire_type == VARINT:
            identity = field.value
    return identity
