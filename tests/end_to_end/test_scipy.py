"""SciPy at work through the client alone: optimisers and eigenvalues of functions that are far away."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest
from scipy.linalg import eigh_tridiagonal
from scipy.optimize import minimize, rosen, rosen_der, rosen_hess_prod
from scipy.sparse.linalg import LinearOperator, eigsh, lobpcg, svds

import nablad
from nablad.tensors import Array
from pendulums import energy_products, swung, swung_products
from servers import ServerProcess

FUNCTIONS = Path(__file__).parent / "linearized_functions.py"
SIZE = 10_000


@pytest.fixture(scope="module")
def remote() -> Iterator[nablad.Client]:
    """A client of a server that has the functions of this folder, too."""
    with ServerProcess(FUNCTIONS) as process, nablad.Client(process.address, timeout=120) as client:
        yield client
        assert process.errors() == []


class Remote:
    """A function far away, as scipy.optimize takes it: products with its Hessian come from the current point's."""

    def __init__(self, client: nablad.Client, function: str) -> None:
        self._client = client
        self._function = function
        self._x: Array | None = None
        self._at: nablad.Linearization | None = None
        self.points = 0

    def value_and_gradient(self, x: Array) -> tuple[float, Array]:
        result = self._client.gradient(self._function, x)
        return float(result.value), result.gradient

    def product(self, x: Array, p: Array) -> Array:
        if self._at is None or self._x is None or not np.array_equal(self._x, x):
            self.close()
            self._x, self._at = x.copy(), self._client.linearize(self._function, x).open()
            self.points += 1
        product: Array = self._at.hvp(p)
        return product

    def close(self) -> None:
        if self._at is not None:
            self._at.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@pytest.mark.parametrize("method", ["trust-ncg", "Newton-CG", "trust-krylov"])
def test_minimises_rosenbrock_of_ten_thousand_variables(remote: nablad.Client, method: str) -> None:
    x0 = 1.0 + 0.1 * np.random.default_rng(0).normal(size=SIZE)
    options: dict[str, Any] = {"xtol": 1e-10} if method == "Newton-CG" else {"gtol": 1e-7}

    with Remote(remote, "rosenbrock") as far:
        found = minimize(far.value_and_gradient, x0, jac=True, hessp=far.product, method=method, options=options)
    here = minimize(rosen, x0, jac=rosen_der, hessp=rosen_hess_prod, method=method, options=options)

    assert found.success
    assert far.points >= 3
    np.testing.assert_allclose(found.x, np.ones(SIZE), rtol=0, atol=1e-6)
    np.testing.assert_allclose(found.x, here.x, rtol=0, atol=1e-6)
    assert abs(found.nit - here.nit) <= 2
    assert found.fun < 1e-12


def test_extreme_eigenvalues_of_a_hessian_of_ten_thousand_variables(remote: nablad.Client) -> None:
    x = np.linspace(-1.5, 2.0, SIZE)
    diagonal = np.r_[1200 * x[:-1] ** 2 - 400 * x[1:] + 2, 0.0]
    diagonal[1:] += 200
    beside = -400 * x[:-1]
    v0 = np.random.default_rng(3).normal(size=SIZE)

    with remote.linearize("rosenbrock", x) as at:
        hessian = at.as_linear_operator()
        assert (hessian.shape, hessian.dtype) == ((SIZE, SIZE), np.float64)
        largest = eigsh(hessian, k=3, which="LA", v0=v0, return_eigenvectors=False)
    here = LinearOperator((SIZE, SIZE), matvec=lambda p: rosen_hess_prod(x, np.ravel(p)), dtype=np.float64)

    np.testing.assert_allclose(
        np.sort(largest), np.sort(eigsh(here, k=3, which="LA", v0=v0, return_eigenvectors=False)), rtol=1e-9
    )
    expected = eigh_tridiagonal(diagonal, beside, select="i", select_range=(SIZE - 3, SIZE - 1), eigvals_only=True)
    np.testing.assert_allclose(np.sort(largest), expected, rtol=1e-9)


def test_both_ends_of_the_spectrum_of_a_heavy_function(remote: nablad.Client) -> None:
    x = np.random.default_rng(4).normal(size=100)
    expected = np.linalg.eigvalsh(energy_products(x, np.eye(100)))

    with remote.linearize("pendulums", x) as at:
        hessian = at.as_linear_operator("hessian")
        ends = eigsh(hessian, k=6, which="BE", v0=np.ones(100), return_eigenvectors=False)
        block = np.random.default_rng(5).normal(size=(100, 4))
        top, vectors = lobpcg(hessian, block, largest=True, tol=1e-6, maxiter=200)
        np.testing.assert_allclose(hessian @ vectors, vectors * top, rtol=0, atol=1e-5 * abs(expected).max())

    np.testing.assert_allclose(np.sort(ends), np.r_[expected[:3], expected[-3:]], rtol=1e-8)
    np.testing.assert_allclose(np.sort(top), expected[-4:], rtol=1e-8)


def test_singular_values_of_a_jacobian(remote: nablad.Client) -> None:
    x = np.random.default_rng(6).normal(size=60)
    mask = np.arange(60) % 3 > 0
    speed = 0.7
    (q, p), (dq, dp) = swung(x), swung_products(x, np.eye(60))
    forward = np.maximum(p, 0.0)
    by_x = np.r_[np.where(mask[:, None], dq.T, (p > 0)[:, None] * dp.T * speed), [speed * dq.T[~mask].sum(axis=0)]]
    by_speed = np.r_[np.where(mask, 0.0, forward), q[~mask].sum()]
    expected = np.concatenate([by_x, by_speed[:, None]], axis=1)

    with remote.linearize("swing", x, mask, np.float64(speed)) as at:
        jacobian = at.as_linear_operator("jacobian")
        found = svds(jacobian, k=3, return_singular_vectors=False, v0=np.ones(61), rng=np.random.default_rng(7))
        whole = jacobian @ np.eye(61)
        transposed = jacobian.T @ np.eye(61)

    np.testing.assert_allclose(whole, expected, rtol=0, atol=1e-11 * abs(expected).max())
    np.testing.assert_allclose(transposed, expected.T, rtol=0, atol=1e-11 * abs(expected).max())
    np.testing.assert_allclose(np.sort(found), np.sort(np.linalg.svd(expected, compute_uv=False)[:3]), rtol=1e-9)
