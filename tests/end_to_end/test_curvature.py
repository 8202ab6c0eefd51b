"""SummarizeCurvature through both clients: Hessians whose eigenvalues are known."""

import asyncio
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nablad
from expectations import Case
from nablad.errors import NotScalar, ResultTooLarge, UnknownInput, WrongShape
from scenarios import SCENARIOS
from servers import ServerProcess

FUNCTIONS = Path(__file__).with_name("layered_functions.py")
random = np.random.default_rng(17)


@pytest.fixture(scope="module")
def curved() -> Iterator[nablad.Client]:
    with ServerProcess(FUNCTIONS) as process, nablad.Client(process.address, timeout=120) as client:
        yield client
        assert process.errors() == []


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize(
    ("spectrum", "definiteness"),
    [
        ([1.0, 2.0, 10.0], "positive_definite"),
        ([1.0, 0.0, 0.0], "positive_semidefinite"),
        ([0.0, 0.0], "zero"),
        ([-1.0, 0.0], "negative_semidefinite"),
        ([-1.0, -2.0], "negative_definite"),
        ([-1.0, 2.0], "indefinite"),
    ],
)
def test_quadratics(curved: nablad.Client, spectrum: list[float], definiteness: str, dtype: Any) -> None:
    matrix, x = np.diag(spectrum).astype(dtype), np.ones(len(spectrum), dtype)

    found = curved.curvature("quadratic", matrix, x, wrt="x")

    assert (found.function, found.size) == ("quadratic@1", len(spectrum))
    assert found.definiteness == definiteness
    assert (found.convex, found.concave) == (min(spectrum) >= 0, max(spectrum) <= 0)
    assert (found.smallest_eigenvalue, found.largest_eigenvalue) == (min(spectrum), max(spectrum))
    assert (found.negative, found.positive) == (sum(e < 0 for e in spectrum), sum(e > 0 for e in spectrum))
    assert found.zero == spectrum.count(0.0)
    sizes = [abs(e) for e in spectrum]
    assert found.condition_number == (math.inf if 0 in sizes else max(sizes) / min(sizes))
    assert found.gradient_norm == pytest.approx(np.linalg.norm(spectrum), rel=1e-6)
    assert (found.symmetric, found.asymmetry) == (True, 0)


def test_rosenbrock_at_its_minimum(client: nablad.Client) -> None:
    found = client.curvature("rosenbrock", [1.0, 1.0])

    # The Hessian is [[802, -400], [-400, 200]]: trace 1002, determinant 400.
    root = math.sqrt(501**2 - 400)
    assert found.definiteness == "positive_definite"
    assert found.smallest_eigenvalue == pytest.approx(400 / (501 + root), rel=1e-10)
    assert found.largest_eigenvalue == pytest.approx(501 + root, rel=1e-14)
    assert found.condition_number == pytest.approx((501 + root) ** 2 / 400, rel=1e-10)
    assert found.gradient_norm == 0
    assert found.execution.function == "rosenbrock@1"


def test_every_point_of_a_batch_has_its_own(client: nablad.Client) -> None:
    points = np.array([[0.0, 0.0], [1.0, 1.0], [0.0, 1.0]])

    found = client.curvature("rosenbrock", points, batched=True)

    # [[1200 x² - 400 y + 2, -400 x], [-400 x, 200]]
    assert [point.definiteness for point in found] == ["positive_definite", "positive_definite", "indefinite"]
    assert [point.smallest_eigenvalue for point in found[::2]] == [2, -398]
    assert [point.largest_eigenvalue for point in found[::2]] == [200, 200]
    (one,) = client.curvature("rosenbrock", points[2:], batched=True)
    assert one.definiteness == "indefinite"


def test_several_inputs_make_one_matrix(curved: nablad.Client) -> None:
    mask = np.array([True, False, True])

    found = curved.curvature("product_of_two", 2.0, [1.0, 5.0, 3.0], mask)

    # Over (a, b₀, b₁, b₂) all is 0 but 1 between a and the b that the mask lets through: eigenvalues ±√2, 0, 0.
    assert found.size == 4
    assert (found.negative, found.zero, found.positive) == (1, 2, 1)
    assert found.smallest_eigenvalue == pytest.approx(-math.sqrt(2), rel=1e-14)
    assert found.largest_eigenvalue == pytest.approx(math.sqrt(2), rel=1e-14)
    assert found.gradient_norm == pytest.approx(math.sqrt(4**2 + 2**2 + 2**2))
    alone = curved.curvature("product_of_two", 2.0, [1.0, 5.0, 3.0], mask, wrt="a")
    assert (alone.size, alone.definiteness, alone.gradient_norm) == (1, "zero", 4)


def test_a_wrong_derivative_rule_is_not_symmetric(curved: nablad.Client) -> None:
    found = curved.curvature("crossed", [1.0, 2.0])

    # By the rule the gradient is (3 x₁, x₀), and its derivative [[0, 3], [1, 0]].
    assert found.asymmetry == pytest.approx(2 / 3, rel=1e-15)
    assert not found.symmetric
    assert found.definiteness == "indefinite"
    assert [found.smallest_eigenvalue, found.largest_eigenvalue] == pytest.approx([-2, 2])


def test_a_hessian_that_is_infinite_is_undefined(curved: nablad.Client) -> None:
    good, bad = curved.curvature("square_root", np.array([4.0, 0.0]), batched=True)

    assert good.definiteness == "negative_definite"
    assert good.smallest_eigenvalue == pytest.approx(-1 / 32, rel=1e-14)
    assert (bad.definiteness, bad.symmetric, bad.convex, bad.concave) == ("undefined", False, False, False)
    assert all(map(math.isnan, (bad.smallest_eigenvalue, bad.largest_eigenvalue, bad.condition_number, bad.asymmetry)))


@pytest.mark.parametrize("scenario", [s for s in SCENARIOS if s.hessian], ids=lambda scenario: scenario.function)
def test_the_whole_catalogue_is_symmetric_and_has_the_eigenvalues_of_the_closed_form(
    client: nablad.Client, scenario: Any
) -> None:
    for dtype in {"float64", "float32"} & set(scenario.dtypes):
        found = client.curvature(scenario.function, **Case(scenario, dtype).arguments(scenario.points), batched=True)
        assert all(point.symmetric for point in found)
        if dtype == "float64":
            for values, point in zip(scenario.points, found, strict=True):
                expected = np.linalg.eigvalsh(matrix_of(scenario.hessian(values), values))
                scale = np.max(np.abs(expected)) or 1.0
                assert point.smallest_eigenvalue == pytest.approx(expected[0], abs=1e-9 * scale)
                assert point.largest_eigenvalue == pytest.approx(expected[-1], abs=1e-9 * scale)


def matrix_of(blocks: Any, values: Any) -> nablad.tensors.Array:
    """The matrix of a table of blocks by pairs of names."""
    names = [name for name, array in values.items() if array.dtype.kind == "f"]
    rows = [
        np.concatenate([blocks[row, column].reshape(values[row].size, -1) for column in names], axis=1) for row in names
    ]
    return np.concatenate(rows)


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"function": "rosenbrock", "x": np.ones(2049)}, ResultTooLarge, "2049 rows here; .* at most 2048"),
        (
            {"function": "rosenbrock", "x": np.ones((5, 2048)), "batched": True},
            ResultTooLarge,
            "at no more than 4 points",
        ),
        ({"function": "rosenbrock", "x": np.ones(0)}, WrongShape, "has no rows here"),
        ({"function": "softmax", "x": np.ones(3)}, NotScalar, "not a scalar"),
        ({"function": "rosenbrock", "x": np.ones(3), "wrt": "y"}, UnknownInput, "has no input 'y'"),
        ({"function": "rosenbrock", "x": np.ones((3, 3))}, WrongShape, "expected"),
    ],
)
def test_what_cannot_be_asked(
    client: nablad.Client, arguments: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        client.curvature(**arguments)


def test_the_asyncio_client_and_handles_are_told_the_same(client: nablad.Client, server_address: str) -> None:
    x = random.normal(size=5)

    async def ask() -> nablad.Curvature:
        async with nablad.aio.Client(server_address) as twin:
            return await twin.curvature("rosenbrock", x)

    one, other = asyncio.run(ask()), client.function("rosenbrock").curvature(x)
    for field in ("size", "definiteness", "smallest_eigenvalue", "largest_eigenvalue", "gradient_norm"):
        assert getattr(one, field) == getattr(other, field)
