"""OpenTelemetry: a span for each call, and for an operator's with spans for where its time went.

Imported only where tracing is asked for: it needs the extra `otel`, and a call that is not traced costs nothing for it.
"""

import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any

from opentelemetry import trace
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from nablad.errors import NabladError
from nablad_server.batching.ticket import Outcome
from nablad_server.serving.call import Call, Handler
from nablad_server.serving.differentiation import OPERATORS, Unary
from nablad_server.serving.work import Desk

_CARRIED = ("traceparent", "tracestate")
_NANO = 1e9


def provider_of() -> Any:
    """What spans are given to: the program's own provider if it has one, else one that sends them over OTLP.

    The latter is told by the standard variables where to, and which spans: OTEL_EXPORTER_OTLP_ENDPOINT,
    OTEL_TRACES_SAMPLER, OTEL_SERVICE_NAME, ….
    """
    own = trace.get_tracer_provider()
    if isinstance(own, TracerProvider):
        return own
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter  # noqa: PLC0415 - it loads much

    found = Resource.create({SERVICE_VERSION: version("nablad")})
    if str(found.attributes[SERVICE_NAME]).startswith("unknown_service"):  # no variable says otherwise
        found = found.merge(Resource({SERVICE_NAME: "nablad"}))
    # A drain is bounded, so that it is not the interpreter's end that waits for a collector that does not answer.
    provider = TracerProvider(resource=found, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider


def traced(
    methods: Mapping[str, Callable[[Call], Handler]], desk: Desk, provider: Any
) -> dict[str, Callable[[Call], Handler]]:
    """The same methods, with a span for each call."""
    tracer = provider.get_tracer("nablad_server", version("nablad"))

    def whole(name: str, make: Callable[[Call], Handler]) -> Callable[[Call], Handler]:
        return lambda call: _Traced(make(call), call, _begin(tracer, name, call))

    def unary(name: str) -> Callable[[Call], Handler]:
        return lambda call: _TracedUnary(name.rpartition("/")[2], call, desk, tracer, _begin(tracer, name, call))

    return {name: unary(name) if name in OPERATORS else whole(name, make) for name, make in methods.items()}


def _begin(tracer: Any, name: str, call: Call) -> Any:
    """The span of a call, which is a child of the caller's if that is told."""
    carrier = {key: value for key, value in call.metadata if key in _CARRIED and isinstance(value, str)}
    _, service, method = name.split("/")
    return tracer.start_span(
        name.removeprefix("/"),
        context=TraceContextTextMapPropagator().extract(carrier),
        kind=trace.SpanKind.SERVER,
        attributes={"rpc.system": "grpc", "rpc.service": service, "rpc.method": method},
    )


def _fail(span: Any, error: NabladError) -> None:
    span.set_attribute("rpc.grpc.status_code", error.code.value[0])
    span.set_attribute("error.type", error.reason or error.code.name)
    span.set_status(trace.Status(trace.StatusCode.ERROR, error.message[:500]))


def _end(span: Any, call: Call) -> None:
    """Ends the span of a call that is over, and says how that ended."""
    if call.failure is not None:
        _fail(span, call.failure)
    elif call.ended:
        span.set_attribute("rpc.grpc.status_code", 0)
    span.end()


class _TracedUnary(Unary):
    """A unary call with a span."""

    __slots__ = ("_answered", "_span", "_tracer")

    def __init__(self, name: str, call: Call, desk: Desk, tracer: Any, span: Any) -> None:
        super().__init__(name, call, desk)
        self._answered = False
        self._tracer = tracer
        self._span = span

    def received(self, message: bytes | None) -> None:
        """The request has come."""
        super().received(message)
        ticket = self._ticket
        if ticket is None:
            return
        answered = ticket.done

        def done(outcome: Outcome | NabladError) -> None:
            self._answered = True  # from now on the span is ended here: the call may be over before this is
            began = time.time_ns()
            answered(outcome)
            if isinstance(outcome, Outcome):
                self._ran(outcome, began)
            self._span.end()

        ticket.done = done

    def closed(self) -> None:
        """The call is over."""
        super().closed()
        if not self._answered:
            _end(self._span, self._call)

    def _failed(self, error: NabladError) -> None:
        _fail(self._span, error)
        super()._failed(error)

    def _ran(self, outcome: Outcome, encoding: int) -> None:
        """Adds what the time went to. `encoding`: when the response began to be written, in nanoseconds."""
        now = time.time_ns()
        computing = encoding - int(outcome.compute_seconds * _NANO)
        compiled = computing - int(outcome.compile_seconds * _NANO)
        queued = computing - int(outcome.queue_seconds * _NANO)
        steps = [("queue", queued, max(queued, compiled)), ("compute", computing, encoding), ("encode", encoding, now)]
        if outcome.compile_seconds:
            steps.insert(1, ("compile", max(queued, compiled), computing))
        context = trace.set_span_in_context(self._span)
        for name, start, stop in steps:
            self._tracer.start_span(name, context=context, start_time=start).end(end_time=stop)
        self._span.set_attribute("rpc.grpc.status_code", 0)
        self._span.set_attribute("nablad.batch_points", outcome.batch_points)
        if self._ticket is not None:
            query: Any = self._ticket.key
            self._span.set_attribute("nablad.function", query.function.reference)
            self._span.set_attribute("nablad.points", self._ticket.points)


class _Traced:
    """A call with a span from its beginning to its end."""

    __slots__ = ("_call", "_handler", "_span")

    def __init__(self, handler: Handler, call: Call, span: Any) -> None:
        self._handler = handler
        self._call = call
        self._span = span

    def received(self, message: bytes | None) -> None:
        """A message has come."""
        self._handler.received(message)

    def sent(self) -> None:
        """One has gone."""
        self._handler.sent()

    def closed(self) -> None:
        """The call is over."""
        self._handler.closed()
        _end(self._span, self._call)

    def dismiss(self, error: NabladError) -> None:
        """The server stops."""
        self._handler.dismiss(error)
