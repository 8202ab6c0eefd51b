# jaxtyping writes shapes as strings, which are not forward references:
# ruff: noqa: F722, F821

import functools
import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import Array, Bool, Float, Int

from nablad.errors import CompileQueueFull, FunctionFailed, NabladError, ResultTooLarge
from nablad.v1 import function_pb2
from nablad_server.derivatives import runner
from nablad_server.derivatives.buckets import cheapest
from nablad_server.derivatives.cache import ProgramCache
from nablad_server.derivatives.query import Query
from nablad_server.derivatives.runner import DerivativeRunner, Points, Prepared, Results
from puppets import SAFETY
from queries import MEMORY, query_of, spec

EVALUATE, GRADIENT = function_pb2.OPERATOR_EVALUATE, function_pb2.OPERATOR_GRADIENT


class Bench:
    """A runner and its cache."""

    def __init__(
        self, max_bucket: int = 1024, max_batch_bytes: int = 1 << 26, max_pending: int = 64, memory: int = MEMORY
    ) -> None:
        self.cache = ProgramCache(1000, max_pending, memory)
        self.runner = DerivativeRunner(self.cache, max_bucket, max_batch_bytes)

    def warm(self, query: Query, *buckets: int) -> None:
        for bucket in buckets:
            self.wait_for(functools.partial(self.cache.request, query, bucket))

    def wait_for(self, request: Callable[[Any], object]) -> None:
        ready, errors = threading.Event(), list[NabladError | None]()

        def done(error: NabladError | None, seconds: float) -> None:
            errors.append(error)
            ready.set()

        request(done)
        assert ready.wait(SAFETY)
        if errors[0] is not None:
            raise errors[0]

    def prepare_now(self, query: Query, points: int) -> Prepared:
        """What runs a batch with the programs there are."""

        def never(error: NabladError | None, seconds: float) -> None:
            raise AssertionError("a batch that can run waits for no compilation")

        prepared = self.runner.prepare(query, points, never)
        assert isinstance(prepared, Prepared), "no program is warm"
        return prepared

    def attempt(self, query: Query, points: int) -> Prepared | None:
        """What runs a batch, or None once the compilation that it waited for has ended."""
        found: list[Prepared | None] = []

        def prepare(done: Any) -> None:
            found.append(self.runner.prepare(query, points, done))
            if found[0] is not None:
                done(None, 0.0)

        self.wait_for(prepare)
        return found[0]

    def run(self, query: Query, *members: Points) -> list[Results]:
        """Runs a batch, compiling first if need be."""
        total = sum(member.count for member in members)
        return (self.attempt(query, total) or self.prepare_now(query, total))(members)


@pytest.fixture
def bench() -> Iterator[Callable[..., Bench]]:
    made: list[Bench] = []

    def make(**limits: int) -> Bench:
        made.append(Bench(**limits))
        return made[-1]

    yield make
    for each in made:
        each.cache.close()


Make = Callable[..., Bench]


def points(*arrays: Any, count: int | None = None) -> Points:
    held = [np.ascontiguousarray(array) for array in arrays]
    return Points(held[0].shape[0] if count is None else count, tuple(array.tobytes() for array in held))


def split(arrays: Sequence[Any], sizes: Sequence[int]) -> list[Points]:
    """Members of so many points each."""
    ends = np.cumsum([0, *sizes])
    return [points(*(array[a:b] for array in arrays)) for a, b in itertools.pairwise(ends)]


def whole(result: Results) -> list[list[Any]]:
    """The groups of a result, the pieces of each array put together."""
    return [[np.concatenate(pieces) for pieces in group] for group in result.groups]


def entropy(x: Float[Array, "n"], w: Float[Array, ""]) -> Float[Array, ""]:
    """Not a number at zero."""
    return w * jnp.sum(x * jnp.log(x)) + jnp.sum(1 / (x + w))


ENTROPY = query_of(entropy, GRADIENT, (spec((3,)), spec()))
SIZES = st.lists(st.integers(1, 7), min_size=1, max_size=6)


def entropy_data(count: int, seed: int = 0) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    return rng.uniform(0.1, 5.0, (count, 3)), rng.uniform(0.1, 5.0, count)


@pytest.fixture(scope="module")
def warm() -> Iterator[Bench]:
    made = Bench()
    made.warm(ENTROPY, 1, 2, 4, 8, 16, 32, 64)
    yield made
    made.cache.close()


@given(SIZES, st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_batched_equals_alone(warm: Bench, sizes: list[int], seed: int) -> None:
    x, w = entropy_data(sum(sizes), seed)
    alone = [warm.prepare_now(ENTROPY, 1)([member])[0] for member in split((x, w), [1] * sum(sizes))]

    together = warm.prepare_now(ENTROPY, sum(sizes))(split((x, w), sizes))

    assert [[len(whole(result)[0][0]), len(whole(result)[1][1])] for result in together] == [[n, n] for n in sizes]
    for group, position in [(0, 0), (1, 0), (1, 1)]:
        batched = np.concatenate([whole(result)[group][position] for result in together])
        single = np.concatenate([whole(result)[group][position] for result in alone])
        for one, other in zip(batched, single, strict=True):
            np.testing.assert_allclose(one, other, rtol=0, atol=64 * np.finfo(float).eps * np.max(np.abs(other)))


def test_a_gradient_is_the_closed_form(warm: Bench) -> None:
    x, w = entropy_data(5)

    (result,) = warm.prepare_now(ENTROPY, 5)([points(x, w)])

    ((value,), (by_x, by_w), (norms,)) = whole(result)
    np.testing.assert_allclose(norms[:, 0] ** 2, (by_x**2).sum(1) + by_w**2, rtol=1e-14)
    np.testing.assert_allclose(norms[:, 1:], np.stack([np.linalg.norm(by_x, axis=1), np.abs(by_w)], 1), rtol=1e-14)
    column = w[:, None]
    np.testing.assert_allclose(value, w * (x * np.log(x)).sum(1) + (1 / (x + column)).sum(1), rtol=1e-13)
    np.testing.assert_allclose(by_x, column * (1 + np.log(x)) - 1 / (x + column) ** 2, rtol=1e-12)
    np.testing.assert_allclose(by_w, (x * np.log(x)).sum(1) - (1 / (x + column) ** 2).sum(1), rtol=1e-12)


seen: list[Any] = []


def watched(x: Float[Array, "n"]) -> Any:
    """Keeps every row it is given, and raises on zeros."""

    def look(rows: Any) -> Any:
        rows = np.asarray(rows)
        seen.append(rows.reshape(-1, rows.shape[-1]))
        if np.any(rows == 0):
            raise ValueError("zeros are not among the points")
        return 2 * rows

    return jax.pure_callback(look, jax.ShapeDtypeStruct(x.shape, x.dtype), x, vmap_method="broadcast_all")


@pytest.mark.parametrize("count", [1, 3, 5, 7])
def test_padding_repeats_a_real_point(bench: Make, count: int) -> None:
    query = query_of(watched, EVALUATE, (spec((2,)),))
    data = np.arange(1.0, 1 + 2 * count).reshape(count, 2)
    b = bench()
    b.run(query, points(data))
    seen.clear()

    (result,) = b.run(query, points(data))

    np.testing.assert_array_equal(whole(result)[0][0], 2 * data)
    assert {tuple(row) for rows in seen for row in rows} == {tuple(row) for row in data}


def test_a_row_that_is_not_a_number_touches_no_other(warm: Bench) -> None:
    x, w = entropy_data(3)
    x[1] = np.nan

    results = warm.prepare_now(ENTROPY, 3)(split((x, w), [1, 1, 1]))

    finite = [all(np.isfinite(array).all() for group in whole(result) for array in group) for result in results]
    assert finite == [True, False, True]


def test_a_smaller_warm_bucket_serves_in_pieces_while_the_right_one_is_compiled(bench: Make) -> None:
    b = bench()
    b.warm(ENTROPY, 2)
    x, w = entropy_data(11)
    fresh = Bench()
    expected = fresh.run(ENTROPY, points(x, w))[0]
    fresh.cache.close()

    (first, second) = b.prepare_now(ENTROPY, 11)(split((x, w), [4, 7]))

    for group in (0, 1):
        for index, array in enumerate(whole(expected)[group]):
            pieces = np.concatenate([whole(first)[group][index], whole(second)[group][index]])
            np.testing.assert_allclose(pieces, array, rtol=1e-13)
    b.warm(ENTROPY, 1)  # compiled after what was asked for before it
    assert sorted(b.cache.buckets(ENTROPY)) == [1, 2, 16]


def test_pieces_that_cost_more_than_a_compilation_wait_for_the_right_bucket(
    bench: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    b = bench()
    b.warm(ENTROPY, 1)
    monkeypatch.setattr(runner, "COMPILE_SECONDS", 0.0)

    b.wait_for(lambda done: _is_none(b.runner.prepare(ENTROPY, 9, done)))

    assert sorted(b.cache.buckets(ENTROPY)) == [1, 16]


def _is_none(prepared: Prepared | None) -> None:
    assert prepared is None


def test_a_larger_warm_bucket_serves_at_once(bench: Make) -> None:
    b = bench()
    b.warm(ENTROPY, 8, 64)
    x, w = entropy_data(3)

    (result,) = b.prepare_now(ENTROPY, 3)([points(x, w)])

    np.testing.assert_allclose(whole(result)[0][0], w * (x * np.log(x)).sum(1) + (1 / (x + w[:, None])).sum(1))
    b.warm(ENTROPY, 1)
    assert sorted(b.cache.buckets(ENTROPY)) == [1, 4, 8, 64]


def test_of_the_warm_buckets_those_serve_that_cost_least(bench: Make) -> None:
    b = bench()
    b.warm(ENTROPY, 1, 8, 64)
    programs = b.cache.buckets(ENTROPY)

    for count in (1, 3, 8, 9, 64, 100):
        prepared = b.prepare_now(ENTROPY, count)

        costs = {bucket: programs[bucket].seconds for bucket in (1, 8, 64)}
        _, seconds = cheapest(count, costs)
        assert prepared.seconds == seconds
        assert count <= prepared.computed < count + 64


def test_what_was_prepared_is_for_so_many_points_and_no_others(warm: Bench) -> None:
    x, w = entropy_data(5)
    prepared = warm.prepare_now(ENTROPY, 4)

    with pytest.raises(ValueError, match="prepared for 4 points, called with 5"):
        prepared([points(x, w)])
    assert (prepared.points, prepared.calls_back) == (4, False)
    assert prepared.computed >= 4
    assert 1 <= prepared.first <= 4
    assert prepared.seconds > 0


def test_what_was_prepared_is_kept_until_better_programs_are_there(bench: Make) -> None:
    b = bench()
    b.warm(ENTROPY, 1, 4)
    kept = b.prepare_now(ENTROPY, 4)

    assert b.prepare_now(ENTROPY, 4) is kept
    b.warm(ENTROPY, 2)
    assert b.prepare_now(ENTROPY, 4) is not kept


def test_a_function_that_calls_back_says_so(bench: Make) -> None:
    b = bench()
    query = query_of(watched, EVALUATE, (spec((2,)),))
    b.warm(query, 2)

    assert b.prepare_now(query, 2).calls_back


@pytest.mark.parametrize(
    ("limits", "bucket"),
    [
        ({"max_bucket": 4}, 4),
        ({"max_bucket": 7}, 4),
        ({"max_batch_bytes": 96 * 5}, 4),  # 32 bytes of arguments and 64 of results for one point
        ({"max_batch_bytes": 1}, 1),
    ],
)
def test_a_batch_above_the_limits_of_one_execution_runs_in_pieces(
    bench: Make, limits: dict[str, int], bucket: int
) -> None:
    b = bench(**limits)
    x, w = entropy_data(6)

    (result,) = b.run(ENTROPY, points(x, w))

    np.testing.assert_allclose(whole(result)[0][0], w * (x * np.log(x)).sum(1) + (1 / (x + w[:, None])).sum(1))
    assert sorted(b.cache.buckets(ENTROPY)) == [bucket]


def test_a_bucket_that_is_only_an_improvement_may_be_refused(bench: Make) -> None:
    b = bench(max_pending=1)
    b.warm(ENTROPY, 8)
    entered, go = threading.Event(), threading.Event()

    def slow(x: Float[Array, ""]) -> Float[Array, ""]:
        entered.set()
        assert go.wait(SAFETY)
        return x

    go.set()
    blocking = query_of(slow, EVALUATE, (spec(),))
    assert blocking.output_specs == (spec(),)
    entered.clear()
    go.clear()
    try:
        assert b.runner.prepare(blocking, 1, lambda *_: None) is None
        assert entered.wait(SAFETY)
        x, w = entropy_data(2)

        (result,) = b.prepare_now(ENTROPY, 2)([points(x, w)])

        assert np.isfinite(whole(result)[0][0]).all()
        with pytest.raises(CompileQueueFull):
            b.runner.prepare(query_of(entropy, EVALUATE, (spec((3,)), spec())), 1, lambda *_: None)
    finally:
        go.set()


def test_a_function_that_raises_while_it_runs_fails_by_name(bench: Make) -> None:
    b = bench()
    query = query_of(watched, EVALUATE, (spec((2,)),))

    with pytest.raises(FunctionFailed, match=r"watched@1.*zeros are not among the points") as failed:
        b.run(query, points(np.zeros((1, 2))))
    assert failed.value.metadata["function"] == "watched@1"


def one_at_a_time(x: Float[Array, ""]) -> Any:
    return jax.pure_callback(lambda value: value, jax.ShapeDtypeStruct((), x.dtype), x)


def test_a_function_that_takes_no_batch_is_run_one_point_at_a_time(bench: Make) -> None:
    made = bench()
    query = query_of(one_at_a_time, EVALUATE, (spec(),))
    assert made.attempt(query, 3) is None
    assert made.attempt(query, 3) is None
    (result,) = made.run(query, points(np.array([1.0, 2.0, 3.0])))
    assert whole(result)[0][0].tolist() == [1.0, 2.0, 3.0]
    assert list(made.cache.buckets(query)) == [1]


def bilinear(x: Float[Array, "n"], A: Float[Array, "n n"]) -> Float[Array, ""]:
    return x @ A @ x


@pytest.mark.parametrize("count", [1, 3, 8])
def test_a_shared_array_is_sent_once(bench: Make, count: int) -> None:
    query = query_of(bilinear, GRADIENT, (spec((3,)), spec((3, 3))), shared=(False, True))
    rng = np.random.default_rng(3)
    x, A = rng.normal(size=(count, 3)), rng.normal(size=(3, 3))

    (result,) = bench(max_bucket=2).run(query, points(x, A, count=count))

    (value,), (by_x, by_A), _ = whole(result)
    np.testing.assert_allclose(value, np.einsum("pi,ij,pj->p", x, A, x), rtol=1e-12)
    np.testing.assert_allclose(by_x, x @ (A + A.T), rtol=1e-12)
    np.testing.assert_allclose(by_A, np.einsum("pi,pj->pij", x, x), rtol=1e-12)


@pytest.mark.parametrize("sizes", [[1], [2, 1], [3, 3, 3]])
def test_arrays_without_elements_keep_their_points(bench: Make, sizes: list[int]) -> None:
    query = query_of(bilinear, GRADIENT, (spec((0,)), spec((0, 0))))
    members = [points(np.zeros((n, 0)), np.zeros((n, 0, 0))) for n in sizes]

    results = bench(max_bucket=4).run(query, *members)

    for n, result in zip(sizes, results, strict=True):
        (value,), (by_x, by_A), _ = whole(result)
        assert (value.tolist(), by_x.shape, by_A.shape) == ([0.0] * n, (n, 0), (n, 0, 0))


def echo(x: Float[Array, "n"], k: Int[Array, "2"], flag: Bool[Array, ""]) -> Any:
    return (x, k, flag)


@pytest.mark.parametrize("floats", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("integers", [np.int8, np.uint16, np.int32])
def test_bytes_of_every_dtype_arrive_as_they_were(bench: Make, floats: Any, integers: Any) -> None:
    query = query_of(echo, EVALUATE, (spec((3,), floats), spec((2,), integers), spec((), np.bool_)), outputs=(0, 1, 2))
    x = np.linspace(-2, 2, 9).reshape(3, 3).astype(floats)
    k, flag = np.array([[1, 2], [3, 4], [5, 6]], integers), np.array([True, False, True])

    (result,) = bench().run(query, points(x, k, flag))

    for found, sent in zip(whole(result)[0], (x, k, flag), strict=True):
        assert found.dtype == sent.dtype
        np.testing.assert_array_equal(found, sent)


def demanding(x: Float[Array, "n"]) -> Float[Array, ""]:
    """Needs n × n numbers on its way."""
    return jnp.sum(jnp.cumsum(jnp.outer(x, x), axis=0) @ x)


def until_it_runs(made: Bench, query: Query, count: int) -> Prepared:
    """Each attempt that gives nothing has found that a bucket is too large."""
    while (prepared := made.attempt(query, count)) is None:
        continue
    return prepared


def test_points_that_need_too_much_memory_together_run_one_after_the_other(bench: Make) -> None:
    side = 64
    made = bench(memory=6 * side * side * 8)
    query = query_of(demanding, EVALUATE, (spec((side,)),))
    x = np.random.default_rng(0).normal(size=(8, side))

    (result,) = made.run(query, points(x))

    want = [np.sum(np.cumsum(np.outer(row, row), axis=0) @ row) for row in x]
    np.testing.assert_allclose(whole(result)[0][0], want, rtol=1e-12)
    assert {bucket: program.strategy for bucket, program in made.cache.buckets(query).items()} == {8: "loop"}


def doubled(x: Float[Array, "n"]) -> Float[Array, "n"]:
    return 2 * x


def test_points_whose_arrays_alone_need_too_much_memory_run_in_smaller_batches(bench: Make) -> None:
    side = 1000
    made = bench(memory=5 * 2 * side * 8)
    query = query_of(doubled, EVALUATE, (spec((side,)),))
    prepared = until_it_runs(made, query, 8)
    x = np.random.default_rng(0).normal(size=(8, side))

    (result,) = prepared([points(x)])

    np.testing.assert_array_equal(whole(result)[0][0], 2 * x)
    assert list(made.cache.buckets(query)) == [4]
    assert len(result.groups[0][0]) == 2


def test_one_point_that_needs_too_much_memory_is_refused(bench: Make) -> None:
    made = bench(memory=1000)
    query = query_of(demanding, EVALUATE, (spec((64,)),))
    with pytest.raises(ResultTooLarge, match="bytes of memory for 1 points"):
        until_it_runs(made, query, 4)
