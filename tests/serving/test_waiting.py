"""Waiting in a thread for what the batcher computes."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest

from end_to_end.user_functions import fragile
from nablad.errors import DeadlineExceeded, Draining, FunctionFailed, Loading
from nablad.v1 import function_pb2
from nablad_server.batching.batcher import Batcher
from nablad_server.batching.policy import Policy
from nablad_server.derivatives.cache import ProgramCache
from nablad_server.derivatives.linear_runner import LinearRunner
from nablad_server.derivatives.patterns import Patterns
from nablad_server.derivatives.query import Query
from nablad_server.derivatives.runner import DerivativeRunner, Points
from nablad_server.functions.registry import Registry
from nablad_server.functions.sources.builtin.optimisation import rosenbrock
from nablad_server.serving.decode import Decoder
from nablad_server.serving.gate import Gate
from nablad_server.serving.statistics import Statistics
from nablad_server.serving.waiting import computed, outcome_of
from nablad_server.serving.work import Desk
from queries import MEMORY, query_of, spec

MAX_BUCKET = 4


class Parts(NamedTuple):
    """A desk, and what a test needs to know of what is behind it."""

    desk: Desk
    gate: Gate


@pytest.fixture
def parts() -> Iterator[Parts]:
    cache, patterns, statistics, gate = ProgramCache(100, 10, MEMORY), Patterns(MEMORY), Statistics(), Gate()
    runner = LinearRunner(DerivativeRunner(cache, MAX_BUCKET, 1 << 30), cache)
    batcher = Batcher(runner, Policy(), statistics)
    decoder = Decoder(Registry([]), patterns, 1000, 1 << 30)
    yield Parts(Desk(decoder, patterns, batcher, gate, statistics), gate)
    assert gate.close(60.0)  # whatever was let in has left
    cache.close()
    batcher.close()
    patterns.close()


def jacobian(points: Any) -> tuple[Query, Points]:
    query = query_of(rosenbrock, function_pb2.OPERATOR_JACOBIAN, [spec((2,))])
    return query, Points(len(points), (np.ascontiguousarray(points).tobytes(),))


def expected(points: Any) -> list[Any]:
    x, y = points.T
    return [100 * (y - x**2) ** 2 + (1 - x) ** 2, np.stack([-400 * x * (y - x**2) - 2 * (1 - x), 200 * (y - x**2)], 1)]


@pytest.mark.parametrize("count", [1, 3, 4, 11])
def test_groups_have_all_points_in_order(parts: Parts, count: int) -> None:
    """Eleven points do not fit into one execution: they come in pieces."""
    parts.gate.open()
    points = np.random.default_rng(count).normal(size=(count, 2))

    (values,), (slopes,) = computed(parts.desk, "Test", *jacobian(points), 60.0)

    np.testing.assert_allclose(values, expected(points)[0], rtol=1e-12)
    np.testing.assert_allclose(slopes, expected(points)[1], rtol=1e-12)


def test_how_it_came_about(parts: Parts) -> None:
    parts.gate.open()
    outcome = outcome_of(parts.desk, "Test", *jacobian(np.zeros((2, 2))), 60.0)
    assert outcome.batch_points == 2
    assert outcome.compile_seconds > 0


@pytest.mark.parametrize("seconds", [0.0, 0.01])
def test_what_is_not_compiled_in_time_is_given_up(parts: Parts, seconds: float) -> None:
    parts.gate.open()
    with pytest.raises(DeadlineExceeded):
        computed(parts.desk, "Test", *jacobian(np.zeros((1, 2))), seconds)


def test_an_error_of_the_work_is_raised(parts: Parts) -> None:
    parts.gate.open()
    query = query_of(fragile, function_pb2.OPERATOR_EVALUATE, [spec()])
    with pytest.raises(FunctionFailed, match="a negative number"):
        computed(parts.desk, "Test", query, Points(1, (np.array(-1.0).tobytes(),)), 60.0)


def test_what_is_not_let_in_is_told_so(parts: Parts) -> None:
    with pytest.raises(Loading):
        computed(parts.desk, "Test", *jacobian(np.zeros((1, 2))), 60.0)
    parts.gate.open()
    parts.gate.close(0.0)
    with pytest.raises(Draining):
        computed(parts.desk, "Test", *jacobian(np.zeros((1, 2))), 60.0)
