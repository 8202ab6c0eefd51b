# ruff: noqa: F722, F821 - jaxtyping's shapes are strings, not forward references
"""Searches for patterns: one for all who wait, given up where they take too much, told to everybody when it is over."""

import queue
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import pytest
from jaxtyping import Array, Float

from held import Held
from nablad.errors import CompileQueueFull, DeadlineExceeded, Draining, FunctionFailed, ResultTooLarge
from nablad.v1 import function_pb2
from nablad_server import function
from nablad_server.derivatives.pattern import DENSE, DETECTED, Pattern
from nablad_server.derivatives.patterns import MAX_WAITING, Patterns
from nablad_server.derivatives.query import Query
from nablad_server.functions.registration import build
from puppets import SAFETY
from queries import query_of, spec

MEMORY = 1 << 40


def sparse_query(call: Any, size: int, **options: Any) -> Query:
    query = query_of(call, function_pb2.OPERATOR_HESSIAN, (spec((size,)),), **options)
    return replace(query, sparse=True, columns=())


def known(patterns: Patterns, query: Query) -> Pattern:
    found = patterns.find(query)
    if found is None:
        raise LookupError(f"{query} has no pattern yet")
    return found


@pytest.fixture
def held() -> Iterator[Held]:
    made = Held()
    yield made
    made.let_go.set()


@pytest.fixture
def patterns() -> Iterator[Patterns]:
    made = Patterns(MEMORY)
    yield made
    assert made.close(SAFETY)


def bowl(x: Float[Array, "n"]) -> Float[Array, ""]:
    return jnp.sum(x**2)


BOWL = build(bowl, "test")


def test_all_who_ask_while_a_search_is_under_way_wait_for_it(held: Held, patterns: Patterns) -> None:
    told: queue.SimpleQueue[str] = queue.SimpleQueue()
    patterns.request(sparse_query(held.function, 5), lambda: told.put("first"))
    held.entered.get(timeout=SAFETY)
    patterns.request(sparse_query(held.function, 5), lambda: told.put("second"))
    assert patterns.find(sparse_query(held.function, 5)) is None
    held.let_go.set()

    assert [told.get(timeout=SAFETY), told.get(timeout=SAFETY)] == ["first", "second"]
    found = known(patterns, sparse_query(held.function, 5))
    assert (found.source, found.nonzeros) == (DETECTED, 12)
    assert found.seconds > 0
    assert held.entered.empty()
    assert patterns.find(sparse_query(held.function, 5, shared=(True,))) is found  # who shares what changes no pattern


def test_patterns_are_told_apart_by_what_they_are_of(patterns: Patterns) -> None:
    patterns.settle(sparse_query(BOWL, 3), SAFETY)
    assert patterns.find(sparse_query(BOWL, 4)) is None
    assert patterns.find(sparse_query(build(bowl, "test"), 3)) is None


def test_whoever_cannot_wait_any_longer_is_told_so(held: Held, patterns: Patterns) -> None:
    with pytest.raises(DeadlineExceeded, match="ask again"):
        patterns.settle(sparse_query(held.function, 5), 0.0)
    held.let_go.set()
    patterns.settle(sparse_query(held.function, 5), SAFETY)
    assert known(patterns, sparse_query(held.function, 5)).nonzeros == 12


def test_what_fails_once_is_not_tried_again(patterns: Patterns) -> None:
    calls: list[int] = []

    def declared(sizes: Any) -> Any:
        calls.append(sizes["n"])
        return [7], [7]

    @function(sparsity={"hessian": declared})
    def wrong(x: Float[Array, "n"]) -> Float[Array, ""]:
        return jnp.sum(x)

    query = sparse_query(wrong, 3)
    for _ in range(2):
        patterns.settle(query, SAFETY)
        with pytest.raises(FunctionFailed, match="from 0 to 2"):
            patterns.find(query)
    assert calls == [3]


def test_a_search_that_takes_too_long_is_given_up_and_the_pattern_is_dense(held: Held) -> None:
    patterns = Patterns(MEMORY, search_seconds=0.0)
    patterns.settle(sparse_query(held.function, 5), SAFETY)
    found = known(patterns, sparse_query(held.function, 5))
    assert (found.source, found.nonzeros) == (DENSE, 25)
    assert "given up after 0 seconds" in found.reason
    assert patterns.close(SAFETY)


def test_a_search_that_takes_too_much_memory_is_given_up(held: Held) -> None:
    held.memory = 256 << 20
    patterns = Patterns(64 << 20)
    patterns.settle(sparse_query(held.function, 5), SAFETY)
    found = known(patterns, sparse_query(held.function, 5))
    assert f"taken {64 << 20} bytes" in found.reason
    assert patterns.close(SAFETY)


def test_when_the_server_shuts_down_the_search_is_given_up_and_all_are_told(held: Held) -> None:
    patterns = Patterns(MEMORY)
    told: queue.SimpleQueue[str] = queue.SimpleQueue()
    patterns.request(sparse_query(held.function, 5), lambda: told.put("under way"))
    patterns.request(sparse_query(BOWL, 3), lambda: told.put("waiting"))
    held.entered.get(timeout=SAFETY)
    assert patterns.close(SAFETY)
    assert {told.get(timeout=SAFETY), told.get(timeout=SAFETY)} == {"under way", "waiting"}
    assert patterns.find(sparse_query(held.function, 5)) is None
    with pytest.raises(Draining):
        patterns.request(sparse_query(held.function, 5), lambda: None)
    with pytest.raises(Draining):
        patterns.settle(sparse_query(BOWL, 3), SAFETY)


def test_only_so_many_may_wait(held: Held, patterns: Patterns) -> None:
    for _ in range(MAX_WAITING * 3 // 4):
        patterns.request(sparse_query(held.function, 5), lambda: None, "one")
    with pytest.raises(CompileQueueFull, match="768 of them of this caller") as refused:
        patterns.request(sparse_query(held.function, 5), lambda: None, "one")
    assert refused.value.retry_after == 1.0
    for index in range(MAX_WAITING // 4):
        patterns.request(sparse_query(held.function, 5), lambda: None, f"other {index}")
    with pytest.raises(CompileQueueFull, match="0 of them of this caller"):
        patterns.request(sparse_query(held.function, 5), lambda: None, "late")
    held.let_go.set()


def test_a_newcomer_waits_for_one_search_of_anothers_many(held: Held, patterns: Patterns) -> None:
    told: queue.SimpleQueue[str] = queue.SimpleQueue()
    patterns.request(sparse_query(held.function, 5), lambda: told.put("under way"), "many")
    for size in range(3, 8):
        patterns.request(sparse_query(BOWL, size), lambda: told.put("many"), "many")

    patterns.request(sparse_query(BOWL, 9), lambda: told.put("newcomer"), "newcomer")
    held.let_go.set()

    assert "newcomer" in [told.get(timeout=SAFETY) for _ in range(3)]


def test_patterns_unused_for_longest_go_first() -> None:
    patterns = Patterns(MEMORY, capacity=2)
    for size in (2, 3):
        patterns.settle(sparse_query(BOWL, size), SAFETY)
    kept = patterns.find(sparse_query(BOWL, 2))
    patterns.settle(sparse_query(BOWL, 4), SAFETY)
    assert patterns.find(sparse_query(BOWL, 2)) is kept
    assert patterns.find(sparse_query(BOWL, 3)) is None
    assert patterns.close(SAFETY)


def test_a_pattern_that_would_save_a_diagonal_no_products_is_none(patterns: Patterns) -> None:
    def full(x: Float[Array, "n"]) -> Float[Array, ""]:
        return jnp.sum(x) ** 2

    query = query_of(full, function_pb2.OPERATOR_HESSIAN, (spec((80,)),), diagonal=True)
    patterns.settle(query, SAFETY)
    with pytest.raises(ResultTooLarge, match="save nothing"):
        patterns.find(query)
    matrix = replace(query, diagonal=False, sparse=True)
    patterns.settle(matrix, SAFETY)
    found = known(patterns, matrix)
    assert found.nonzeros == 6400


def test_the_trace_and_the_diagonal_have_the_pattern_of_the_hessian(patterns: Patterns) -> None:
    matrix = sparse_query(BOWL, 80)
    patterns.settle(matrix, SAFETY)
    found = patterns.find(matrix)
    assert patterns.find(replace(matrix, sparse=False, diagonal=True)) is found
    assert patterns.find(replace(matrix, sparse=False, operator=function_pb2.OPERATOR_LAPLACIAN)) is found
