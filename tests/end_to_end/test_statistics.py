"""What a server says that it has done is what it was asked to do."""

import urllib.request
from collections import Counter
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

import nablad
from end_to_end.pipelines import Stream, evaluate, gradient
from nablad import errors
from nablad.v1 import catalog_pb2, error_pb2, function_pb2
from nablad.v1 import differentiation_pb2 as pb
from nablad.v1.catalog_pb2 import OperatorStatistics
from nablad.v1.catalog_pb2_grpc import CatalogServiceStub
from nablad.v1.differentiation_pb2_grpc import DifferentiationServiceStub
from servers import ServerProcess

CALLS, OPERATIONS, WHOLE = 7, 5, 4
"""Calls of 3 points, operations of 3 points, and calls of 4 points."""


@pytest.fixture(scope="module")
def used() -> Iterator[ServerProcess]:
    """A server whose program for four points is compiled, and which was asked for what is counted below."""
    warm = ("--warm", "gradient rosenbrock n=2 points=4")
    with ServerProcess(*warm, "--metrics-address", "127.0.0.1:0") as process:
        points = np.ones((3, 2))
        with nablad.Client(process.address) as client, grpc.insecure_channel(process.address) as channel:
            for _ in range(CALLS):
                client.gradient("rosenbrock", points, batched=True)
            for _ in range(WHOLE):
                client.gradient("rosenbrock", np.ones((4, 2)), batched=True)
            stream = Stream(channel)
            for identity in range(OPERATIONS):
                operation = gradient(identity, points)
                operation.gradient.inputs[0].batched = True
                stream.send(operation)
                stream.take(1)
            late = gradient(2, points, timeout=1)
            late.gradient.inputs[0].batched = True
            stream.send(evaluate(1, "no_such_function", 1.0), late)
            stream.rest()
            for wrong in range(3):  # the Python client would ask the catalogue first
                with pytest.raises(grpc.RpcError):
                    DifferentiationServiceStub(channel).Gradient(pb.GradientRequest(function=f"nope{wrong}"))
            with pytest.raises(errors.WrongShape):
                client.gradient("rosenbrock", [[1.0]])
            # A request is counted just after its answer was sent.
            while statistics_of(process, GRADIENT).requests < CALLS + OPERATIONS + WHOLE:
                continue
        yield process
        assert process.errors() == []


EVALUATE, GRADIENT = function_pb2.OPERATOR_EVALUATE, function_pb2.OPERATOR_GRADIENT


def all_statistics(process: ServerProcess, function: str = "") -> list[OperatorStatistics]:
    with grpc.insecure_channel(process.address) as channel:
        request = catalog_pb2.GetStatisticsRequest(function=function)
        return list(CatalogServiceStub(channel).GetStatistics(request).statistics)


def statistics_of(process: ServerProcess, operator: int) -> OperatorStatistics:
    return next(one for one in all_statistics(process, "rosenbrock") if one.operator == operator)


def test_requests_points_and_padding_are_exact(used: ServerProcess) -> None:
    one = statistics_of(used, GRADIENT)

    assert one.function == "rosenbrock@1"
    assert one.requests == CALLS + OPERATIONS + WHOLE
    assert one.points == 3 * (CALLS + OPERATIONS) + 4 * WHOLE
    assert one.padding_points == CALLS + OPERATIONS, (
        "each was alone in its batch, and three points are computed as four"
    )


def test_distributions_count_requests_and_executions(used: ServerProcess) -> None:
    one = statistics_of(used, GRADIENT)

    requests = CALLS + OPERATIONS + WHOLE
    assert sum(one.queue_seconds.counts) == sum(one.encode_seconds.counts) == requests
    # Each was alone in its batch; the one that warmed the server up was an execution and no request.
    assert sum(one.compute_seconds.counts) == sum(one.batch_points.counts) == requests + 1
    assert one.batch_points.sum == one.points + 4
    assert sum(one.compile_seconds.counts) == 0
    assert one.compute_seconds.sum > 0


def test_rejections_are_counted_by_reason(used: ServerProcess) -> None:
    found: Counter[tuple[int, str]] = Counter()
    for one in all_statistics(used):
        for rejection in one.rejections:
            found[one.operator, error_pb2.Reason.Name(rejection.reason).removeprefix("REASON_")] += rejection.requests

    assert found == {
        (EVALUATE, "FUNCTION_NOT_FOUND"): 1, (GRADIENT, "FUNCTION_NOT_FOUND"): 3, (GRADIENT, "WRONG_SHAPE"): 1,
        (GRADIENT, "DEADLINE_EXCEEDED"): 1,
    }  # fmt: skip


def test_the_statistics_of_a_function_that_there_is_not_are_not_found(used: ServerProcess) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        all_statistics(used, "nope")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_a_scrape_agrees_with_the_catalogue(used: ServerProcess) -> None:
    (line,) = [line for line in used.log if line["event"] == "metrics"]
    with urllib.request.urlopen(f"http://{line['address']}/metrics") as answer:
        families = list(text_string_to_metric_families(answer.read().decode()))
    samples: dict[Any, float] = {
        (
            sample.name,
            sample.labels["function"],
            sample.labels["operator"],
            sample.labels.get("le", sample.labels.get("reason", "")),
        ): sample.value
        for family in families
        for sample in family.samples
        if "operator" in sample.labels  # others are about no function
    }

    for one in all_statistics(used):
        key = one.function, function_pb2.Operator.Name(one.operator).removeprefix("OPERATOR_").lower()
        assert samples["nablad_requests_total", *key, ""] == one.requests
        assert samples["nablad_points_total", *key, ""] == one.points
        assert samples["nablad_padding_points_total", *key, ""] == one.padding_points
        for rejection in one.rejections:
            reason = error_pb2.Reason.Name(rejection.reason).removeprefix("REASON_")
            assert samples["nablad_rejections_total", *key, reason] == rejection.requests
        for name in (
            "batch_points",
            "queue_seconds",
            "compile_seconds",
            "compute_seconds",
            "encode_seconds",
            "request_seconds",
        ):
            histogram = getattr(one, name)
            assert samples[f"nablad_{name}_count", *key, ""] == sum(histogram.counts)
            assert samples[f"nablad_{name}_sum", *key, ""] == pytest.approx(histogram.sum, rel=1e-9)
            counted = np.cumsum(histogram.counts)
            for bound, count in zip([*map(str, histogram.bounds), "+Inf"], counted, strict=True):
                assert samples[f"nablad_{name}_bucket", *key, bound] == count
