# ruff: noqa: F722, F821 - jaxtyping's shapes are strings, not forward references
"""Sparse matrices against dense ones made by numpy, for patterns of all kinds, in every mode."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float
from numpy.typing import NDArray

from nablad.v1 import differentiation_pb2, function_pb2
from nablad_server.derivatives.detection import dense, find
from nablad_server.derivatives.operators.compression import PRODUCTS_TOGETHER
from nablad_server.derivatives.operators.sparse import pattern_of
from nablad_server.derivatives.pattern import DENSE
from nablad_server.derivatives.program import compile_program, trace
from nablad_server.derivatives.query import Query
from queries import MEMORY, answer, query_of, spec

HESSIAN, JACOBIAN = function_pb2.OPERATOR_HESSIAN, function_pb2.OPERATOR_JACOBIAN
LAPLACIAN = function_pb2.OPERATOR_LAPLACIAN
MODES = (differentiation_pb2.MODE_AUTO, differentiation_pb2.MODE_FORWARD, differentiation_pb2.MODE_REVERSE)
N = 24
RANDOM = np.random.default_rng(7)
X = RANDOM.normal(size=N)
Matrix = NDArray[Any]


def banded(width: int) -> Matrix:
    return np.where(np.abs(np.subtract.outer(range(N), range(N))) <= width, RANDOM.normal(size=(N, N)), 0.0)


def arrow() -> Matrix:
    matrix = np.diag(RANDOM.normal(size=N))
    matrix[0], matrix[:, 0] = RANDOM.normal(size=N), RANDOM.normal(size=N)
    return matrix


def scattered(density: float) -> Matrix:
    return np.where(RANDOM.random((N, N)) < density, RANDOM.normal(size=(N, N)), 0.0)


MATRICES = {
    "diagonal": banded(0),
    "banded": banded(2),
    "blocks": np.kron(np.eye(N // 4), RANDOM.normal(size=(4, 4))),
    "arrow": arrow(),
    "random": scattered(0.1),
    "nearly full": scattered(0.9),
    "nothing": np.zeros((N, N)),
}
KINDS = list(MATRICES)


def linked(matrix: Matrix) -> Callable[..., Any]:
    """f(x) = Σ aᵢⱼ sin(xᵢ) xⱼ over the elements of a matrix that are not zero."""
    rows, columns = np.nonzero(matrix)
    weights = matrix[rows, columns]

    def f(x: Float[Array, "n"]) -> Float[Array, ""]:
        return jnp.sum(weights * jnp.sin(x[rows]) * x[columns])

    return f


def linked_hessian(matrix: Matrix, x: Matrix) -> Matrix:
    """By hand."""
    mixed = matrix * np.cos(x)[:, None]
    return mixed + mixed.T - np.diag(np.sin(x) * (matrix @ x))


def mapped(matrix: Matrix) -> Callable[..., Any]:
    """f(x) = A sin(x), the elements of A that are zero left out."""
    rows, columns = np.nonzero(matrix)
    weights = matrix[rows, columns]

    def f(x: Float[Array, "n"]) -> Float[Array, "m"]:
        return jnp.zeros(matrix.shape[0]).at[rows].add(weights * jnp.sin(x[columns]))

    return f


def sparse(query: Query) -> Query:
    query = replace(query, sparse=True, columns=())
    return replace(query, pattern=find(query))


def filled(query: Query, values: Any) -> Matrix:
    pattern = pattern_of(query)
    matrix = np.zeros(pattern.shape)
    matrix[pattern.row_indices, pattern.column_indices] = values
    return matrix


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_sparse_hessian_is_the_hessian(kind: str, mode: differentiation_pb2.Mode.ValueType) -> None:
    matrix = MATRICES[kind]
    query = sparse(query_of(linked(matrix), HESSIAN, (spec((N,)),), mode=mode))

    (value,), (gradient,), (values,) = answer(query, X)

    assert value == pytest.approx(np.sum(matrix * np.sin(X)[:, None] * X))
    np.testing.assert_allclose(gradient, np.cos(X) * (matrix @ X) + matrix.T @ np.sin(X), atol=1e-13)
    np.testing.assert_allclose(filled(query, values), linked_hessian(matrix, X), atol=1e-13)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(N, N), (N // 2, N), (N, N // 2)])
def test_a_sparse_jacobian_is_the_jacobian(
    kind: str, mode: differentiation_pb2.Mode.ValueType, shape: tuple[int, int]
) -> None:
    matrix = MATRICES[kind][: shape[0], : shape[1]]
    x = X[: shape[1]]
    query = sparse(query_of(mapped(matrix), JACOBIAN, (spec(x.shape),), mode=mode))

    (value,), (values,) = answer(query, x)

    np.testing.assert_allclose(value, matrix @ np.sin(x), atol=1e-13)
    np.testing.assert_allclose(filled(query, values), matrix * np.cos(x), atol=1e-13)


def test_elements_are_computed_in_parts_where_there_are_many_colors() -> None:
    query = sparse(query_of(linked(MATRICES["nearly full"]), HESSIAN, (spec((N,)),)))
    assert pattern_of(query).coloring.count > PRODUCTS_TOGETHER
    values = answer(query, X)[-1][0]
    np.testing.assert_allclose(filled(query, values), linked_hessian(MATRICES["nearly full"], X), atol=1e-13)


@pytest.mark.parametrize("mode", MODES)
def test_a_dense_pattern_gives_every_element(mode: differentiation_pb2.Mode.ValueType) -> None:
    matrix = RANDOM.normal(size=(5, 8))

    def transformed(x: Float[Array, "8"]) -> Float[Array, "5"]:
        return jnp.fft.ifft(jnp.fft.fft(jnp.asarray(matrix) @ jnp.sin(x))).real

    x = X[:8]
    query = sparse(query_of(transformed, JACOBIAN, (spec((8,)),), mode=mode))
    assert pattern_of(query).source == DENSE
    np.testing.assert_allclose(filled(query, answer(query, x)[-1][0]), matrix * np.cos(x), atol=1e-13)


def test_a_dense_hessian_where_there_is_a_solve_inside() -> None:
    def energy(x: Float[Array, "4"]) -> Float[Array, ""]:
        return x @ jnp.linalg.solve(jnp.diag(2.0 + x**2), x)

    query = sparse(query_of(energy, HESSIAN, (spec((4,)),)))
    assert pattern_of(query).source == DENSE
    x = X[:4]  # f = Σ x² / (2 + x²), f'' = 4 (2 - 3 x²) / (2 + x²)³
    expected = np.diag(4 * (2 - 3 * x**2) / (2 + x**2) ** 3)
    np.testing.assert_allclose(filled(query, answer(query, x)[-1][0]), expected, atol=1e-13)


@pytest.mark.parametrize("operator", [HESSIAN, JACOBIAN])
def test_several_inputs_and_outputs_make_one_matrix(operator: function_pb2.Operator.ValueType) -> None:
    def pair(a: Float[Array, "2 2"], b: Float[Array, "3"], c: Float[Array, ""]) -> dict[str, Any]:
        return {"s": jnp.sum(a[0] * b[:2]) * c, "t": jnp.stack([a[:, 0] ** 2, c * b[1:]])}

    a, b, c = X[:4].reshape(2, 2), X[4:7], X[7]
    outputs = (0,) if operator == HESSIAN else (1, 0)
    given = (spec((2, 2)), spec((3,)), spec(()))
    query = sparse(query_of(pair, operator, given, wrt=(2, 0, 1), outputs=outputs))
    values = answer(query, a, b, c)[-1][0]

    expected = np.zeros((8, 8)) if operator == HESSIAN else np.zeros((5, 8))
    if operator == HESSIAN:  # of c, a00, a01, a10, a11, b0, b1, b2
        expected[0, 1:3], expected[0, 5:7] = b[:2], a[0]
        expected[1, 5] = expected[2, 6] = c
        expected += expected.T
    else:
        expected[0, 1], expected[1, 3] = 2 * a[:, 0]
        expected[2:4, 0], expected[2, 6], expected[3, 7] = b[1:], c, c
        expected[4] = [a[0] @ b[:2], *(c * b[:2]), 0, 0, *(c * a[0]), 0]
    np.testing.assert_allclose(filled(query, values), expected, atol=1e-14)


def test_elements_have_the_widest_dtype_of_rows_and_columns() -> None:
    query = sparse(query_of(linked(MATRICES["banded"]), HESSIAN, (spec((N,), np.float32),)))
    values = answer(query, X)[-1][0]
    assert values.dtype == np.float32
    x = X.astype(np.float32).astype(np.float64)
    np.testing.assert_allclose(filled(query, values), linked_hessian(MATRICES["banded"], x), atol=2e-5)

    def mixed(x: Float[Array, "3"], y: Float[Array, "3"]) -> Float[Array, ""]:
        return jnp.sum(x**2 * y)

    query = sparse(query_of(mixed, HESSIAN, (spec((3,), np.float32), spec((3,)))))
    values = answer(query, np.ones(3, np.float32), np.full(3, 2.0))[-1][0]
    assert values.dtype == np.float64
    assert values.tolist() == [4.0, 2.0] * 3 + [2.0] * 3


def test_many_points_at_once_have_one_pattern() -> None:
    matrix = MATRICES["banded"]
    query = sparse(query_of(linked(matrix), HESSIAN, (spec((N,)),)))
    points = RANDOM.normal(size=(8, N))
    found = compile_program(trace(query, {}), 8, MEMORY).run([points])[-1]
    for x, values in zip(points, found, strict=True):
        np.testing.assert_allclose(filled(query, values), linked_hessian(matrix, x), atol=1e-13)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_diagonal_by_colors_is_the_diagonal(kind: str, mode: differentiation_pb2.Mode.ValueType) -> None:
    matrix = MATRICES[kind]
    pattern = sparse(query_of(linked(matrix), HESSIAN, (spec((N,)),), mode=mode)).pattern
    expected = np.diag(linked_hessian(matrix, X))

    query = query_of(linked(matrix), HESSIAN, (spec((N,)),), mode=mode, diagonal=True, pattern=pattern)
    np.testing.assert_allclose(answer(query, X)[2][0], expected, atol=1e-13)

    query = query_of(linked(matrix), LAPLACIAN, (spec((N,)),), mode=mode, pattern=pattern)
    assert answer(query, X)[2][0] == pytest.approx(expected.sum())


def test_a_diagonal_by_colors_is_spared_the_nan_of_other_colors() -> None:
    def roots(x: Float[Array, "4"]) -> Float[Array, ""]:
        return jnp.sum(jnp.sqrt(x)) + x[0] * x[1] * x[2]

    query = query_of(roots, HESSIAN, (spec((4,)),))
    pattern = sparse(query).pattern
    x = np.array([0.0, 1.0, 4.0, 9.0])
    rows = answer(query_of(roots, HESSIAN, (spec((4,)),), diagonal=True), x)[2][0]
    colors = answer(query_of(roots, HESSIAN, (spec((4,)),), diagonal=True, pattern=pattern), x)[2][0]
    assert colors.tolist() == rows.tolist() == [-np.inf, -0.25, -1 / 32, -1 / 108]


def test_large_vectors_are_not_kept_in_the_program_once_for_each_color() -> None:
    n = 4096

    def chain(x: Float[Array, "n"]) -> Float[Array, ""]:
        return jnp.sum(jnp.sin(x[1:]) * x[:-1])

    query = sparse(query_of(chain, HESSIAN, (spec((n,)),)))
    traced = trace(query, {})
    held = sum(constant.nbytes for constant in traced.constants if isinstance(constant, np.ndarray | jax.Array))
    assert held <= 4 * (n + 3 * n) + 1024  # a color for each column and a place for each element


def test_the_dense_pattern_of_a_hessian_adds_up_columns() -> None:
    query = query_of(linked(MATRICES["arrow"]), HESSIAN, (spec((N,)),))
    pattern = dense(replace(query, columns=()), "because")
    query = replace(query, sparse=True, columns=(), pattern=pattern)
    assert (pattern.coloring.by_rows, pattern.reason) == (False, "because")
    expected = linked_hessian(MATRICES["arrow"], X)
    np.testing.assert_allclose(filled(query, answer(query, X)[-1][0]), expected, atol=1e-13)
