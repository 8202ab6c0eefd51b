# jaxtyping writes shapes as strings, which are not forward references:
# ruff: noqa: F722, F821
"""Blocks of rows, at every place of the matrix, beside matrices worked out by hand."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float, Int
from numpy.typing import ArrayLike

from nablad.errors import NotDifferentiable
from nablad.v1 import differentiation_pb2 as pb
from nablad.v1 import function_pb2
from nablad_server.derivatives.memory import memory_of
from nablad_server.derivatives.operators import result_bytes, result_specs
from nablad_server.derivatives.program import compile_program, trace
from nablad_server.derivatives.query import Query
from queries import MEMORY, answer, query_of, spec, specs

AUTO, FORWARD, REVERSE = pb.MODE_AUTO, pb.MODE_FORWARD, pb.MODE_REVERSE
MODES = (AUTO, FORWARD, REVERSE)
HESSIAN, JACOBIAN = function_pb2.OPERATOR_HESSIAN, function_pb2.OPERATOR_JACOBIAN


# k b Σ a² + b³, of a matrix a, a number b and a whole number k.
def energy(a: Float[Array, "m n"], b: Float[Array, ""], k: Int[Array, ""]) -> Any:
    return jnp.sum(a**2) * b * k + b**3


A, B, K = np.array([[1.0, -2.0, 0.5], [3.0, 0.25, -1.0]]), 1.5, 3
AA, AB, BB = 2 * K * B * np.eye(6), 2 * K * A.reshape(6, 1), np.array([[6 * B]])
POINT: tuple[ArrayLike, ...] = (A, B, K)


# Two outputs of two inputs: p = x y, q = (Σx, y²).
def curves(x: Float[Array, "n"], y: Float[Array, ""]) -> Any:
    return {"p": x * y, "q": jnp.stack([jnp.sum(x), y**2])}


X, Y = np.array([1.0, 2.0, -3.0]), 0.5
PX, PY = Y * np.eye(3), X.reshape(3, 1)
QX, QY = np.array([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]]), np.array([[0.0], [2 * Y]])
XY: tuple[ArrayLike, ...] = (X, Y)


class Case(NamedTuple):
    """A matrix, and what it must be at a point."""

    call: Callable[..., Any]
    operator: function_pb2.Operator.ValueType
    options: dict[str, Any]
    point: tuple[ArrayLike, ...]
    matrix: Any

    def query(self, rows: int, mode: pb.Mode.ValueType) -> Query:
        return query_of(
            self.call, self.operator, specs(self.point), block_rows=rows, mode=mode, **self.options
        )  # fmt: skip


CASES = {
    "hessian": Case(energy, HESSIAN, {}, POINT, np.block([[AA, AB], [AB.T, BB]])),
    "hessian in another order": Case(energy, HESSIAN, {"wrt": (1, 0)}, POINT, np.block([[BB, AB.T], [AB, AA]])),
    "hessian, off-diagonal": Case(energy, HESSIAN, {"wrt": (0,), "columns": (1,)}, POINT, AB),
    "hessian, overlapping": Case(energy, HESSIAN, {"wrt": (1,), "columns": (0, 1)}, POINT, np.block([[AB.T, BB]])),
    "hessian of scalars": Case(energy, HESSIAN, {"wrt": (1,)}, POINT, BB),
    "jacobian": Case(curves, JACOBIAN, {"outputs": (0, 1)}, XY, np.block([[PX, PY], [QX, QY]])),
    "jacobian in another order": Case(
        curves, JACOBIAN, {"outputs": (1, 0), "wrt": (1, 0)}, XY, np.block([[QY, QX], [PY, PX]])),
    "jacobian, tall": Case(curves, JACOBIAN, {"outputs": (0, 1), "wrt": (1,)}, XY, np.block([[PY], [QY]])),
    "jacobian, wide": Case(curves, JACOBIAN, {"outputs": (1,), "wrt": (0,)}, XY, QX),
}  # fmt: skip


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", CASES.values(), ids=[name.replace(" ", "_") for name in CASES])
def test_every_block_of_every_size_is_that_part_of_the_matrix(case: Case, mode: pb.Mode.ValueType) -> None:
    count = len(case.matrix)
    for rows in {1, min(2, count), count - 1, count} - {0}:
        query = case.query(rows, mode)
        program = compile_program(trace(query, {}), 1, MEMORY)
        point = [np.asarray(array, given.dtype)[None] for array, given in zip(case.point, query.inputs, strict=True)]
        assert query.matrix_shape == case.matrix.shape
        for first in range(count):
            (found,) = program.run([*point, np.array([first], np.int32)])
            # A block that would pass the end is the last one that does not.
            start = min(first, count - rows)
            np.testing.assert_allclose(found[0], case.matrix[start : start + rows], rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", CASES.values(), ids=[name.replace(" ", "_") for name in CASES])
def test_single_precision_stays_single(case: Case, mode: pb.Mode.ValueType) -> None:
    narrow = [np.asarray(array, np.int32 if array is K else np.float32) for array in case.point]
    query = case._replace(point=tuple(narrow)).query(1, mode)

    [[found]] = answer(query, *narrow, 0)

    assert found.dtype == np.float32
    np.testing.assert_allclose(found, case.matrix[:1], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_the_matrix_has_the_widest_dtype_of_its_rows_and_columns(mode: pb.Mode.ValueType) -> None:
    mixed = (X.astype(np.float32), np.float64(Y))
    for options in ({"outputs": (0, 1)}, {"outputs": (1,), "wrt": (0,)}):
        query = query_of(curves, JACOBIAN, specs(mixed), block_rows=1, mode=mode, **options)
        [[found]] = answer(query, *mixed, 0)
        assert found.dtype == np.float64
        np.testing.assert_allclose(found[0, :3], QX[0] if len(options) == 2 else PX[0], rtol=1e-6)


# Σ sin(xᵢ xᵢ₊₁)
def waves(x: Float[Array, "n"]) -> Float[Array, ""]:
    return jnp.sum(jnp.sin(x[:-1] * x[1:]))


def products(x: Float[Array, "n"]) -> Float[Array, "n"]:
    return x[::-1] * x


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("operator", "call"), [(HESSIAN, waves), (JACOBIAN, products)])
def test_a_matrix_without_columns_has_rows_without_elements(
    operator: function_pb2.Operator.ValueType, call: Callable[..., Any], mode: pb.Mode.ValueType
) -> None:
    query = query_of(call, operator, (spec((0,)),), block_rows=1, mode=mode)
    [[found]] = answer(query, np.zeros(0), 0)
    assert found.shape == (1, 0)


def test_the_shapes_are_known_before() -> None:
    query = query_of(curves, JACOBIAN, specs(XY), outputs=(0, 1), block_rows=2)
    assert result_specs(query) == ((spec((2, 4)),),)
    assert result_bytes(query) == 64


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("rows", [15, 16, 17, 40])
def test_more_rows_than_are_computed_together(mode: pb.Mode.ValueType, rows: int) -> None:
    x = np.linspace(-1, 2, 40)
    u = x[:-1] * x[1:]
    expected = np.diag(np.append(-np.sin(u) * x[1:] ** 2, 0) + np.append(0, -np.sin(u) * x[:-1] ** 2))
    beside = np.cos(u) - np.sin(u) * u
    expected += np.diag(beside, 1) + np.diag(beside, -1)
    query = query_of(waves, HESSIAN, specs([x]), block_rows=rows, mode=mode)

    [[found]] = answer(query, x, 3)

    start = min(3, 40 - rows)
    np.testing.assert_allclose(found, expected[start : start + rows], rtol=1e-12, atol=1e-12)


# Σ 8 x² for 1 ≤ x < 2, by a loop of unknown length that doubles x until it is 8 or more.
def doubled(x: Float[Array, "n"]) -> Float[Array, ""]:
    return jnp.sum(jax.lax.while_loop(lambda y: jnp.all(y < 8), lambda y: 2 * y, x) * x)


def doubled_thrice(x: Float[Array, "n"]) -> Float[Array, "3"]:
    return doubled(x) * jnp.ones(3)


def test_forward_mode_goes_through_loops_of_unknown_length() -> None:
    x = np.array([1.25, 1.5])
    query = query_of(doubled, HESSIAN, specs([x]), block_rows=2, mode=FORWARD)
    [[found]] = answer(query, x, 0)
    np.testing.assert_allclose(found, np.eye(2) * 16)

    query = query_of(doubled_thrice, JACOBIAN, specs([x]), block_rows=2, mode=FORWARD)
    [[found]] = answer(query, x, 1)
    np.testing.assert_allclose(found, [16 * x, 16 * x])


def test_reverse_mode_does_not_and_says_so() -> None:
    query = query_of(doubled, HESSIAN, (spec((2,)),), block_rows=1, mode=REVERSE)
    with pytest.raises(NotDifferentiable, match="MODE_FORWARD"):
        trace(query, {})


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("operator", [HESSIAN, JACOBIAN])
def test_memory_is_that_of_a_block_and_not_of_the_matrix(
    operator: function_pb2.Operator.ValueType, mode: pb.Mode.ValueType
) -> None:
    n, rows = 4000, 4
    query = query_of(waves if operator == HESSIAN else products, operator, (spec((n,)),), block_rows=rows, mode=mode)

    program = compile_program(trace(query, {}), 1, MEMORY)

    # Sixteen vectors together and what lies between; the matrix has 128 MB.
    assert rows * n * 8 <= memory_of(program.executable) < 6 << 20
