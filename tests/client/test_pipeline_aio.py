"""Pipelines of the asyncio client, against a server that misbehaves when told to."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest

from client.pipeline_server import LARGE, POISON, PipelineServer
from nablad import aio, errors
from nablad._packing import UNSENT_POINTS

SIZE = 5


@pytest.fixture
def puppet() -> Iterator[PipelineServer]:
    with PipelineServer() as server:
        yield server


def run(puppet: PipelineServer, scene: Callable[[aio.Client], Awaitable[None]], **options: Any) -> None:
    """Plays a scene with a client; whatever an event loop has to complain about fails the test."""
    complaints: list[Any] = []

    async def play() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        async with aio.Client(puppet.address, **options) as client:
            await asyncio.wait_for(scene(client), 60)

    asyncio.run(play())
    # grpc.aio may still hand on an event of the loop of an earlier test, which is closed: that is no complaint of ours.
    assert [one for one in complaints if "PollerCompletionQueue" not in one["message"]] == []


def points(count: int) -> Any:
    return np.random.default_rng(0).normal(size=(count, SIZE))


async def check(futures: list[asyncio.Future[Any]], xs: Any) -> None:
    results = await asyncio.gather(*futures)
    assert all(np.array_equal(result.gradient, 2 * x) for result, x in zip(results, xs, strict=True))


def test_leaving_the_block_waits_for_all_answers(puppet: PipelineServer) -> None:
    async def scene(client: aio.Client) -> None:
        xs = points(3000)
        async with client.pipeline() as pipeline:
            futures = [pipeline.gradient("bowl", x) for x in xs]
        assert all(future.done() for future in futures)
        await check(futures, xs)

    puppet.faults.backwards = puppet.faults.unknown_ids = True
    run(puppet, scene)
    assert puppet.seen.streams == puppet.seen.described == 1
    assert sorted(puppet.seen.operations) == [440] + [512] * 5


def test_arguments_may_change_after_the_call(puppet: PipelineServer) -> None:
    async def scene(client: aio.Client) -> None:
        x = np.zeros(SIZE)
        futures = []
        async with client.pipeline() as pipeline:
            for value in range(200):
                x[:] = value
                futures.append(pipeline.gradient("bowl", x))
                if value == 100:
                    await futures[0]
        assert [future.result().gradient[0] for future in futures] == [2.0 * value for value in range(200)]

    run(puppet, scene)


def test_only_the_point_that_fails_fails(puppet: PipelineServer) -> None:
    async def scene(client: aio.Client) -> None:
        xs = points(1200)
        xs[333, 0] = POISON
        xs[600:, 0] = LARGE
        async with client.pipeline() as pipeline:
            futures = [pipeline.gradient("bowl", x) for x in xs]
        assert isinstance(futures.pop(333).exception(), errors.FunctionFailed)
        await check(futures, np.delete(xs, 333, axis=0))

    run(puppet, scene)


def test_errors_are_the_futures(puppet: PipelineServer) -> None:
    async def scene(client: aio.Client) -> None:
        async with client.pipeline() as pipeline:
            unknown = [pipeline.gradient("nobody", [1.0]) for _ in range(3)]
            surplus, missing = pipeline.gradient("bowl", [1.0], [2.0]), pipeline.gradient("bowl")
            refused = pipeline.hessian("bowl", [1.0])
        assert {type(future.exception()) for future in unknown} == {errors.NotFound}
        assert isinstance(surplus.exception(), errors.UnknownInput)
        assert isinstance(missing.exception(), errors.MissingInput)
        assert isinstance(refused.exception(), errors.InvalidOption)

    run(puppet, scene)
    assert puppet.seen.described == 2


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED])
@pytest.mark.parametrize("after", [0, 1, 3])
def test_a_broken_stream_is_taken_up_again(puppet: PipelineServer, after: int, code: grpc.StatusCode) -> None:
    async def scene(client: aio.Client) -> None:
        xs = points(6000)
        async with client.pipeline() as pipeline:
            futures = [pipeline.gradient("bowl", x) for x in xs]
        await check(futures, xs)

    puppet.faults.breaks, puppet.faults.break_after, puppet.faults.break_code = 2, after, code
    run(puppet, scene)
    assert puppet.seen.streams == 3


def test_a_server_that_stays_away_is_reported_after_four_attempts(puppet: PipelineServer) -> None:
    async def scene(client: aio.Client) -> None:
        async with client.pipeline() as pipeline:
            futures = [pipeline.gradient("bowl", x) for x in points(10)]
            found = await asyncio.gather(*futures, return_exceptions=True)
            assert {type(error) for error in found} == {errors.Unavailable}
            assert puppet.seen.streams == 4
            await pipeline.gradient("bowl", np.ones(SIZE))

    puppet.faults.breaks = 4
    run(puppet, scene)


def test_retries_can_be_switched_off(puppet: PipelineServer) -> None:
    async def scene(client: aio.Client) -> None:
        async with client.pipeline() as pipeline:
            future = pipeline.gradient("bowl", np.ones(SIZE))
            with pytest.raises(errors.Unavailable):
                await future

    puppet.faults.breaks = 1
    run(puppet, scene, retries=False)
    assert puppet.seen.streams == 1


def test_other_ends_of_the_stream_are_reported(puppet: PipelineServer) -> None:
    async def scene(client: aio.Client) -> None:
        async with client.pipeline() as pipeline:
            with pytest.raises(errors.PermissionDenied, match="broken on purpose"):
                await pipeline.gradient("bowl", np.ones(SIZE))

    # Now and then grpc.aio does not learn this status but only that the stream broke, which is repeated.
    puppet.faults.breaks, puppet.faults.break_code = 9, grpc.StatusCode.PERMISSION_DENIED
    run(puppet, scene)
    assert puppet.seen.streams <= 4


def test_what_is_no_answer_is_a_defect_of_the_server(puppet: PipelineServer) -> None:
    async def scene(client: aio.Client) -> None:
        async with client.pipeline() as pipeline:
            with pytest.raises(errors.Internal):
                await pipeline.gradient("bowl", np.ones(SIZE))

    puppet.faults.garbled = True
    run(puppet, scene)


def test_what_a_draining_server_refuses_is_asked_for_over_a_new_stream(puppet: PipelineServer) -> None:
    async def scene(client: aio.Client) -> None:
        xs = points(2000)
        async with client.pipeline() as pipeline:
            futures = [pipeline.gradient("bowl", x) for x in xs]
        await check(futures, xs)

    puppet.faults.refuse, puppet.faults.refusals = errors.to_wire(errors.Draining("bye")), 1
    run(puppet, scene)
    assert puppet.seen.streams == 2


def test_no_answer_in_time(puppet: PipelineServer) -> None:
    async def scene(client: aio.Client) -> None:
        async with client.pipeline() as pipeline:
            patient = pipeline.gradient("bowl", np.ones(SIZE), timeout=1000)
            with pytest.raises(errors.DeadlineExceeded):
                await pipeline.gradient("bowl", np.ones(SIZE), timeout=0.05)
            assert patient.cancel()

    puppet.faults.silent = True
    run(puppet, scene)


def test_cancelling(puppet: PipelineServer) -> None:
    async def scene(client: aio.Client) -> None:
        async with client.pipeline() as pipeline:
            future = pipeline.gradient("bowl", np.ones(SIZE))
            await asyncio.to_thread(puppet.wait_until, lambda seen: len(seen.operations) == 1)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(future, 0.01)
            assert future.cancelled()
            await asyncio.to_thread(puppet.wait_until, lambda seen: len(seen.cancelled) == 1)

    puppet.faults.silent = True
    run(puppet, scene)


@pytest.mark.parametrize("warm", [True, False])
def test_leaving_the_block_by_an_exception_cancels_what_is_open(puppet: PipelineServer, warm: bool) -> None:
    async def scene(client: aio.Client) -> None:
        futures: list[asyncio.Future[Any]] = []
        pipeline = client.pipeline()

        async def leave() -> None:
            async with pipeline:
                futures.extend(pipeline.gradient("bowl", x) for x in points(100))
                raise ZeroDivisionError

        if warm:
            await client.describe("bowl")
        with pytest.raises(ZeroDivisionError):
            await leave()
        assert all(future.cancelled() for future in futures)
        with pytest.raises(RuntimeError, match="closed"):
            pipeline.gradient("bowl", np.ones(SIZE))

    puppet.faults.silent = True
    run(puppet, scene)


def test_closing_the_client_fails_what_is_open(puppet: PipelineServer) -> None:
    async def scene(client: aio.Client) -> None:
        pipeline = client.pipeline()
        future = pipeline.gradient("bowl", np.ones(SIZE))
        await asyncio.to_thread(puppet.wait_until, lambda seen: len(seen.operations) == 1)
        await client.close()
        with pytest.raises(errors.Cancelled):
            await future
        await pipeline.close()

    puppet.faults.silent = True
    run(puppet, scene)


def test_draining_waits_for_the_server_to_read(puppet: PipelineServer) -> None:
    async def scene(client: aio.Client) -> None:
        async with client.pipeline() as pipeline:
            await client.describe("bowl")
            futures = [pipeline.gradient("bowl", np.ones(SIZE * 100)) for _ in range(2 * UNSENT_POINTS)]
            waiting = asyncio.create_task(pipeline.drain())
            done, _ = await asyncio.wait([waiting], timeout=1.0)
            assert not done
            deaf.set()
            await waiting
        assert futures[-1].result().value == SIZE * 100

    deaf = puppet.faults.deaf = threading.Event()
    run(puppet, scene)
