"""Counts and distributions: what was counted is what is published, by the catalogue and by a scrape."""

import bisect
import itertools
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from nablad.errors import FunctionFailed, FunctionNotFound, NabladError, QueueFull
from nablad.v1 import error_pb2, function_pb2
from nablad.v1.catalog_pb2 import OperatorStatistics
from nablad_server.batching.ticket import Outcome
from nablad_server.functions.registration import build
from nablad_server.functions.sources.builtin.elementary import sin
from nablad_server.serving.statistics import POINTS, SECONDS, Distribution, Statistics
from queries import query_of, spec

EVALUATE, GRADIENT = function_pb2.OPERATOR_EVALUATE, function_pb2.OPERATOR_GRADIENT
QUERY = query_of(build(sin, "test"), EVALUATE, (spec(),))
VALUES = st.floats(0, 1e5) | st.sampled_from([*SECONDS, *POINTS])


def outcome(queue: float = 0.0, compile_: float = 0.0) -> Outcome:
    return Outcome(None, 1, queue, compile_, 0.0)


def scrape(statistics: Statistics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """What a scrape reads, by name and labels."""
    registry = CollectorRegistry()
    registry.register(statistics)
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(generate_latest(registry).decode())
        for sample in family.samples
    }


def labelled(name: str, **labels: str) -> tuple[str, tuple[tuple[str, str], ...]]:
    return name, tuple(sorted(labels.items()))


@given(st.lists(VALUES), st.sampled_from([SECONDS, POINTS]))
def test_a_value_falls_into_the_first_bucket_that_is_no_smaller(values: list[float], bounds: Sequence[float]) -> None:
    distribution = Distribution(bounds)
    for value in values:
        distribution.add(value)

    message = distribution.message()

    edges = [float("-inf"), *bounds, float("inf")]
    assert list(message.bounds) == list(bounds)
    assert list(message.counts) == [
        sum(low < value <= high for value in values) for low, high in itertools.pairwise(edges)
    ]
    assert abs(message.sum - sum(values)) <= 1e-9 * sum(values)


@given(st.lists(VALUES))
def test_a_scrape_counts_up(values: list[float]) -> None:
    distribution = Distribution(SECONDS)
    for value in values:
        distribution.add(value)

    pairs = distribution.cumulative()

    assert pairs[-1] == ("+Inf", float(len(values)))
    for bound, count in pairs[:-1]:
        assert count == sum(value <= float(bound) for value in values)


def test_the_bounds_increase() -> None:
    for bounds in (SECONDS, POINTS):
        assert list(bounds) == sorted(set(bounds))
    assert (SECONDS[0], POINTS[0], POINTS[-1]) == (1e-6, 1.0, 16384.0)
    assert bisect.bisect_left(SECONDS, 50.0) == len(SECONDS) - 1


def test_what_was_counted_is_published() -> None:
    statistics = Statistics()
    series = statistics.of_query(QUERY)
    series.answered(3, outcome(queue=2e-6), 1e-5)
    series.answered(4, outcome(queue=1.0, compile_=0.5), 2e-5)
    series.rejected(QueueFull("full"))
    series.rejected(FunctionFailed("failed"))
    series.rejected(QueueFull("full"))
    statistics.executed(QUERY, 7, 8, 1e-3)

    (message,) = statistics.messages()

    assert (message.function, message.operator) == ("sin@1", EVALUATE)
    assert (message.requests, message.points, message.padding_points) == (2, 7, 1)
    assert counts(message) == {"batch_points": 1, "queue": 2, "compile": 1, "compute": 1, "encode": 2}
    assert (message.batch_points.sum, message.queue_seconds.sum, message.compile_seconds.sum) == (7, 1.000002, 0.5)
    assert {rejection.reason: rejection.requests for rejection in message.rejections} == {
        error_pb2.REASON_QUEUE_FULL: 2, error_pb2.REASON_FUNCTION_FAILED: 1,
    }  # fmt: skip


def counts(message: OperatorStatistics) -> dict[str, int]:
    """How many values each distribution holds."""
    return {
        "batch_points": sum(message.batch_points.counts),
        "queue": sum(message.queue_seconds.counts),
        "compile": sum(message.compile_seconds.counts),
        "compute": sum(message.compute_seconds.counts),
        "encode": sum(message.encode_seconds.counts),
    }


def test_series_are_by_function_and_operator_and_can_be_had_by_function() -> None:
    statistics = Statistics()
    for function, operator in (("g@2", GRADIENT), ("f@1", GRADIENT), ("f@1", EVALUATE), ("", EVALUATE)):
        statistics.of(function, operator).rejected(FunctionNotFound("no"))
    statistics.of("f@1", EVALUATE).rejected(FunctionNotFound("no"))

    def keys(messages: Iterable[OperatorStatistics]) -> list[tuple[str, int]]:
        return [(message.function, message.operator) for message in messages]

    assert keys(statistics.messages()) == [("", EVALUATE), ("f@1", EVALUATE), ("f@1", GRADIENT), ("g@2", GRADIENT)]
    assert keys(statistics.messages("f@1")) == [("f@1", EVALUATE), ("f@1", GRADIENT)]
    assert statistics.messages("f@1")[0].rejections[0].requests == 2


def test_an_error_without_a_reason_is_counted_by_its_code() -> None:
    statistics = Statistics()
    statistics.of("f@1", EVALUATE).rejected(NabladError("odd"))

    (rejection,) = statistics.messages()[0].rejections
    assert (rejection.reason, rejection.requests) == (error_pb2.REASON_UNSPECIFIED, 1)
    labels = {"function": "f@1", "operator": "evaluate", "reason": "UNKNOWN"}
    assert scrape(statistics)[labelled("nablad_rejections_total", **labels)] == 1


def test_a_scrape_reads_the_same() -> None:
    statistics = Statistics()
    series = statistics.of_query(QUERY)
    series.answered(3, outcome(queue=2e-6), 1e-5)
    series.rejected(QueueFull("full"))
    statistics.executed(QUERY, 3, 4, 1e-3)

    read = scrape(statistics)

    labels = {"function": "sin@1", "operator": "evaluate"}
    assert read[labelled("nablad_requests_total", **labels)] == 1
    assert read[labelled("nablad_points_total", **labels)] == 3
    assert read[labelled("nablad_padding_points_total", **labels)] == 1
    assert read[labelled("nablad_rejections_total", reason="QUEUE_FULL", **labels)] == 1
    assert read[labelled("nablad_batch_points_bucket", le="2.0", **labels)] == 0
    assert read[labelled("nablad_batch_points_bucket", le="4.0", **labels)] == 1
    assert read[labelled("nablad_batch_points_sum", **labels)] == 3
    for name in ("queue", "compute", "encode"):
        assert read[labelled(f"nablad_{name}_seconds_count", **labels)] == 1
    assert read[labelled("nablad_compile_seconds_count", **labels)] == 0


def test_nothing_is_lost_between_threads() -> None:
    statistics, together = Statistics(), threading.Barrier(8)

    def count(_: int) -> None:
        together.wait(30)
        for _ in range(500):
            statistics.of_query(QUERY).answered(2, outcome(), 1e-6)
            statistics.executed(QUERY, 2, 3, 1e-6)
            statistics.of("", GRADIENT).rejected(QueueFull("full"))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(count, range(8)))

    refused, message = statistics.messages()
    assert (message.requests, message.points, message.padding_points) == (4000, 8000, 4000)
    assert counts(message) == {"batch_points": 4000, "queue": 4000, "compile": 0, "compute": 4000, "encode": 4000}
    assert refused.rejections[0].requests == 4000
