"""Traces: a caller's span goes on in the server, and what a call's time went to is there to be seen."""

import asyncio
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import nablad
from nablad import aio, errors
from nablad_server.app import App
from nablad_server.config import Settings
from resilience.frames import Raw

trace: Any = pytest.importorskip("opentelemetry.trace", reason="the extra otel is not installed")
sdk: Any = pytest.importorskip("opentelemetry.sdk.trace")
export: Any = pytest.importorskip("opentelemetry.sdk.trace.export")
memory: Any = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")

SERVICE = "nablad.v1.DifferentiationService"


@pytest.fixture(scope="module")
def spans() -> Any:
    """Where this process's spans go."""
    exporter = memory.InMemorySpanExporter()
    provider = sdk.TracerProvider()
    provider.add_span_processor(export.SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    return exporter


@pytest.fixture(scope="module")
def address(spans: Any) -> Iterator[str]:
    app = App(
        Settings(address="127.0.0.1:0", compile_cache=None, drain_pause_seconds=0, tracing=True, request_seconds=0.5)
    )
    app.start()
    yield app.address
    app.stop()


def finished(spans: Any, name: str) -> dict[str, Any]:
    """The span of a name that is over, and those in it, by name. Waits for it: a call is over after its answer."""
    while True:
        done = spans.get_finished_spans()
        found = [span for span in done if span.name == name]
        if found:
            (root,) = found
            inner = {s.name: s for s in done if s.parent is not None and s.parent.span_id == root.context.span_id}
            return {"": root} | inner


@pytest.fixture(autouse=True)
def afresh(spans: Any) -> None:
    spans.clear()


def test_a_call_is_a_child_of_its_callers_span_and_shows_where_its_time_went(address: str, spans: Any) -> None:
    tracer = trace.get_tracer("test")
    with nablad.Client(address) as client, tracer.start_as_current_span("caller") as caller:
        answer = client.gradient("rosenbrock", np.ones((3, 7)), batched=True)
    found = finished(spans, f"{SERVICE}/Gradient")

    root = found[""]
    assert root.context.trace_id == caller.get_span_context().trace_id
    assert root.parent.span_id == caller.get_span_context().span_id
    assert root.kind is trace.SpanKind.SERVER
    assert dict(root.attributes) == {
        "rpc.system": "grpc", "rpc.service": SERVICE, "rpc.method": "Gradient", "rpc.grpc.status_code": 0,
        "nablad.function": "rosenbrock@1", "nablad.points": 3, "nablad.batch_points": 3,
    }  # fmt: skip
    assert set(found) == {"", "queue", "compile", "compute", "encode"}, "the first of its shapes is compiled"
    steps = [found[name] for name in ("queue", "compile", "compute", "encode")]
    for step, following in itertools.pairwise(steps):
        assert step.end_time <= following.start_time
    assert all(step.start_time <= step.end_time <= root.end_time for step in steps)
    compiled = found["compile"].end_time - found["compile"].start_time
    assert compiled == pytest.approx(answer.execution.compile_seconds * 1e9, rel=0.05)


def test_what_is_compiled_already_has_no_such_span(address: str, spans: Any) -> None:
    with nablad.Client(address) as client:
        client.gradient("rosenbrock", np.ones(5))
        finished(spans, f"{SERVICE}/Gradient")
        spans.clear()
        client.gradient("rosenbrock", np.ones(5))
    found = finished(spans, f"{SERVICE}/Gradient")

    assert set(found) == {"", "queue", "compute", "encode"}
    assert found[""].parent is None, "nobody's span was current"


def test_a_refusal_says_why(address: str, spans: Any) -> None:
    with nablad.Client(address) as client, pytest.raises(errors.WrongShape):
        client.gradient("rosenbrock", np.ones((2, 2)))
    root = finished(spans, f"{SERVICE}/Gradient")[""]

    assert root.status.status_code is trace.StatusCode.ERROR
    assert (root.attributes["error.type"], root.attributes["rpc.grpc.status_code"]) == ("WRONG_SHAPE", 3)


def test_calls_of_the_other_services_have_spans_too(address: str, spans: Any) -> None:
    catalogue = "nablad.v1.CatalogService"
    with nablad.Client(address) as client:
        client.describe("rosenbrock")
        fine = finished(spans, f"{catalogue}/DescribeFunction")[""]
        spans.clear()
        with pytest.raises(errors.FunctionNotFound):
            client.describe("no_such_function")
        assert client.healthy()
    failed = finished(spans, f"{catalogue}/DescribeFunction")[""]

    assert dict(fine.attributes) == {
        "rpc.system": "grpc", "rpc.service": catalogue, "rpc.method": "DescribeFunction", "rpc.grpc.status_code": 0,
    }  # fmt: skip
    assert failed.attributes["error.type"] == "FUNCTION_NOT_FOUND"
    assert [span.name for span in spans.get_finished_spans()] == [failed.name], "health checks have none"


@pytest.mark.parametrize("name", [f"{SERVICE}/Gradient", "nablad.v1.CatalogService/ListFunctions"])
def test_a_request_that_never_comes_whole_ends_its_span(address: str, spans: Any, name: str) -> None:
    half = Raw(f"/{name}".encode(), int(address.rpartition(":")[2]))
    half.read_until(b"had not arrived whole")
    half.close()
    root = finished(spans, name)[""]

    assert root.attributes["error.type"] == "DEADLINE_EXCEEDED"


def test_streams_and_the_other_client_carry_the_context(address: str, spans: Any) -> None:
    tracer = trace.get_tracer("test")
    with (
        nablad.Client(address) as client,
        tracer.start_as_current_span("stream") as outer,
        client.pipeline() as pipeline,
    ):
        assert pipeline.evaluate("sin", 0.0).result().value == 0.0
    assert finished(spans, f"{SERVICE}/Pipeline")[""].parent.span_id == outer.get_span_context().span_id

    async def ask() -> Any:
        async with aio.Client(address) as other:
            with tracer.start_as_current_span("awaited") as awaited:
                await other.evaluate("sin", 0.0)
            return awaited.get_span_context().span_id

    identity = asyncio.run(ask())
    assert finished(spans, f"{SERVICE}/Evaluate")[""].parent.span_id == identity
