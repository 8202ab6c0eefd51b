# jaxtyping writes shapes as strings, which are not forward references:
# ruff: noqa: F722, F821
"""Memory is judged before a program is compiled: no program is refused that would have fitted."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float

from nablad.errors import ResultTooLarge
from nablad.v1 import function_pb2
from nablad_server.derivatives.memory import UNCERTAINTY, live_bytes, memory_of
from nablad_server.derivatives.program import compile_program, trace
from queries import MEMORY, query_of, spec

SIDE = 96


def products(x: Float[Array, "n"]) -> Float[Array, ""]:
    outer = jnp.sin(jnp.outer(x, x))
    return jnp.sum(outer @ outer @ outer @ x)


def scanned(x: Float[Array, "n"]) -> Float[Array, ""]:
    step = lambda carried, _: (jnp.tanh(carried + x), carried)
    last, path = jax.lax.scan(step, x, None, length=50)
    return jnp.sum(path) + jnp.sum(last)


def chained(x: Float[Array, "n"]) -> Float[Array, ""]:
    table = x[:, None] - x[None, :]
    return jnp.sum(jnp.exp(-(table**2)))


def solved(x: Float[Array, "n"]) -> Float[Array, ""]:
    matrix = jnp.outer(x, x) + len(x) * jnp.eye(len(x))
    return jnp.sum(jnp.linalg.solve(matrix, x)) + jnp.sum(jnp.sort(x)) + jnp.sum(jnp.cumsum(x))


OPERATORS = [
    function_pb2.OPERATOR_EVALUATE,
    function_pb2.OPERATOR_GRADIENT,
    function_pb2.OPERATOR_HESSIAN,
    function_pb2.OPERATOR_LAPLACIAN,
]


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("call", [products, scanned, chained, solved])
def test_the_estimate_is_not_far_above_what_the_compiled_program_needs(call: Callable[..., Any], operator: Any) -> None:
    query = query_of(call, operator, (spec((SIDE,)),))
    traced = trace(query, {})

    needed = memory_of(compile_program(traced, 1, MEMORY).executable)

    assert live_bytes(traced.jaxpr) + query.argument_bytes <= UNCERTAINTY * needed


def test_the_estimate_finds_what_must_be_held() -> None:
    traced = trace(query_of(products, function_pb2.OPERATOR_EVALUATE, (spec((SIDE,)),)), {})

    assert live_bytes(traced.jaxpr) >= SIDE * SIDE * 8


def test_a_hopeless_program_is_refused_before_it_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    query = query_of(products, function_pb2.OPERATOR_GRADIENT, (spec((100_000,)),))
    traced = trace(query, {})
    monkeypatch.setattr(jax, "jit", None)  # whoever compiles now fails otherwise

    with pytest.raises(ResultTooLarge, match="about 240001600000 bytes") as refused:
        compile_program(traced, 1, 1 << 33)

    assert int(refused.value.metadata["bytes"]) > int(refused.value.metadata["limit"]) == 1 << 33


def test_what_is_merely_passed_on_needs_nothing_of_its_own() -> None:
    big = query_of(chained, function_pb2.OPERATOR_EVALUATE, (spec((20_000,)),))  # a table of 3.2 GB, never formed

    program = compile_program(trace(big, {}), 1, 1 << 30)

    assert np.isfinite(memory_of(program.executable))
    assert memory_of(program.executable) < 1 << 30
