# jaxtyping writes shapes as strings, which are not forward references:
# ruff: noqa: F722, F821
"""Finite differences: as near to the closed forms as their schemes allow, and honest about how near that is."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float

from nablad.v1 import differentiation_pb2 as pb
from nablad.v1.function_pb2 import OPERATOR_GRADIENT, OPERATOR_HESSIAN, OPERATOR_HVP, OPERATOR_JACOBIAN, OPERATOR_JVP
from nablad_server.derivatives.operators.differences import evaluations
from nablad_server.derivatives.program import compile_program, trace
from nablad_server.derivatives.query import Differences, Query
from nablad_server.functions.registration import build
from nablad_server.functions.sources.builtin import FUNCTIONS
from queries import MEMORY, answer, query_of, spec, specs
from scenarios import SCENARIOS, Scenario

CENTRAL, FORWARD, RIDDERS = (
    pb.DIFFERENCE_SCHEME_CENTRAL,
    pb.DIFFERENCE_SCHEME_FORWARD,
    pb.DIFFERENCE_SCHEME_RIDDERS,
)
SCHEMES = (CENTRAL, FORWARD, RIDDERS)
TOLERANCES = {CENTRAL: 1e-6, FORWARD: 1e-3, RIDDERS: 1e-8}
CATALOGUE = {function.name: function for function in (build(call, "builtin") for call in FUNCTIONS)}


# With p = (x₀² x₁, x₁³) and q = x₀ y, all of f(x, y).
def curves(x: Float[Array, "2"], y: Float[Array, ""]) -> Any:
    return {"p": jnp.stack([x[0] ** 2 * x[1], x[1] ** 3]), "q": x[0] * y}


def energy(x: Float[Array, "n"], y: Float[Array, ""]) -> Float[Array, ""]:
    return jnp.sum(jnp.sin(x)) * y + x[0] * x[1] ** 2 + y**3


X, Y = np.array([0.75, -1.5, 2.0]), 1.25
ENERGY = build(energy, "test")
GRADIENT_X = np.cos(X) * Y + np.array([X[1] ** 2, 2 * X[0] * X[1], 0.0])
GRADIENT_Y = np.sum(np.sin(X)) + 3 * Y**2
HESSIAN_XX = -np.diag(np.sin(X)) * Y
HESSIAN_XX += np.array([[0.0, 2 * X[1], 0.0], [2 * X[1], 2 * X[0], 0.0], [0.0, 0.0, 0.0]])
HESSIAN_XY, HESSIAN_YY = np.cos(X), 6 * Y
VX, VY = np.array([1.0, -0.5, 2.0]), -3.0


def of_energy(operator: Any, scheme: Any, **options: Any) -> Query:
    return query_of(ENERGY, operator, (spec((3,)), spec()), differences=Differences(scheme), **options)


def assert_near(found: list[Any], wanted: list[Any], errors: list[Any], scheme: Any) -> None:
    for one, truth, error in zip(found, wanted, errors, strict=True):
        np.testing.assert_allclose(one, truth, rtol=TOLERANCES[scheme], atol=TOLERANCES[scheme])
        assert np.all(np.abs(one - truth) <= error)


def of_catalogue(scenario: Scenario, scheme: Any, dtype: str) -> tuple[list[float], list[bool]]:
    """For each point the largest error of the Jacobian over its largest element; whether each is covered."""
    function = CATALOGUE[scenario.function]
    names = [given.name for given in function.signature.inputs]
    points = [[narrow(point[name], dtype) for name in names] for point in scenario.points]
    inputs = specs(points[0])
    outputs = function.outputs_at(inputs)
    chosen = tuple(index for index, (_, given) in enumerate(outputs) if given.differentiable)
    query = query_of(function, OPERATOR_JACOBIAN, inputs, outputs=chosen, differences=Differences(scheme))
    program = compile_program(trace(query, {}), 1, MEMORY)
    errors, covered = [], []
    for values, point in zip(scenario.points, points, strict=True):
        arrays = zip([*point, 0], query.arrays, strict=True)
        found = program.run([np.asarray(array, given.dtype)[None] for array, given in arrays])
        count = program.groups[-1]
        blocks, estimates = found[-2 * count : -count], found[-count:]
        truth = scenario.jacobian(values)
        wanted = [truth[outputs[row][0], names[column]] for row in chosen for column in query.wrt]
        off = [np.abs(block[0] - want) for block, want in zip(blocks, wanted, strict=True)]
        largest = max((np.max(np.abs(want), initial=0) for want in wanted), default=0) or 1.0
        errors.append(max(float(np.max(block, initial=0)) for block in off) / largest)
        covered += [bool(ok) for d, e in zip(off, estimates, strict=True) for ok in np.ravel(d <= e[0])]
    return errors, covered


def narrow(array: Any, dtype: str) -> Any:
    if array.dtype.kind == "f":
        return array.astype(dtype)
    return array.astype(np.int32) if array.dtype.kind == "i" and dtype != "float64" else array


@pytest.mark.parametrize(
    ("scheme", "dtype", "scenarios", "median"),
    [
        (CENTRAL, "float64", SCENARIOS, 1e-8),
        (FORWARD, "float64", SCENARIOS[::5], 1e-6),
        (RIDDERS, "float64", SCENARIOS[::4], 1e-10),
        (CENTRAL, "float32", SCENARIOS[::4], 1e-4),
        (RIDDERS, "float32", SCENARIOS[2::8], 1e-5),
    ],
    ids=["central", "forward", "ridders", "central float32", "ridders float32"],
)  # fmt: skip
def test_the_catalogue_is_met_and_the_errors_cover_it(scheme: Any, dtype: str, scenarios: Any, median: float) -> None:
    errors, covered = [], []
    for scenario in scenarios:
        if any(array.dtype.kind == "f" for array in scenario.points[0].values()):
            off, each = of_catalogue(scenario, scheme, dtype)
            errors += off
            covered += each

    assert np.median(errors) <= median
    assert np.mean(covered) >= 0.95


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_gradient(scheme: Any) -> None:
    (value,), gradient, errors, (norms,) = answer(of_energy(OPERATOR_GRADIENT, scheme), X, Y, 0)

    assert value == pytest.approx(np.sum(np.sin(X)) * Y + X[0] * X[1] ** 2 + Y**3)
    assert_near(gradient, [GRADIENT_X, GRADIENT_Y], errors, scheme)
    each = [np.linalg.norm(part) for part in gradient]
    np.testing.assert_allclose(norms, [np.linalg.norm(each), *each], rtol=1e-15)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_jacobian_of_several_outputs(scheme: Any) -> None:
    query = query_of(
        curves, OPERATOR_JACOBIAN, (spec((2,)), spec()), outputs=(0, 1), differences=Differences(scheme)
    )  # fmt: skip
    a, b, y = 0.5, -2.0, 3.0

    (p, q), blocks, errors = answer(query, [a, b], y, 0)

    np.testing.assert_allclose([*p, q], [a**2 * b, b**3, a * y])
    wanted = [np.array([[2 * a * b, a**2], [0, 3 * b**2]]), np.zeros(2), np.array([y, 0]), a]
    assert_near(blocks, wanted, errors, scheme)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_hessian_is_symmetric_and_comes_with_the_gradient(scheme: Any) -> None:
    _, gradient, blocks, errors = answer(of_energy(OPERATOR_HESSIAN, scheme), X, Y, 0)

    np.testing.assert_allclose(gradient[0], GRADIENT_X, rtol=1e-6, atol=1e-6)
    loose = {CENTRAL: 1e-5, FORWARD: 1e-3, RIDDERS: 1e-8}[scheme]
    wanted = [HESSIAN_XX, HESSIAN_XY, HESSIAN_XY, HESSIAN_YY]
    for one, truth, error in zip(blocks, wanted, errors, strict=True):
        np.testing.assert_allclose(one, truth, rtol=loose, atol=loose)
        assert np.all(np.abs(one - truth) <= error)
    np.testing.assert_array_equal(blocks[0], blocks[0].T)
    np.testing.assert_array_equal(blocks[1], blocks[2])


def test_a_block_of_a_hessian_has_rows_and_columns_of_its_own() -> None:
    _, gradient, blocks, errors = answer(of_energy(OPERATOR_HESSIAN, RIDDERS, wrt=(1,), columns=(0,)), X, Y, 0)

    assert_near(gradient, [GRADIENT_Y], [1e-6], RIDDERS)
    assert_near(blocks, [HESSIAN_XY], errors, RIDDERS)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("stacked", [False, True])
def test_products_with_tangents(scheme: Any, stacked: bool) -> None:
    along = lambda vector: np.stack([vector, -2 * np.asarray(vector)]) if stacked else vector
    options: dict[str, Any] = {"vectors": (0, 1), "stack": 2 if stacked else None}
    products = [HESSIAN_XX @ VX + HESSIAN_XY * VY, HESSIAN_XY @ VX + HESSIAN_YY * VY]

    _, jvp, jvp_errors = answer(of_energy(OPERATOR_JVP, scheme, **options), X, Y, along(VX), along(VY), 0)
    _, _, hvp, hvp_errors = answer(of_energy(OPERATOR_HVP, scheme, **options), X, Y, along(VX), along(VY), 0)

    rate = GRADIENT_X @ VX + GRADIENT_Y * VY
    assert_near(jvp, [along(rate)], jvp_errors, scheme)
    for one, truth, error in zip(hvp, products, hvp_errors, strict=True):
        np.testing.assert_allclose(one, along(truth), rtol=1e-2 if scheme == FORWARD else 1e-5)
        assert np.all(np.abs(one - along(truth)) <= error)


def test_a_tangent_of_zeros_gives_zero() -> None:
    query = of_energy(OPERATOR_JVP, CENTRAL, vectors=(0,), wrt=(0,))

    _, (product,), (error,) = answer(query, X, Y, np.zeros(3), 0)

    assert product == 0
    assert 0 <= error < 1e-6


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, jnp.bfloat16])
@pytest.mark.parametrize("x", [1.0, -12345.0, 3e-4])
def test_steps_are_what_the_machine_holds(dtype: Any, x: float) -> None:
    def itself(x: Float[Array, ""]) -> Float[Array, ""]:
        return x

    query = query_of(itself, OPERATOR_GRADIENT, (spec((), dtype),), differences=Differences(CENTRAL))

    _, (slope,), _, _ = answer(query, np.asarray(x, dtype), 0)

    assert float(slope) == pytest.approx(1, rel=4 * float(np.finfo(np.float16 if dtype == jnp.bfloat16 else dtype).eps))


@pytest.mark.parametrize(("absolute", "wanted"), [(False, 2e3 + 1000 * 0.5), (True, 2e3 + 0.5)])
def test_a_step_is_relative_or_absolute(absolute: bool, wanted: float) -> None:
    def square(x: Float[Array, ""]) -> Float[Array, ""]:
        return x**2

    query = query_of(square, OPERATOR_GRADIENT, (spec(),), differences=Differences(FORWARD, absolute))

    _, (slope,), (error,), _ = answer(query, 1000.0, 0.5)

    assert slope == pytest.approx(wanted, rel=1e-12)  # ((x + h)² − x²) / h = 2x + h
    assert error == pytest.approx(wanted - 2e3, rel=1e-6)


def test_steps_beyond_the_domain_are_passed_over() -> None:
    def logarithm(x: Float[Array, ""]) -> Float[Array, ""]:
        return jnp.log(x)

    query = query_of(logarithm, OPERATOR_GRADIENT, (spec(),), differences=Differences(RIDDERS))

    _, (slope,), (error,), _ = answer(query, 0.03125, 0)

    assert abs(slope - 32) <= error
    assert slope == pytest.approx(32, rel=1e-9)


def test_where_there_is_no_value_there_is_no_derivative_and_the_error_says_so() -> None:
    def root(x: Float[Array, ""]) -> Float[Array, ""]:
        return jnp.sqrt(x)

    for scheme in SCHEMES:
        query = query_of(root, OPERATOR_GRADIENT, (spec(),), differences=Differences(scheme))
        _, (slope,), (error,), _ = answer(query, -1.0, 0)
        assert math.isnan(slope)
        assert not error < math.inf


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(
    ("operator", "options"),
    [
        (OPERATOR_GRADIENT, {}),
        (OPERATOR_HESSIAN, {}),
        (OPERATOR_HESSIAN, {"wrt": (0,), "columns": (1,)}),
        (OPERATOR_JVP, {"vectors": (0,), "stack": 3}),
        (OPERATOR_HVP, {"vectors": (0, 1), "stack": 2}),
    ],
)
def test_the_number_of_evaluations_is_what_it_is_said_to_be(operator: Any, options: Any, scheme: Any) -> None:
    seen: list[int] = []

    def counted(x: Any, y: Any) -> Any:
        seen.append(np.size(y))
        return np.sum(x, axis=-1) * y

    def watched(x: Float[Array, "2"], y: Float[Array, ""]) -> Float[Array, ""]:
        return jax.pure_callback(counted, jax.ShapeDtypeStruct((), y.dtype), x, y, vmap_method="broadcast_all")

    query = query_of(watched, operator, (spec((2,)), spec()), differences=Differences(scheme), **options)
    program = compile_program(trace(query, {}), 1, MEMORY)
    seen.clear()
    program.run([np.ones((1, *given.shape)) for given in query.arrays])

    assert sum(seen) == evaluations(query)


def test_an_input_without_elements_has_a_gradient_without_elements() -> None:
    def total(x: Float[Array, "n"], y: Float[Array, ""]) -> Float[Array, ""]:
        return jnp.sum(x) + y

    for operator, errors in ((OPERATOR_GRADIENT, 2), (OPERATOR_HESSIAN, 3)):
        query = query_of(total, operator, (spec((0,)), spec()), wrt=(0,), differences=Differences(RIDDERS))
        found = answer(query, np.zeros(0), 1.0, 0)
        assert [array.size for array in found[errors]] == [0]
