"""What is said of matrices whose eigenvalues are known."""

import math

import numpy as np
import pytest

from nablad_server.diagnosis.curvature import Definiteness, curvatures, rounding_of
from nablad_server.diagnosis.matrices import assembled

EPS = 2.0**-52
random = np.random.default_rng(3)


def with_spectrum(*eigenvalues: float) -> np.ndarray:
    """A matrix that has them, and is full."""
    rotation, _ = np.linalg.qr(random.normal(size=(len(eigenvalues), len(eigenvalues))))
    return rotation @ np.diag(eigenvalues) @ rotation.T


@pytest.mark.parametrize(
    ("spectrum", "definiteness", "counts", "condition"),
    [
        ((3.0, 1.0, 0.5), "POSITIVE_DEFINITE", (0, 0, 3), 6.0),
        ((3.0, 1.0, 0.0), "POSITIVE_SEMIDEFINITE", (0, 1, 2), math.inf),
        ((0.0, 0.0, 0.0), "ZERO", (0, 3, 0), math.inf),
        ((-3.0, 0.0, -1.0), "NEGATIVE_SEMIDEFINITE", (2, 1, 0), math.inf),
        ((-3.0, -0.25, -1.0), "NEGATIVE_DEFINITE", (3, 0, 0), 12.0),
        ((-8.0, 2.0, 1.0), "INDEFINITE", (1, 0, 2), 8.0),
        ((-8.0, 2.0, 0.0), "INDEFINITE", (1, 1, 1), math.inf),
        ((5.0,), "POSITIVE_DEFINITE", (0, 0, 1), 1.0),
        ((-1e-300,), "NEGATIVE_DEFINITE", (1, 0, 0), 1.0),
        ((1e300, 1e299), "POSITIVE_DEFINITE", (0, 0, 2), 10.0),
    ],
)
def test_the_signs_of_the_eigenvalues(
    spectrum: tuple[float, ...], definiteness: str, counts: tuple[int, int, int], condition: float
) -> None:
    (found,) = curvatures(with_spectrum(*spectrum)[None], EPS)

    assert found.definiteness is Definiteness[definiteness]
    assert (found.negative, found.zero, found.positive) == counts
    scale = max(map(abs, spectrum))
    assert found.smallest_eigenvalue == pytest.approx(min(spectrum), abs=1e-14 * scale)
    assert found.largest_eigenvalue == pytest.approx(max(spectrum), abs=1e-14 * scale)
    assert found.condition_number == pytest.approx(condition, rel=1e-13)
    assert found.size == len(spectrum)
    assert found.symmetric


@pytest.mark.parametrize(("small", "zero"), [(3.9, 1), (4.1, 0)])
def test_an_eigenvalue_counts_as_zero_up_to_n_units_of_rounding(small: float, zero: int) -> None:
    matrix = np.diag([small * 2.0**-23, 1.0, 0.5, 0.25])
    (found,) = curvatures(matrix[None], 2.0**-23)
    assert found.zero == zero


def test_asymmetry_is_relative_and_its_half_does_not_count() -> None:
    matrix = np.array([[4.0, 1.0], [2.0, 4.0]])

    (found,) = curvatures(matrix[None], EPS)

    assert found.asymmetry == 0.25
    assert not found.symmetric
    assert [found.smallest_eigenvalue, found.largest_eigenvalue] == pytest.approx([2.5, 5.5])


def test_rounding_is_no_asymmetry() -> None:
    matrix = np.array([[1.0, 0.5], [0.5 * (1 + 100 * EPS), 1.0]])
    (fine,) = curvatures(matrix[None], EPS)
    (wrong,) = curvatures(np.array([[[1.0, 0.5], [0.5 * (1 + 1e-9), 1.0]]]), EPS)
    (coarse,) = curvatures(np.array([[[1.0, 0.5], [0.7, 1.0]]]), 2.0**-7)
    assert (fine.symmetric, wrong.symmetric, coarse.symmetric) == (True, False, False)


def test_points_that_are_not_finite_are_told_apart() -> None:
    good = np.diag([1.0, 2.0])
    for bad in (math.nan, math.inf):
        broken = np.array([[1.0, bad], [0.0, 1.0]])
        first, middle, last = curvatures(np.stack([good, broken, -good]), EPS)
        assert first.definiteness is Definiteness.POSITIVE_DEFINITE
        assert last.definiteness is Definiteness.NEGATIVE_DEFINITE
        assert middle.definiteness is Definiteness.UNDEFINED
        assert math.isnan(middle.smallest_eigenvalue)
        assert math.isnan(middle.condition_number)
        assert (middle.negative, middle.zero, middle.positive, middle.symmetric) == (0, 0, 0, False)


def test_blocks_become_one_matrix() -> None:
    matrix = random.normal(size=(2, 5, 5))
    shapes, ends = [(), (2, 2)], [0, 1, 5]
    blocks = [
        matrix[:, ends[i] : ends[i + 1], ends[j] : ends[j + 1]].reshape(2, *shapes[i], *shapes[j])
        for i in (0, 1)
        for j in (0, 1)
    ]
    np.testing.assert_array_equal(assembled(blocks, [1, 4], [1, 4]), matrix)


def test_the_coarsest_dtype_rounds() -> None:
    assert rounding_of([np.zeros(2), np.zeros(2, np.float32)]) == 2.0**-23
