"""Functions of PyTorch on a real server: every operator agrees with the same function in JAX."""

import dataclasses
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nablad
from nablad.errors import FunctionFailed, InvalidOption, NotDifferentiable
from nablad.tensors import Array
from servers import ServerProcess

pytest.importorskip("torch", reason="PyTorch is an extra, and is not installed")

FUNCTIONS = Path(__file__).with_name("torch_functions.py")
RANDOM = np.random.default_rng(0)
X = np.array([0.5, -1.25, 2.0, 0.75])
V = np.array([1.0, -2.0, 0.5, 0.25])
A = RANDOM.normal(size=(4, 4))
COV = A @ A.T + np.eye(4)
PARAMS = {
    "hidden": {"w": RANDOM.normal(size=(2, 5)), "b": RANDOM.normal(size=5)},
    "output": {"w": RANDOM.normal(size=(5, 3)), "b": RANDOM.normal(size=3)},
}
ROWS, LABELS = RANDOM.normal(size=(6, 2)), np.array([0, 2, 1, 1, 0, 2])

CASES: dict[str, tuple[str, str, tuple[Any, ...], dict[str, Any]]] = {
    "evaluate": ("evaluate", "softmax", (X,), {}),
    "evaluate several": ("evaluate", "polar_to_cartesian", (1.5, 0.5), {}),
    "gradient": ("gradient", "rosenbrock", (X,), {}),
    "gradient forward": ("gradient", "logsumexp", (X,), {"mode": "forward"}),
    "gradient by some": ("gradient", "gaussian_logpdf", (X, V, COV), {"wrt": ["mean", "cov"]}),
    "gradient of a tree": ("gradient", "mlp_loss", (PARAMS, ROWS, LABELS), {}),
    "gradient by differences": ("gradient", "rosenbrock", (X,), {"differences": "central"}),
    "jacobian": ("jacobian", "softmax", (X,), {}),
    "jacobian forward": ("jacobian", "softmax", (X,), {"mode": "forward"}),
    "jacobian reverse": ("jacobian", "softmax", (X,), {"mode": "reverse"}),
    "jacobian of several": ("jacobian", "polar_to_cartesian", (1.5, 0.5), {}),
    "jacobian by differences": ("jacobian", "softmax", (X,), {"differences": "ridders"}),
    "hessian": ("hessian", "rosenbrock", (X,), {}),
    "hessian forward": ("hessian", "rosenbrock", (X,), {"mode": "forward"}),
    "hessian reverse": ("hessian", "rosenbrock", (X,), {"mode": "reverse"}),
    "hessian diagonal": ("hessian", "rosenbrock", (X,), {"diagonal": True}),
    "hessian block": ("hessian", "gaussian_logpdf", (X, V, COV), {"wrt": "x", "columns": "cov"}),
    "hessian by differences": ("hessian", "logsumexp", (X,), {"differences": "central"}),
    "hvp": ("hvp", "rosenbrock", (X,), {"tangent": V}),
    "hvp reverse": ("hvp", "rosenbrock", (X,), {"tangent": V, "mode": "reverse"}),
    "hvp of some": ("hvp", "quadratic_form", (X, A), {"tangent": {"x": V}}),
    "jvp": ("jvp", "softmax", (X,), {"tangent": V}),
    "jvp of some": ("jvp", "quadratic_form", (X, A), {"tangent": {"A": COV}}),
    "vjp": ("vjp", "softmax", (X,), {"cotangent": V}),
    "directional derivative": ("directional_derivative", "rosenbrock", (X,), {"direction": V}),
    "derivative": ("derivative", "sin", (0.7,), {"order": 5}),
    "derivative along": ("derivative", "logsumexp", (X,), {"order": 3, "direction": V}),
    "laplacian": ("laplacian", "rosenbrock", (X,), {}),
    "laplacian estimate": ("laplacian", "gaussian_logpdf", (X, V, COV), {"wrt": "x", "samples": 16, "seed": 3}),
}


@pytest.fixture(scope="module")
def process() -> Iterator[ServerProcess]:
    with ServerProcess(FUNCTIONS) as server:
        yield server
        assert server.errors() == []


@pytest.fixture(scope="module")
def torch_client(process: ServerProcess) -> Iterator[nablad.Client]:
    with nablad.Client(process.address, timeout=120) as connected:
        yield connected


def arrays(tree: Any) -> Iterator[Array]:
    """The arrays of a result, field by field."""
    if isinstance(tree, Mapping):
        for key in sorted(tree):
            yield from arrays(tree[key])
    elif dataclasses.is_dataclass(tree):
        for field in dataclasses.fields(tree):
            if field.name != "execution":
                yield from arrays(getattr(tree, field.name))
    elif tree is not None and not isinstance(tree, str | bool):
        yield np.asarray(tree)


def narrowed(tree: Any) -> Any:
    """A tree with float32 in place of float64."""
    if isinstance(tree, Mapping):
        return {key: narrowed(part) for key, part in tree.items()}
    if isinstance(tree, list | str | int):
        return tree
    array = np.asarray(tree)
    return array.astype(np.float32) if array.dtype == np.float64 else array


def agree(found: Any, expected: Any, tolerance: float) -> None:
    pairs = list(zip(arrays(found), arrays(expected), strict=True))
    assert pairs
    for got, wanted in pairs:
        assert (got.dtype, got.shape) == (wanted.dtype, wanted.shape)
        scale = max(1.0, float(np.max(np.abs(wanted), initial=0)))
        np.testing.assert_allclose(got, wanted, rtol=tolerance, atol=tolerance * scale)


@pytest.mark.parametrize("case", CASES)
def test_every_operator_agrees_with_that_of_jax(torch_client: nablad.Client, case: str) -> None:
    operator, name, inputs, options = CASES[case]
    tolerance = 1e-5 if "differences" in options else 1e-10

    ask = getattr(torch_client, operator)
    agree(ask(f"torch_{name}", *inputs, **options), ask(name, *inputs, **options), tolerance)


@pytest.mark.parametrize("case", [case for case in CASES if "differences" not in case])
def test_every_operator_agrees_in_single_precision(torch_client: nablad.Client, case: str) -> None:
    operator, name, inputs, options = CASES[case]
    inputs, options = tuple(map(narrowed, inputs)), narrowed(options)

    ask = getattr(torch_client, operator)
    agree(ask(f"torch_{name}", *inputs, **options), ask(name, *inputs, **options), 1e-4)


@pytest.mark.parametrize("case", [
    "evaluate", "gradient", "gradient by some", "jacobian", "hessian", "hessian diagonal", "hvp", "jvp", "vjp",
    "directional derivative", "laplacian", "laplacian estimate", "gradient by differences",
])  # fmt: skip
@pytest.mark.parametrize("points", [3, 70])
def test_many_points_agree_with_those_of_jax(torch_client: nablad.Client, case: str, points: int) -> None:
    operator, name, inputs, options = CASES[case]
    batch = X + np.linspace(0, 1, points)[:, None]
    common = {f"{vector}_batched": False for vector in ("tangent", "cotangent", "direction") if vector in options}

    ask = getattr(torch_client, operator)
    found, expected = (
        ask(which, batch, *inputs[1:], batched=["x"], **options, **common) for which in (f"torch_{name}", name)
    )
    agree(found, expected, 1e-5 if "differences" in options else 1e-10)


def test_half_precision_is_pytorchs(torch_client: nablad.Client) -> None:
    found = torch_client.gradient("torch_logsumexp", X.astype(np.float16))

    assert (found.value.dtype, found.gradient.dtype) == (np.float16, np.float16)
    np.testing.assert_allclose(found.gradient, np.exp(X) / np.sum(np.exp(X)), atol=2e-3)


def test_streams_of_rows_and_sparse_matrices_agree(torch_client: nablad.Client) -> None:
    with torch_client.stream_hessian("torch_rosenbrock", X) as rows:
        hessian = rows.read()
    sparse = torch_client.hessian("torch_rosenbrock", X, sparse=True).hessian
    dense = torch_client.jacobian("torch_softmax", X, sparse=True).jacobian
    pattern = torch_client.sparsity("torch_softmax", X, operator="jacobian")

    wanted = torch_client.hessian("rosenbrock", X).hessian
    np.testing.assert_allclose(hessian, wanted, rtol=1e-12)
    assert (sparse.nnz, dense.nnz) == (10, 16)  # as declared, and as nobody can know
    assert "only JAX's operations are looked into, and it is computed by torch" in pattern.reason
    np.testing.assert_allclose(sparse.toarray(), wanted, rtol=1e-12)
    np.testing.assert_allclose(dense.toarray(), torch_client.jacobian("softmax", X).jacobian, rtol=1e-12)


def test_linearized_products_agree(torch_client: nablad.Client) -> None:
    basis = np.eye(4)
    with torch_client.linearize("torch_rosenbrock", X) as at, torch_client.linearize("rosenbrock", X) as twin:
        for vector in (V, *basis):
            np.testing.assert_allclose(at.hvp(vector), twin.hvp(vector), rtol=1e-12)
            np.testing.assert_allclose(at.jvp(vector), twin.jvp(vector), rtol=1e-12)
        np.testing.assert_allclose(at.vjp(2.0), twin.vjp(2.0), rtol=1e-12)


def test_a_pipeline_and_mixed_traffic(process: ServerProcess, torch_client: nablad.Client) -> None:
    points = [X * scale for scale in np.linspace(-1, 2, 40)]
    wanted = [torch_client.gradient("rosenbrock", point).gradient for point in points]

    def ask(number: int) -> Array:
        name = "torch_rosenbrock" if number % 2 else "rosenbrock"
        if number % 5 == 0:
            torch_client.hvp("torch_rosenbrock", points[number], tangent=V)
        return torch_client.gradient(name, points[number]).gradient

    with ThreadPoolExecutor(16) as pool:
        for found, expected in zip(pool.map(ask, range(40)), wanted, strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-12)
    with torch_client.pipeline() as pipeline:
        futures = [pipeline.gradient("torch_rosenbrock", point) for point in points]
        for future, expected in zip(futures, wanted, strict=True):
            np.testing.assert_allclose(future.result().gradient, expected, rtol=1e-12)


def test_the_catalogue_says_what_computes_it(torch_client: nablad.Client) -> None:
    twin, own = torch_client.describe("rosenbrock"), torch_client.describe("torch_rosenbrock")

    assert (twin.engine, own.engine) == ("jax", "torch")
    assert own.operators == twin.operators
    assert (own.inputs, own.outputs) == (twin.inputs, twin.outputs)
    engines = {info.name: info.engine for info in torch_client.functions()}
    assert {engines["fragile"], engines["torch_mlp_loss"], engines["softmax"]} == {"torch", "jax"}


def test_an_error_of_the_function_is_its_callers_alone(torch_client: nablad.Client) -> None:
    with pytest.raises(FunctionFailed, match="fragile@1 raised ArithmeticError: a negative number") as failed:
        torch_client.evaluate("fragile", -1.0)
    assert failed.value.metadata == {"function": "fragile@1", "exception": "ArithmeticError"}

    def ask(value: float) -> float | str:
        try:
            return float(torch_client.gradient("fragile", value).gradient)
        except FunctionFailed as error:
            return error.metadata["exception"]

    values = [0.25, -1.0, 1.0, 4.0] * 10
    with ThreadPoolExecutor(20) as pool:
        found = list(pool.map(ask, values))
    assert found == [1.0, "ArithmeticError", 0.5, 0.25] * 10


def test_values_that_decide_are_looked_at_point_by_point(torch_client: nablad.Client) -> None:
    points = np.array([0.25, 1.0, 4.0])

    found = torch_client.derivative("fragile", points, order=2, batched=["x"])

    np.testing.assert_allclose(found.value, np.sqrt(points), rtol=1e-14)
    np.testing.assert_allclose(np.ravel(found.derivatives), np.ravel([0.5 * points**-0.5, -0.25 * points**-1.5],
                               order="F"), rtol=1e-12)  # fmt: skip


def test_an_operation_without_forward_mode_is_differentiated_in_reverse(torch_client: nablad.Client) -> None:
    total = np.sum(X**3)

    for points in (X, np.stack([X, X, X])):
        many = points.ndim == 2
        jvp = torch_client.jvp("reverse_alone", points, tangent=V, tangent_batched=False, batched=many).jvp
        np.testing.assert_allclose(jvp, np.broadcast_to(6 * total * X**2 @ V, points.shape[:-1]), rtol=1e-12)
        hessian = torch_client.hessian("reverse_alone", points, batched=many).hessian
        wanted = 18 * np.outer(X**2, X**2) + np.diag(12 * total * X)
        np.testing.assert_allclose(hessian, np.broadcast_to(wanted, hessian.shape), rtol=1e-12)


def test_what_pytorch_cannot_differentiate_is_refused_with_its_reason(torch_client: nablad.Client) -> None:
    difference = X[:, None] - X[None, :]
    wanted = np.sum(6 * difference * np.abs(difference), axis=1)
    np.testing.assert_allclose(torch_client.gradient("distances", X).gradient, wanted, rtol=1e-10)
    with pytest.raises(NotDifferentiable, match="forward AD with _cdist_forward that does not support it") as no:
        torch_client.jvp("distances", X, tangent=V)
    assert no.value.metadata == {"function": "distances@1", "exception": "NotImplementedError"}
    with pytest.raises(NotDifferentiable, match="the derivative for '_cdist_backward' is not implemented"):
        torch_client.hessian("distances", X, mode="reverse")
    with pytest.raises(InvalidOption, match="order"):
        torch_client.derivative("torch_sin", 0.5, order=12)


def test_shapes_that_depend_on_values_are_refused(torch_client: nablad.Client) -> None:
    with pytest.raises(FunctionFailed, match=r"changes_its_mind@1 gave float64\[3\] where float64\[4\] was expected"):
        torch_client.evaluate("changes_its_mind", X)


def test_what_it_is_given_is_its_own_and_parameters_are_not_differentiated(torch_client: nablad.Client) -> None:
    found = torch_client.gradient("in_place", X)
    assert found.value == pytest.approx(4 * X @ X)
    np.testing.assert_allclose(found.gradient, 8 * X)

    for dtype in (np.float64, np.float32):
        at = torch_client.gradient("network", X[:3].astype(dtype))
        assert (at.value.dtype, at.gradient.dtype) == (dtype, dtype)
        along = torch_client.gradient("network", X[:3], differences="central").gradient
        np.testing.assert_allclose(at.gradient, along, rtol=1e-5)


def test_numbers_are_outputs_too(torch_client: nablad.Client) -> None:
    found = torch_client.evaluate("length", X)

    assert {name: (array.dtype, float(array)) for name, array in found.value.items()} == {
        "count": (np.int64, 4.0), "half": (np.float64, 0.5), "norm": (np.float64, pytest.approx(np.linalg.norm(X))),
    }  # fmt: skip
    np.testing.assert_allclose(
        torch_client.gradient("length", X, output="norm").gradient, X / np.linalg.norm(X), rtol=1e-14
    )
