"""What a Hessian looks like, in numbers: symmetric or not, the signs of its eigenvalues, its condition."""

import enum
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nablad.tensors import Array

ASYMMETRIC, COARSE = 1000.0, 0.1
"""Elements that mirror each other may differ by so many units of rounding of the largest, but by no more than this part
of it: they are computed along different ways, with errors that add up along each."""


class Definiteness(enum.Enum):
    """The signs of the eigenvalues of a symmetric matrix."""

    POSITIVE_DEFINITE = enum.auto()
    POSITIVE_SEMIDEFINITE = enum.auto()
    ZERO = enum.auto()
    NEGATIVE_SEMIDEFINITE = enum.auto()
    NEGATIVE_DEFINITE = enum.auto()
    INDEFINITE = enum.auto()
    UNDEFINED = enum.auto()
    """An element is NaN or infinite."""


@dataclass(frozen=True, slots=True)
class Curvature:
    """A Hessian at one point. The attributes are those of nablad.v1.Curvature."""

    size: int
    asymmetry: float
    symmetric: bool
    definiteness: Definiteness
    smallest_eigenvalue: float
    largest_eigenvalue: float
    condition_number: float
    negative: int
    zero: int
    positive: int


def curvatures(matrices: Array, rounding: float) -> list[Curvature]:
    """What each of some Hessians, [points, n, n] and float64, looks like.

    `rounding` is the unit of rounding of the dtype in which they were computed: eigenvalues up to n times that of the
    largest in magnitude count as zero.
    """
    finite = [bool(np.isfinite(matrix).all()) for matrix in matrices]
    halves = matrices[finite] / 2  # before they are added: a sum may overflow
    eigenvalues = iter(np.linalg.eigvalsh(halves + halves.transpose(0, 2, 1)))
    return [
        _curvature(matrix, next(eigenvalues), rounding) if regular else _undefined(len(matrix))
        for matrix, regular in zip(matrices, finite, strict=True)
    ]


def rounding_of(blocks: Sequence[Array]) -> float:
    """The unit of rounding of the coarsest dtype among these: the distance from 1 to the next number."""
    return max(float(np.spacing(np.ones((), block.dtype))) for block in blocks)


def _curvature(matrix: Array, eigenvalues: Array, rounding: float) -> Curvature:
    largest = float(np.max(np.abs(matrix), initial=0.0))
    apart = np.abs(matrix / 2 - matrix.T / 2)
    asymmetry = float(np.max(apart)) / largest * 2 if largest else 0.0
    magnitudes = np.abs(eigenvalues)
    tolerance = len(eigenvalues) * rounding * float(np.max(magnitudes))
    zero = magnitudes <= tolerance
    positive, negative = int(np.sum((eigenvalues > 0) & ~zero)), int(np.sum((eigenvalues < 0) & ~zero))
    zeros = int(np.sum(zero))
    return Curvature(
        size=len(matrix),
        asymmetry=asymmetry,
        symmetric=asymmetry <= min(ASYMMETRIC * rounding, COARSE),
        definiteness=_definiteness(negative, zeros, positive),
        smallest_eigenvalue=float(eigenvalues[0]),
        largest_eigenvalue=float(eigenvalues[-1]),
        condition_number=float("inf") if zeros else float(np.max(magnitudes)) / float(np.min(magnitudes)),
        negative=negative,
        zero=zeros,
        positive=positive,
    )


def _definiteness(negative: int, zero: int, positive: int) -> Definiteness:
    if negative and positive:
        return Definiteness.INDEFINITE
    if positive:
        return Definiteness.POSITIVE_SEMIDEFINITE if zero else Definiteness.POSITIVE_DEFINITE
    if negative:
        return Definiteness.NEGATIVE_SEMIDEFINITE if zero else Definiteness.NEGATIVE_DEFINITE
    return Definiteness.ZERO


def _undefined(size: int) -> Curvature:
    nan = float("nan")
    return Curvature(
        size=size,
        asymmetry=nan,
        symmetric=False,
        definiteness=Definiteness.UNDEFINED,
        smallest_eigenvalue=nan,
        largest_eigenvalue=nan,
        condition_number=nan,
        negative=0,
        zero=0,
        positive=0,
    )
