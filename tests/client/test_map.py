"""Results for many points in order, from both clients."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator
from typing import Any

import numpy as np
import pytest

import nablad
from client.pipeline_server import LARGE, POISON, PipelineServer
from nablad import errors
from nablad._map import cut

SIZE = 5


@pytest.fixture
def puppet() -> Iterator[PipelineServer]:
    with PipelineServer() as server:
        yield server


async def _slowly(items: Any) -> AsyncIterator[Any]:
    for item in items:
        await asyncio.sleep(0)
        yield item


def results(puppet: PipelineServer, way: str, function: str, *iterables: Any, **options: Any) -> list[Any]:
    """The results of a map, by either client."""
    if way == "sync":
        with nablad.Client(puppet.address) as client:
            return list(client.map("gradient", function, *iterables, **options))

    async def collect() -> list[Any]:
        given = [_slowly(iterable) for iterable in iterables] if way == "async source" else iterables
        async with nablad.aio.Client(puppet.address) as client:
            return [result async for result in client.map("gradient", function, *given, **options)]

    return asyncio.run(collect())


WAYS = pytest.mark.parametrize("way", ["sync", "aio", "async source"])


def points(count: int) -> Any:
    return np.random.default_rng(0).normal(size=(count, SIZE))


@WAYS
@pytest.mark.parametrize(
    "given", [np.asarray, list, iter, lambda xs: xs.tolist(), lambda xs: [np.asfortranarray(x) for x in xs]]
)
def test_results_come_in_order(puppet: PipelineServer, way: str, given: Any) -> None:
    puppet.faults.backwards = True
    xs = points(3000)
    found = results(puppet, way, "bowl", given(xs))
    assert np.array_equal([result.gradient for result in found], 2 * xs)
    assert np.allclose([result.value for result in found], (xs * xs).sum(axis=1), rtol=1e-14)


@WAYS
def test_several_iterables_are_zipped(puppet: PipelineServer, way: str) -> None:
    xs, ws = points(1000), np.arange(900.0)
    found = results(puppet, way, "tilted", xs, ws, wrt=["x"])
    assert len(found) == 900
    assert np.array_equal([result.gradient["x"] for result in found], 2 * ws[:, None] * xs[:900])


@WAYS
def test_named_arguments_are_shared(puppet: PipelineServer, way: str) -> None:
    xs = points(1000)
    found = results(puppet, way, "tilted", xs, w=3.0, wrt="x")
    assert np.array_equal([result.gradient for result in found], 6 * xs)


@WAYS
def test_points_of_many_kinds(puppet: PipelineServer, way: str) -> None:
    xs = [np.full(1 + index % 3, float(index)) for index in range(300)]
    xs[100] = [1, 2, 3]  # type: ignore[call-overload]  # a list among arrays
    xs[200] = np.ma.masked_array(np.ones(2))
    found = results(puppet, way, "bowl", xs)
    assert all(np.array_equal(result.gradient, 2 * np.asarray(x)) for result, x in zip(found, xs, strict=True))


@WAYS
def test_results_too_large_together_come_one_by_one(puppet: PipelineServer, way: str) -> None:
    xs = points(1200)
    xs[700:, 0] = LARGE
    assert np.array_equal([result.gradient for result in results(puppet, way, "bowl", xs)], 2 * xs)


@WAYS
@pytest.mark.parametrize("given", [np.asarray, list])
def test_the_item_that_failed_raises(puppet: PipelineServer, way: str, given: Any) -> None:
    xs = points(1500)
    xs[777, 0] = POISON
    seen: list[Any] = []

    async def take() -> None:
        async with nablad.aio.Client(puppet.address) as client:
            async for result in client.map("gradient", "bowl", _slowly(xs) if way == "async source" else given(xs)):
                seen.append(result)

    with nablad.Client(puppet.address) as client, pytest.raises(errors.FunctionFailed):
        asyncio.run(take()) if way != "sync" else seen.extend(client.map("gradient", "bowl", given(xs)))
    assert len(seen) == 777


@WAYS
def test_nothing_gives_nothing(puppet: PipelineServer, way: str) -> None:
    assert results(puppet, way, "bowl", []) == []
    assert results(puppet, way, "bowl", np.zeros((0, SIZE))) == []


def test_endless_iterables_are_read_ahead_and_no_further(puppet: PipelineServer) -> None:
    read = itertools.count()
    with nablad.Client(puppet.address) as client:
        results = client.map("gradient", "bowl", (np.full(SIZE, float(next(read))) for _ in itertools.count()))
        for index, result in zip(range(2000), results, strict=False):
            assert result.gradient[0] == 2 * index
        results.close()  # type: ignore[attr-defined]  # it is a generator
    assert next(read) < 30_000


def test_closing_early_cancels_the_rest(puppet: PipelineServer) -> None:
    async def first() -> float:
        async with nablad.aio.Client(puppet.address) as client:
            results = client.map("gradient", "bowl", _slowly(np.ones((100_000, SIZE))))
            async for result in results:
                await results.aclose()  # type: ignore[attr-defined]  # it is a generator
                return float(result.value)
        return 0.0

    assert asyncio.run(first()) == SIZE
    assert sum(puppet.seen.operations) < 50_000


def test_a_handle_maps(puppet: PipelineServer) -> None:
    with nablad.Client(puppet.address) as client:
        assert [float(r.value) for r in client.function("bowl").map("gradient", [[1.0], [2.0]])] == [1.0, 4.0]

    async def values() -> list[float]:
        async with nablad.aio.Client(puppet.address) as client:
            return [float(r.value) async for r in client.function("bowl").map("gradient", [[1.0], [2.0]])]

    assert asyncio.run(values()) == [1.0, 4.0]


def test_no_answer_in_time(puppet: PipelineServer) -> None:
    puppet.faults.silent = True
    with nablad.Client(puppet.address) as client, pytest.raises(errors.DeadlineExceeded):
        next(client.map("gradient", "bowl", np.ones((10, SIZE)), timeout=0.05))


def test_what_is_no_operator_is_refused(puppet: PipelineServer) -> None:
    with nablad.Client(puppet.address) as client, pytest.raises(errors.InvalidOption, match="expected one of evaluate"):
        next(client.map("gradiant", "bowl", [[1.0]]))


def test_a_slow_iterable_is_not_waited_for() -> None:
    clock = itertools.count().__next__
    pieces = list(cut((iter([np.ones(2)] * 5),), lambda: float(clock())))
    assert [piece.points for piece in pieces] == [1] * 5


def test_large_points_make_small_pieces() -> None:
    pieces = list(cut((np.ones((10, 1 << 16)),), lambda: 0.0))
    assert [piece.points for piece in pieces] == [2] * 5
