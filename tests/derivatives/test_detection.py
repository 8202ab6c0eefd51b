# ruff: noqa: F722, F821 - jaxtyping's shapes are strings, not forward references
"""Patterns against closed forms, above all where values, rules of derivatives, or missing rules could lead astray."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float

from nablad.errors import FunctionFailed, ResultTooLarge
from nablad.v1 import differentiation_pb2, function_pb2
from nablad_server import function
from nablad_server.derivatives.detection import MAX_DENSE, find
from nablad_server.derivatives.pattern import DECLARED, DENSE, DETECTED, Pattern
from nablad_server.functions.registration import build
from queries import query_of, spec

HESSIAN, JACOBIAN = function_pb2.OPERATOR_HESSIAN, function_pb2.OPERATOR_JACOBIAN
AUTO, FORWARD, REVERSE = (
    differentiation_pb2.MODE_AUTO, differentiation_pb2.MODE_FORWARD, differentiation_pb2.MODE_REVERSE,
)  # fmt: skip


def pattern(
    call: Callable[..., Any], operator: function_pb2.Operator.ValueType, *sizes: int, **options: Any
) -> Pattern:
    query = query_of(call, operator, [spec((size,)) for size in sizes], **options)
    return find(replace(query, sparse=True, columns=()))


def kept(found: Pattern) -> list[list[int]]:
    dense = np.zeros(found.shape, int)
    dense[found.row_indices, found.column_indices] = 1
    return dense.tolist()


def test_the_hessian_of_a_chain_is_tridiagonal_in_three_colors() -> None:
    def chain(x: Float[Array, "n"]) -> Float[Array, ""]:
        return jnp.sum((x[1:] - x[:-1] ** 2) ** 2)

    found = pattern(chain, HESSIAN, 6)
    assert kept(found) == (np.abs(np.subtract.outer(range(6), range(6))) <= 1).astype(int).tolist()
    assert (found.source, found.reason, found.coloring.count) == (DETECTED, "", 3)
    assert [(axis.name, axis.shape) for axis in found.rows] == [("x", (6,))]


def test_a_linear_function_has_an_empty_hessian() -> None:
    def total(x: Float[Array, "n"]) -> Float[Array, ""]:
        return jnp.sum(3.0 * x)

    found = pattern(total, HESSIAN, 4)
    assert (found.nonzeros, found.coloring.count) == (0, 0)
    assert found.row_starts.tolist() == [0] * 5


@pytest.mark.parametrize(
    ("choose", "elements"),
    [
        (lambda x: jnp.where(x[0] > 0, x[1], x[2]), [[0, 1, 1]]),
        (lambda x: jax.lax.cond(x[0] > 0, lambda: x[1] ** 2, lambda: x[2]), [[0, 1, 1]]),
        (jnp.max, [[1, 1, 1]]),
        (lambda x: jnp.abs(x[2]), [[0, 0, 1]]),
        (lambda x: jnp.sort(x)[0], [[1, 1, 1]]),
        (lambda x: jax.lax.dynamic_index_in_dim(x, jnp.argmax(x), keepdims=False), [[1, 1, 1]]),
        (lambda x: jax.lax.fori_loop(0, 3, lambda _, y: y + x[0] * y, x[1]), [[1, 1, 0]]),
        (lambda x: jnp.floor(x[0]) + x[1], [[0, 1, 0]]),
    ],
)
def test_what_can_matter_for_some_values_is_kept(choose: Callable[[Any], Any], elements: list[list[int]]) -> None:
    def chosen(x: Float[Array, "3"]) -> Float[Array, ""]:
        return choose(x)

    assert kept(pattern(chosen, JACOBIAN, 3)) == elements


def test_a_rule_for_derivatives_counts_not_the_operations_that_it_replaces() -> None:
    @jax.custom_jvp
    def rounded(x: Any) -> Any:
        return jnp.round(x)

    @rounded.defjvp
    def _(primals: Any, tangents: Any) -> Any:  # straight through, and on to the neighbour
        return jnp.round(primals[0]), tangents[0] + jnp.roll(tangents[0], 1)

    def straight(x: Float[Array, "4"]) -> Float[Array, "4"]:
        return rounded(x)

    ring = np.eye(4, dtype=int) + np.roll(np.eye(4, dtype=int), 1, axis=0)
    assert kept(pattern(straight, JACOBIAN, 4)) == ring.tolist()


def test_a_rule_that_there_is_for_reverse_mode_alone_is_looked_at_in_reverse() -> None:
    @jax.custom_vjp
    def doubled(x: Any) -> Any:
        return 2 * x

    doubled.defvjp(lambda x: (2 * x, None), lambda _, cotangent: (2 * cotangent,))

    def twice(x: Float[Array, "3"]) -> Float[Array, "3"]:
        return doubled(x)

    found = pattern(twice, JACOBIAN, 3)
    assert (kept(found), found.coloring.by_rows, found.source) == (np.eye(3, dtype=int).tolist(), True, DETECTED)
    assert pattern(twice, JACOBIAN, 3, mode=FORWARD).source == DENSE


def test_a_loop_of_unknown_length_is_looked_at_forward() -> None:
    def grown(x: Float[Array, "3"]) -> Float[Array, "3"]:
        return jax.lax.while_loop(lambda y: jnp.sum(y) < 10, lambda y: 2 * y, x)

    found = pattern(grown, JACOBIAN, 3)
    assert (kept(found), found.coloring.by_rows) == (np.eye(3, dtype=int).tolist(), False)
    found = pattern(grown, JACOBIAN, 3, mode=REVERSE)
    assert (found.source, found.coloring.by_rows) == (DENSE, True)
    assert "reverse" in found.reason.lower()


def test_a_hessian_that_there_is_in_forward_mode_alone() -> None:
    def grown(x: Float[Array, "3"]) -> Float[Array, ""]:
        longer = jax.lax.while_loop(lambda y: jnp.sum(y) < 10, lambda y: 2 * y, x)
        return longer[0] * longer[1] + longer[2] ** 2

    found = pattern(grown, HESSIAN, 3, mode=FORWARD)
    assert found.source == DETECTED
    assert np.all(np.array(kept(found)) >= [[0, 1, 0], [1, 0, 0], [0, 0, 1]])
    assert pattern(grown, HESSIAN, 3).source == DENSE


def test_what_cannot_be_found_out_is_dense_and_says_why() -> None:
    def spectrum(x: Float[Array, "n"]) -> Float[Array, "n"]:
        return jnp.abs(jnp.fft.fft(x)) ** 2

    found = pattern(spectrum, JACOBIAN, 4)
    assert (found.source, found.nonzeros, kept(found)) == (DENSE, 16, [[1] * 4] * 4)
    assert "fft" in found.reason
    assert "Please" not in found.reason


def test_a_large_dense_pattern_is_refused_with_advice() -> None:
    def spectrum(x: Float[Array, "n"]) -> Float[Array, "n"]:
        return jnp.abs(jnp.fft.fft(x)) ** 2

    size = int(MAX_DENSE**0.5) + 1
    with pytest.raises(ResultTooLarge, match="Declare the pattern"):
        pattern(spectrum, JACOBIAN, size)


def test_the_way_with_fewer_colors_is_taken() -> None:
    def wide(x: Float[Array, "n"]) -> Float[Array, "m"]:  # a full row, and one element in each other row
        return jnp.concatenate([jnp.sum(x, keepdims=True) ** 2, x[1:] ** 2])

    def tall(x: Float[Array, "n"]) -> Float[Array, "n"]:  # a full column
        return x[0] * x

    assert pattern(wide, JACOBIAN, 8).coloring.by_rows
    assert not pattern(tall, JACOBIAN, 8).coloring.by_rows
    assert not pattern(wide, JACOBIAN, 8, mode=FORWARD).coloring.by_rows
    assert pattern(tall, JACOBIAN, 8, mode=REVERSE).coloring.by_rows


def test_several_inputs_are_one_axis_after_the_other_in_the_order_asked_for() -> None:
    def product(x: Float[Array, "2"], y: Float[Array, "3"]) -> Float[Array, ""]:
        return x[0] * y[2] + x[1] ** 2

    found = pattern(product, HESSIAN, 2, 3, wrt=(1, 0))
    assert [axis.name for axis in found.columns] == ["y", "x"]
    assert kept(found) == [
        [0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0],
        [0, 0, 0, 1, 0],
        [0, 0, 1, 0, 0],
        [0, 0, 0, 0, 1],
    ]


def shifted(sizes: Mapping[str, int]) -> tuple[Any, Any]:
    """Rows i, columns n - 1 - i, twice over."""
    rows = np.tile(np.arange(sizes["n"]), 2)
    return rows, sizes["n"] - 1 - rows


@function(sparsity={"jacobian": shifted, "hessian": lambda sizes: ([0], [sizes["n"] - 1])})
def mirrored(x: Float[Array, "n"]) -> dict[str, Any]:
    """A function whose pattern detection cannot find."""
    return {"s": x[0] * x[-1], "y": jnp.fft.ifft(jnp.fft.fft(x[::-1])).real}


def test_a_declared_pattern_is_taken_and_a_hessian_s_is_made_symmetric() -> None:
    found = pattern(mirrored, HESSIAN, 4, outputs=(0,))
    assert (found.source, found.coloring.count) == (DECLARED, 2)
    assert kept(found) == [[0, 0, 0, 1], [0] * 4, [0] * 4, [1, 0, 0, 0]]


@function(sparsity={"jacobian": lambda _: ([0, 0, 1, 2, 3], [0, 2, 1, 2, 3])})
def pair(x: Float[Array, "2"], y: Float[Array, "2"]) -> dict[str, Any]:
    return {"u": x * y[0], "v": y**2}


def test_a_declared_pattern_is_cut_down_to_what_is_asked_for() -> None:
    found = pattern(pair, JACOBIAN, 2, 2, wrt=(1,), outputs=(1, 0))
    assert kept(found) == [[1, 0], [0, 1], [1, 0], [0, 0]]
    assert [axis.name for axis in found.rows] == ["v", "u"]


def test_a_declared_pattern_is_colored_for_a_mode_that_the_function_has() -> None:
    @jax.custom_vjp
    def doubled(x: Any) -> Any:
        return 2 * x

    doubled.defvjp(lambda x: (2 * x, None), lambda _, cotangent: (2 * cotangent,))

    @function(sparsity={"jacobian": lambda sizes: (np.arange(sizes["n"]), np.arange(sizes["n"]))})
    def twice(x: Float[Array, "n"]) -> Float[Array, "n"]:
        return doubled(x)

    found = pattern(twice, JACOBIAN, 3)
    assert (found.coloring.by_rows, found.coloring.count) == (True, 1)


@pytest.mark.parametrize(
    ("declared", "complaint"),
    [
        (lambda _: ([0, 1], [0]), "as many rows as columns"),
        (lambda _: ([0], [3]), "from 0 to 2"),
        (lambda _: ([-1], [0]), "from 0 to 2"),
        (lambda _: ([0.5], [0]), "whole numbers"),
        (lambda sizes: ([sizes["m"]], [0]), "KeyError"),
    ],
)
def test_a_declared_pattern_that_does_not_fit_is_the_function_s_failure(
    declared: Callable[[Mapping[str, int]], Any], complaint: str
) -> None:
    @function(sparsity={"hessian": declared})
    def bowl(x: Float[Array, "n"]) -> Float[Array, ""]:
        return jnp.sum(x**2)

    with pytest.raises(FunctionFailed, match=complaint):
        pattern(bowl, HESSIAN, 3)


def test_only_patterns_of_matrices_can_be_declared() -> None:
    @function(sparsity={"gradient": lambda _: ([], [])})
    def bowl(x: Float[Array, "n"]) -> Float[Array, ""]:
        return jnp.sum(x**2)

    with pytest.raises(ValueError, match="'jacobian', 'hessian'"):
        build(bowl, "test")
