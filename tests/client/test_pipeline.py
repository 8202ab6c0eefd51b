"""Pipelines of the synchronous client, against a server that misbehaves when told to."""

import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, as_completed, wait
from typing import Any

import grpc
import numpy as np
import pytest

import nablad
from client.pipeline_server import LARGE, POISON, PipelineServer
from nablad import errors
from nablad._packing import UNSENT_POINTS

SIZE = 5
SECONDS = 60.0


@pytest.fixture
def puppet() -> Iterator[PipelineServer]:
    with PipelineServer() as server:
        yield server


@pytest.fixture
def client_of(puppet: PipelineServer) -> Iterator[nablad.Client]:
    with nablad.Client(puppet.address) as client:
        yield client


def points(count: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).normal(size=(count, SIZE))


def check(futures: list[Future[nablad.Gradient]], xs: Any) -> None:
    for future, x in zip(futures, xs, strict=True):
        result = future.result(SECONDS)
        assert np.array_equal(result.gradient, 2 * x)
        assert result.value.shape == ()
        assert result.execution.function == "bowl@1"
        assert not result.non_finite


def test_leaving_the_block_waits_for_all_answers(puppet: PipelineServer, client_of: nablad.Client) -> None:
    xs = points(3000)
    with client_of.pipeline() as pipeline:
        futures = [pipeline.gradient("bowl", x) for x in xs]
    assert all(future.done() for future in futures)
    check(futures, xs)
    assert puppet.seen.streams == puppet.seen.described == 1
    assert len(puppet.seen.operations) < len(xs) / 10
    assert max(puppet.seen.messages) < 1.2 * 2**20


def test_answers_in_any_order_and_answers_to_nothing(puppet: PipelineServer, client_of: nablad.Client) -> None:
    puppet.faults.backwards = puppet.faults.unknown_ids = True
    xs = points(2000)
    with client_of.pipeline() as pipeline:
        futures = [pipeline.gradient("bowl", x) for x in xs]
    check(futures, xs)


def test_arguments_may_change_after_the_call(client_of: nablad.Client) -> None:
    x = np.ones(SIZE)
    with client_of.pipeline() as pipeline:
        futures = []
        for value in range(100):
            x[:] = value
            futures.append(pipeline.gradient("bowl", x))
    assert [future.result().gradient[0] for future in futures] == [2.0 * value for value in range(100)]


def test_futures_are_those_of_the_standard_library(client_of: nablad.Client) -> None:
    called: list[Future[Any]] = []
    with client_of.pipeline() as pipeline:
        futures = [pipeline.gradient("bowl", x) for x in points(50)]
        futures[7].add_done_callback(called.append)
        assert set(as_completed(futures, SECONDS)) == set(futures)
        assert wait(futures, SECONDS).not_done == set()
    assert called == [futures[7]]


def test_a_callback_may_make_the_next_call(client_of: nablad.Client) -> None:
    done = threading.Event()
    last: list[float] = []
    with client_of.pipeline() as pipeline:

        def follow(future: Future[nablad.Gradient]) -> None:
            if len(last) == 20:
                done.set()
                return
            last.append(float(future.result().gradient[0]))
            pipeline.gradient("bowl", future.result().gradient / 2 + 1).add_done_callback(follow)

        pipeline.gradient("bowl", np.zeros(SIZE)).add_done_callback(follow)
        assert done.wait(SECONDS)
    assert last == [2.0 * step for step in range(20)]


def test_many_threads_share_one(client_of: nablad.Client) -> None:
    with client_of.pipeline() as pipeline, ThreadPoolExecutor(4) as pool:

        def one(seed: int) -> None:
            xs = points(700, seed)
            check([pipeline.gradient("bowl", x) for x in xs], xs)

        list(pool.map(one, range(8)))


def test_calls_that_cannot_be_packed_go_by_themselves(puppet: PipelineServer, client_of: nablad.Client) -> None:
    xs = points(4)
    with client_of.pipeline() as pipeline:
        batched = pipeline.gradient("bowl", xs, batched=True)
        masked = pipeline.gradient("bowl", np.ma.masked_array(xs[0]))
        listed = pipeline.gradient("bowl", xs[0].tolist())
        several = pipeline.gradient("tilted", xs[0], 2.0, wrt=["x", "w"])
    assert np.array_equal(batched.result().gradient, 2 * xs)
    assert np.array_equal(masked.result().gradient, 2 * xs[0])
    assert np.array_equal(listed.result().gradient, 2 * xs[0])
    assert np.array_equal(several.result().gradient["x"], 4 * xs[0])
    assert sorted(puppet.seen.operations) == [0, 0, 0, 4]


def test_only_the_point_that_fails_fails(client_of: nablad.Client) -> None:
    xs = points(600)
    xs[333, 0] = POISON
    with client_of.pipeline() as pipeline:
        futures = [pipeline.gradient("bowl", x) for x in xs]
    assert isinstance(futures.pop(333).exception(), errors.FunctionFailed)
    check(futures, np.delete(xs, 333, axis=0))


def test_results_too_large_together_are_asked_for_in_smaller_packs(client_of: nablad.Client) -> None:
    xs = points(600)
    xs[:, 0] = LARGE
    with client_of.pipeline() as pipeline:
        futures = [pipeline.gradient("bowl", x) for x in xs]
    check(futures, xs)


def test_flags_are_those_of_the_point(client_of: nablad.Client) -> None:
    xs = points(100)
    xs[17, 2] = np.nan
    with client_of.pipeline() as pipeline:
        futures = [pipeline.gradient("bowl", x) for x in xs]
    assert [index for index, future in enumerate(futures) if future.result().non_finite] == [17]


@pytest.mark.parametrize(
    ("call", "kind"),
    [
        (("gradient", "nobody", [1.0]), errors.NotFound),
        (("gradient", "bowl", [1.0], [2.0]), errors.UnknownInput),
        (("gradient", "bowl"), errors.MissingInput),
        (("hessian", "bowl", [1.0]), errors.InvalidOption),
    ],
)
def test_errors_are_the_futures(client_of: nablad.Client, call: tuple[Any, ...], kind: type[Exception]) -> None:
    name, *arguments = call
    with client_of.pipeline() as pipeline:
        future = getattr(pipeline, name)(*arguments)
    assert type(future.exception()) is kind


def test_after_a_refusal_the_description_is_asked_for_anew(puppet: PipelineServer, client_of: nablad.Client) -> None:
    with client_of.pipeline() as pipeline:
        for _ in range(2):
            assert isinstance(pipeline.hessian("bowl", [1.0]).exception(SECONDS), errors.InvalidOption)
    assert puppet.seen.described == 2


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED])
@pytest.mark.parametrize("after", [0, 1, 3])
def test_a_broken_stream_is_taken_up_again(
    puppet: PipelineServer, client_of: nablad.Client, after: int, code: grpc.StatusCode
) -> None:
    puppet.faults.breaks, puppet.faults.break_after, puppet.faults.break_code = 2, after, code
    xs = points(6000)
    with client_of.pipeline() as pipeline:
        futures = [pipeline.gradient("bowl", x) for x in xs]
    check(futures, xs)
    assert puppet.seen.streams == 3


def test_a_server_that_stays_away_is_reported_after_four_attempts(
    puppet: PipelineServer, client_of: nablad.Client
) -> None:
    puppet.faults.breaks = 4
    with client_of.pipeline() as pipeline:
        futures = [pipeline.gradient("bowl", x) for x in points(10)]
        assert all(isinstance(future.exception(SECONDS), errors.Unavailable) for future in futures)
        assert puppet.seen.streams == 4
        check([pipeline.gradient("bowl", np.ones(SIZE))], [np.ones(SIZE)])


def test_retries_can_be_switched_off(puppet: PipelineServer) -> None:
    puppet.faults.breaks = 1  # before any answer: after one, everything may have been in the message that it answers
    with nablad.Client(puppet.address, retries=False) as client, client.pipeline() as pipeline:
        futures = [pipeline.gradient("bowl", x) for x in points(3000)]
    assert any(isinstance(future.exception(), errors.Unavailable) for future in futures)
    assert puppet.seen.streams <= 2


def test_other_ends_of_the_stream_are_not_repeated(puppet: PipelineServer, client_of: nablad.Client) -> None:
    puppet.faults.breaks, puppet.faults.break_code = 1, grpc.StatusCode.PERMISSION_DENIED
    with client_of.pipeline() as pipeline:
        future = pipeline.gradient("bowl", np.ones(SIZE))
        assert isinstance(future.exception(SECONDS), errors.PermissionDenied)
    assert puppet.seen.streams == 1


def test_what_is_no_answer_is_a_defect_of_the_server(puppet: PipelineServer, client_of: nablad.Client) -> None:
    puppet.faults.garbled = True
    with client_of.pipeline() as pipeline:
        assert isinstance(pipeline.gradient("bowl", np.ones(SIZE)).exception(SECONDS), errors.Internal)


def test_what_a_draining_server_refuses_is_asked_for_over_a_new_stream(
    puppet: PipelineServer, client_of: nablad.Client
) -> None:
    puppet.faults.refuse, puppet.faults.refusals = errors.to_wire(errors.Draining("bye")), 1
    xs = points(2000)
    with client_of.pipeline() as pipeline:
        futures = [pipeline.gradient("bowl", x) for x in xs]
    check(futures, xs)
    assert puppet.seen.streams == 2


def test_no_answer_in_time(puppet: PipelineServer, client_of: nablad.Client) -> None:
    puppet.faults.silent = True
    with client_of.pipeline() as pipeline:
        future = pipeline.gradient("bowl", np.ones(SIZE), timeout=0.05)
        patient = pipeline.gradient("bowl", np.ones(SIZE), timeout=1000)
        assert isinstance(future.exception(SECONDS), errors.DeadlineExceeded)
        assert not patient.done()
        assert patient.cancel()
    assert 0 < min(puppet.seen.timeouts) <= 50_000_000


def test_a_client_without_a_timeout_sets_none(puppet: PipelineServer) -> None:
    with nablad.Client(puppet.address, timeout=None) as client, client.pipeline() as pipeline:
        pipeline.gradient("bowl", np.ones(SIZE)).result(SECONDS)
    assert puppet.seen.timeouts == [0]


def test_cancelling(puppet: PipelineServer, client_of: nablad.Client) -> None:
    puppet.faults.silent = True
    with client_of.pipeline() as pipeline:
        future = pipeline.gradient("bowl", np.ones(SIZE))
        puppet.wait_until(lambda seen: len(seen.operations) == 1)
        assert future.cancel()
        assert future.cancel()
        assert wait([future], SECONDS).not_done == set()
        with pytest.raises(CancelledError):
            future.result()
        puppet.wait_until(lambda seen: len(seen.cancelled) == 1)


def test_a_result_that_is_there_cannot_be_cancelled(client_of: nablad.Client) -> None:
    with client_of.pipeline() as pipeline:
        future = pipeline.gradient("bowl", np.ones(SIZE))
        future.result(SECONDS)
        assert not future.cancel()


def test_leaving_the_block_by_an_exception_cancels_what_is_open(
    puppet: PipelineServer, client_of: nablad.Client
) -> None:
    puppet.faults.silent = True
    futures: list[Future[nablad.Gradient]] = []

    def leave() -> None:
        with client_of.pipeline() as pipeline:
            futures.extend(pipeline.gradient("bowl", x) for x in points(100))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        leave()
    assert all(future.cancelled() for future in futures)


def test_no_calls_after_the_end(client_of: nablad.Client) -> None:
    with client_of.pipeline() as pipeline:
        pass
    with pytest.raises(RuntimeError, match="closed"):
        pipeline.gradient("bowl", np.ones(SIZE))
    pipeline.close()


def test_closing_the_client_fails_what_is_open(puppet: PipelineServer) -> None:
    puppet.faults.silent = True
    with nablad.Client(puppet.address) as client:
        pipeline = client.pipeline()
        future = pipeline.gradient("bowl", np.ones(SIZE))
        puppet.wait_until(lambda seen: len(seen.operations) == 1)
    assert isinstance(future.exception(SECONDS), errors.Cancelled)
    pipeline.close()


def test_who_submits_faster_than_the_server_reads_has_to_wait(puppet: PipelineServer, client_of: nablad.Client) -> None:
    puppet.faults.deaf = threading.Event()
    x = np.ones(SIZE * 100)
    submitted: list[Future[nablad.Gradient]] = []
    with client_of.pipeline() as pipeline:

        def flood() -> None:
            for _ in range(2 * UNSENT_POINTS):
                submitted.append(pipeline.gradient("bowl", x))

        thread = threading.Thread(target=flood)
        thread.start()
        thread.join(2.0)  # to its end, if it did not have to wait
        assert thread.is_alive()
        assert len(submitted) < UNSENT_POINTS
        puppet.faults.deaf.set()
        thread.join()
        pipeline.drain()
    assert len(submitted) == 2 * UNSENT_POINTS
    assert submitted[-1].result().value == SIZE * 100
