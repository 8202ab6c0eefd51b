"""Sparse derivatives of problems that others made: CUTEst, as sif2jax has it in JAX."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import csr_array

import nablad
from kept import kept
from servers import ServerProcess

RANDOM = np.random.default_rng(3)
LARGE = 12_000
"""Elements: a dense Hessian would have 1.1 GB."""


@pytest.fixture(scope="module")
def cutest() -> Iterator[nablad.Client]:
    with (
        ServerProcess(Path(__file__).parent / "cutest_functions.py") as process,
        nablad.Client(process.address, timeout=120) as client,
    ):
        yield client
        assert process.errors() == []


@pytest.mark.parametrize(("name", "bandwidth"), [("broydn7d", 5), ("dixmaanb", 4)])
def test_small_hessians_are_the_dense_ones(cutest: nablad.Client, name: str, bandwidth: int) -> None:
    x = RANDOM.normal(size=30)
    found = kept(cutest.hessian(name, x, sparse=True))
    expected = cutest.hessian(name, x).hessian
    np.testing.assert_allclose(found.to_dense(), expected, atol=1e-12 * np.abs(expected).max())
    assert found.sparsity.source == "detected"
    assert max(np.diff(found.sparsity.row_starts)) >= bandwidth
    assert found.sparsity.colors < 30


@pytest.mark.parametrize("name", ["broydn7d", "dixmaanb"])
def test_large_hessians_multiply_like_hessians(cutest: nablad.Client, name: str) -> None:
    x, v = RANDOM.normal(size=LARGE), RANDOM.normal(size=LARGE)
    found = cutest.hessian(name, x, sparse=True)
    assert kept(found).sparsity.nonzeros < 10 * LARGE
    assert kept(found).sparsity.colors < 20
    matrix: csr_array = found.hessian
    product = cutest.hvp(name, x, v)
    scale = np.abs(product.hvp).max()
    np.testing.assert_allclose(matrix @ v, product.hvp, atol=1e-12 * scale)
    np.testing.assert_allclose(found.gradient, product.gradient, atol=1e-12 * scale)
    np.testing.assert_allclose(matrix.diagonal(), cutest.hessian(name, x, diagonal=True).hessian, atol=1e-12 * scale)


@pytest.mark.parametrize("size", [30, LARGE])
def test_the_jacobian_of_constraints(cutest: nablad.Client, size: int) -> None:
    x, v = RANDOM.normal(size=size), RANDOM.normal(size=size)
    found = cutest.jacobian("lukvle1", x, sparse=True)
    sparsity = kept(found).sparsity
    assert (sparsity.shape, sparsity.nonzeros, sparsity.colors) == ((size - 2, size), 3 * (size - 2), 3)
    product = cutest.jvp("lukvle1", x, v)
    np.testing.assert_allclose(found.jacobian @ v, product.jvp, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(found.value, product.value, rtol=1e-12)
    if size < 100:
        np.testing.assert_allclose(kept(found).to_dense(), cutest.jacobian("lukvle1", x).jacobian, atol=1e-12)
