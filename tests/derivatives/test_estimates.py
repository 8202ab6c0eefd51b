# jaxtyping writes shapes as strings, which are not forward references:
# ruff: noqa: F722, F821
"""Estimates of curvature from random products: reproducible, honest about their error, and exact where they can be."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float

from nablad.v1 import differentiation_pb2 as pb
from nablad.v1.function_pb2 import OPERATOR_HESSIAN, OPERATOR_LAPLACIAN
from nablad_server.derivatives.program import compile_program, trace
from nablad_server.functions.registration import build
from queries import MEMORY, answer, query_of, spec

N = 12
RANDOM = np.random.default_rng(5)
MATRIX = RANDOM.normal(size=(N, N))
HESSIAN = MATRIX + MATRIX.T
X = RANDOM.normal(size=N)
MODES = (pb.MODE_AUTO, pb.MODE_FORWARD, pb.MODE_REVERSE)


def quadratic(x: Float[Array, "12"]) -> Float[Array, ""]:
    return 0.5 * x @ jnp.asarray(HESSIAN) @ x


def separable(x: Float[Array, "n"], y: Float[Array, ""]) -> Float[Array, ""]:
    return jnp.sum(x**4) + y**3


QUADRATIC = build(quadratic, "test")


def seed(number: int) -> Any:
    return np.array([number & 0xFFFFFFFF, number >> 32], np.uint32)


@pytest.mark.parametrize("mode", MODES)
def test_an_estimate_is_within_a_few_standard_errors_of_the_truth(mode: pb.Mode.ValueType) -> None:
    samples = 400
    trace_query = query_of(QUADRATIC, OPERATOR_LAPLACIAN, (spec((N,)),), mode=mode, samples=samples)
    diagonal_query = query_of(QUADRATIC, OPERATOR_HESSIAN, (spec((N,)),), mode=mode, samples=samples, diagonal=True)

    _, _, (laplacian,), (error,) = answer(trace_query, X, seed(1))
    _, _, (diagonal,), (errors,) = answer(diagonal_query, X, seed(1))

    # The variance of Hutchinson's estimate with elements ±1 is twice the sum of the squares off the diagonal.
    off = HESSIAN - np.diag(np.diag(HESSIAN))
    assert error == pytest.approx(np.sqrt(2 * np.sum(off**2) / samples), rel=0.2)
    assert abs(laplacian - np.trace(HESSIAN)) < 5 * error
    np.testing.assert_allclose(errors, np.sqrt(np.sum(off**2, axis=1) / samples), rtol=0.3)
    assert np.all(np.abs(diagonal - np.diag(HESSIAN)) < 5 * errors)


def test_the_standard_error_is_that_of_independent_runs() -> None:
    query = query_of(QUADRATIC, OPERATOR_LAPLACIAN, (spec((N,)),), samples=16)
    program = compile_program(trace(query, {}), 256, MEMORY)

    runs = program.run([np.tile(X, (256, 1)), np.stack([seed(number) for number in range(256)])])

    laplacians, errors = runs[2], runs[3]
    assert np.std(laplacians) == pytest.approx(np.mean(errors), rel=0.15)
    assert abs(np.mean(laplacians) - np.trace(HESSIAN)) < 5 * np.mean(errors) / 16


def test_the_same_seed_gives_the_same_estimate_alone_and_in_a_batch() -> None:
    query = query_of(QUADRATIC, OPERATOR_LAPLACIAN, (spec((N,)),), samples=8)
    seeds = [seed(3), seed(4), seed(3 << 32), seed(3)]

    alone = [answer(query, X, number)[2][0] for number in seeds]
    together = compile_program(trace(query, {}), 4, MEMORY).run([np.tile(X, (4, 1)), np.stack(seeds)])[2]

    np.testing.assert_allclose(together, alone, rtol=1e-13)
    assert together[0] == together[3]
    assert len(set(np.round(together, 6))) == 3


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_a_diagonal_hessian_is_found_exactly_and_without_error(dtype: Any) -> None:
    x, y = np.array([1.0, -2.0, 0.5], dtype), np.array(3.0, dtype)
    query = query_of(separable, OPERATOR_HESSIAN, (spec((3,), dtype), spec((), dtype)), diagonal=True, samples=2)

    _, _, diagonals, errors = answer(query, x, y, seed(9))

    np.testing.assert_allclose(diagonals[0], 12 * x**2, rtol=1e-6)
    np.testing.assert_allclose(diagonals[1], 18, rtol=1e-6)
    np.testing.assert_allclose(np.concatenate([errors[0], [errors[1]]]), 0, atol=1e-4)
