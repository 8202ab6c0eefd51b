# jaxtyping writes shapes as strings, which are not forward references:
# ruff: noqa: F722, F821

import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import jax
import pytest
from jaxtyping import Array, Float

from nablad.errors import CompileQueueFull, DeadlineExceeded, Draining, NabladError, NotDifferentiable
from nablad.v1 import differentiation_pb2, function_pb2
from nablad_server.derivatives.cache import ProgramCache
from nablad_server.derivatives.query import Query
from nablad_server.functions.function import Function
from nablad_server.functions.registration import build
from puppets import SAFETY
from queries import MEMORY, query_of, spec

EVALUATE = function_pb2.OPERATOR_EVALUATE


class Probe:
    """A function that counts how often it is traced, and can be made to wait when it is."""

    def __init__(self) -> None:
        self.traces = 0
        self.open = threading.Event()
        self.entered = threading.Event()
        self.open.set()

        def probe(x: Float[Array, "n"]) -> Float[Array, "n"]:
            self.traces += 1
            self.entered.set()
            assert self.open.wait(SAFETY)
            return x * 2

        self.function: Function = build(probe, "test")
        self.traces = 0

    def query(self, size: int = 2) -> Query:
        query = query_of(self.function, EVALUATE, (spec((size,)),))
        assert query.output_specs == (spec((size,)),)  # traced here, not in the compile thread
        self.traces = 0
        return query

    def block(self) -> None:
        self.entered.clear()
        self.open.clear()


class Answers:
    """What a cache calls when it is done."""

    def __init__(self) -> None:
        self._errors: queue.SimpleQueue[NabladError | None] = queue.SimpleQueue()

    def __call__(self, error: NabladError | None, seconds: float) -> None:
        assert seconds >= 0
        self._errors.put(error)

    def next(self) -> NabladError | None:
        return self._errors.get(timeout=SAFETY)

    def none_left(self) -> bool:
        return self._errors.empty()


@pytest.fixture
def make() -> Iterator[Callable[..., ProgramCache]]:
    made: list[ProgramCache] = []

    def cache(capacity: int = 100, max_pending: int = 100) -> ProgramCache:
        made.append(ProgramCache(capacity, max_pending, MEMORY))
        return made[-1]

    yield cache
    for each in made:
        each.close()


@pytest.fixture
def probe() -> Iterator[Probe]:
    made = Probe()
    yield made
    made.open.set()


Make = Callable[..., ProgramCache]


def compiled(cache: ProgramCache, query: Query, bucket: int = 1) -> None:
    answers = Answers()
    cache.request(query, bucket, answers)
    assert answers.next() is None


def test_a_program_is_there_when_the_cache_says_so(make: Make, probe: Probe) -> None:
    cache, query = make(), probe.query()
    assert cache.buckets(query) == {}

    compiled(cache, query, 4)

    assert {bucket: program.bucket for bucket, program in cache.buckets(query).items()} == {4: 4}


def test_a_thousand_callers_of_one_query_cost_one_compilation(make: Make, probe: Probe) -> None:
    cache, query, answers = make(), probe.query(), Answers()
    probe.block()
    together = threading.Barrier(8)

    def ask(_: int) -> None:
        together.wait(SAFETY)
        for _ in range(125):
            cache.request(query, 1, answers)

    with ThreadPoolExecutor(8) as callers:
        list(callers.map(ask, range(8)))
    probe.open.set()

    assert [answers.next() for _ in range(1000)] == [None] * 1000
    compiled(cache, probe_of_another_kind(), 1)  # the compile thread has nothing left to say before this
    assert answers.none_left()
    assert probe.traces == 1


def probe_of_another_kind() -> Query:
    return Probe().query()


def test_a_query_is_traced_once_for_all_its_buckets(make: Make, probe: Probe) -> None:
    cache, query = make(), probe.query()

    for bucket in (1, 2, 4):
        compiled(cache, query, bucket)

    assert sorted(cache.buckets(query)) == [1, 2, 4]
    assert probe.traces == 1


def test_a_request_that_comes_just_too_late_gets_the_program_there_is(make: Make, probe: Probe) -> None:
    cache, query = make(capacity=2), probe.query()
    compiled(cache, query)
    program = cache.buckets(query)[1]

    for _ in range(5):
        compiled(cache, query)
    compiled(cache, probe.query(3))

    assert cache.buckets(query)[1] is program
    assert sorted(cache.buckets(probe.query(3))) == [1], "five requests for one program count as one"


def test_compilations_that_wait_are_bounded_and_joining_one_is_not_a_new_one(make: Make, probe: Probe) -> None:
    cache, answers = make(max_pending=2), Answers()
    first, second, third = probe.query(1), probe.query(2), probe.query(3)
    probe.block()
    cache.request(first, 1, answers)
    cache.request(second, 1, answers)

    with pytest.raises(CompileQueueFull, match="2 programs") as refused:
        cache.request(third, 1, answers)
    with pytest.raises(CompileQueueFull):
        cache.request(first, 2, answers)
    cache.request(second, 1, answers)
    assert refused.value.retry_after is not None
    assert refused.value.retry_after > 0

    probe.open.set()
    assert [answers.next() for _ in range(3)] == [None] * 3
    compiled(cache, third)


def test_the_query_unused_for_longest_goes_first(make: Make, probe: Probe) -> None:
    cache = make(capacity=2)
    old, used, new = probe.query(1), probe.query(2), probe.query(3)
    compiled(cache, used)
    compiled(cache, old)
    cache.buckets(used)

    compiled(cache, new)

    assert [sorted(cache.buckets(query)) for query in (old, used, new)] == [[], [1], [1]]


def test_every_bucket_counts_and_a_query_goes_whole(make: Make, probe: Probe) -> None:
    cache = make(capacity=3)
    first, second, third = probe.query(1), probe.query(2), probe.query(3)
    compiled(cache, first, 1)
    compiled(cache, first, 2)
    compiled(cache, second)
    assert sorted(cache.buckets(first)) == [1, 2]
    cache.buckets(second)

    compiled(cache, third)

    assert [sorted(cache.buckets(query)) for query in (first, second, third)] == [[], [1], [1]]


def test_the_newest_program_stays_even_above_the_capacity(make: Make, probe: Probe) -> None:
    cache, query = make(capacity=1), probe.query()

    for bucket in (1, 2):
        compiled(cache, query, bucket)

    assert sorted(cache.buckets(query)) == [1, 2]


def test_an_evicted_program_can_be_had_again(make: Make, probe: Probe) -> None:
    cache = make(capacity=1)
    first, second = probe.query(1), probe.query(2)
    compiled(cache, first)
    compiled(cache, second)
    assert cache.buckets(first) == {}

    compiled(cache, first)

    assert sorted(cache.buckets(first)) == [1]


def looped(x: Float[Array, ""]) -> Float[Array, ""]:
    looped_traces.append(x)
    return jax.lax.while_loop(lambda y: y < 100, lambda y: y * y, x)


looped_traces: list[Any] = []


def test_a_query_that_cannot_be_traced_is_remembered_as_such(make: Make, probe: Probe) -> None:
    query = query_of(looped, function_pb2.OPERATOR_GRADIENT, (spec(),), mode=differentiation_pb2.MODE_REVERSE)
    cache, answers = make(), Answers()

    cache.request(query, 1, answers)
    refused = answers.next()
    before = len(looped_traces)
    cache.request(query, 2, answers)

    assert isinstance(refused, NotDifferentiable)
    assert answers.next() is refused
    assert len(looped_traces) == before
    with pytest.raises(NotDifferentiable):
        cache.buckets(query)
    compiled(cache, probe.query())


def one_at_a_time(x: Float[Array, ""]) -> Any:
    return jax.pure_callback(lambda value: value, jax.ShapeDtypeStruct((), x.dtype), x)


def test_a_bucket_that_fails_says_which_is_the_largest_to_ask_for(make: Make) -> None:
    query = query_of(one_at_a_time, EVALUATE, (spec(),))
    cache, answers = make(), Answers()

    cache.request(query, 2, answers)
    assert answers.next() is None
    assert cache.largest(query) == 1
    compiled(cache, query, 1)

    assert sorted(cache.buckets(query)) == [1]


def test_closing_ends_the_compilation_under_way_and_refuses_the_others(make: Make, probe: Probe) -> None:
    cache, under_way, waits = make(), Answers(), Answers()
    first, second = probe.query(1), probe.query(2)
    probe.block()
    cache.request(first, 1, under_way)
    cache.request(second, 1, waits)
    assert probe.entered.wait(SAFETY)

    with ThreadPoolExecutor(1) as closer:
        closing = closer.submit(cache.close)
        while not drains(cache, first):
            pass
        probe.open.set()
        closing.result(SAFETY)

    assert under_way.next() is None
    assert isinstance(waits.next(), Draining)
    assert sorted(cache.buckets(first)) == [1]


def drains(cache: ProgramCache, under_way: Query) -> bool:
    try:
        cache.request(under_way, 1, Answers())
    except Draining:
        return True
    return False


def test_closing_twice_is_closing(make: Make, probe: Probe) -> None:
    cache = make()
    cache.close()
    cache.close()

    with pytest.raises(Draining):
        cache.request(probe.query(), 1, Answers())


def test_a_use_while_programs_are_being_dropped_does_not_end_the_thread_that_compiles(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    probe, answers = Probe(), Answers()
    cache = ProgramCache(32, 64, MEMORY)
    first, second, third = (probe.query(size) for size in (1, 2, 3))
    for query in (first, second):
        cache.request(query, 1, answers)
        assert answers.next() is None

    with ThreadPoolExecutor(1) as pool:

        def use_meanwhile(self: Query, other: object) -> bool:
            """Somebody uses a program just when this thread looks through all of them."""
            if threading.current_thread().name == "nablad-compile":
                wait([pool.submit(cache.touch, first)], 0.05)  # it may have to wait for this thread, and then does
            return not self == other  # noqa: SIM201 - this is what != means

        monkeypatch.setattr(Query, "__ne__", use_meanwhile)
        cache.request(third, 1, answers)
        assert answers.next() is None
        cache.request(third, 2, answers)
        assert answers.next() is None
    cache.close()


def test_whoever_waits_and_fails_does_not_end_the_thread_that_compiles() -> None:
    probe, answers = Probe(), Answers()
    cache = ProgramCache(32, 64, MEMORY)

    def fails(error: NabladError | None, seconds: float) -> None:
        raise ZeroDivisionError

    cache.request(probe.query(1), 1, fails)
    cache.request(probe.query(2), 1, answers)

    assert answers.next() is None
    cache.close()


def test_whoever_can_wait_gets_the_program_or_the_reason(make: Make, probe: Probe) -> None:
    cache, query = make(), probe.query()

    assert cache.wait(query, 4, SAFETY).bucket == 4
    assert cache.wait(query, 4, 0.0).bucket == 4
    assert cache.wait(query_of(one_at_a_time, EVALUATE, (spec(),)), 2, SAFETY).bucket == 1
    with pytest.raises(NotDifferentiable):
        cache.wait(query_of(looped, function_pb2.OPERATOR_GRADIENT, (spec(),)), 1, SAFETY)


def test_whoever_cannot_wait_longer_is_told_to_ask_again(make: Make, probe: Probe) -> None:
    cache, query = make(), probe.query()
    probe.block()

    with pytest.raises(DeadlineExceeded, match="still being compiled"):
        cache.wait(query, 1, 0.0)

    probe.open.set()
    assert cache.wait(query, 1, SAFETY).bucket == 1
