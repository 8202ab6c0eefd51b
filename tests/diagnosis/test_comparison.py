"""What samples along a line say: of smooth functions, corners, jumps, noise, and derivatives that are wrong."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nablad_server.diagnosis.check import Point, lines_through
from nablad_server.diagnosis.comparison import Verdict

EPSILON = float(np.finfo(np.float64).eps)

Call = Callable[[Any], Any]


def verdict(value: Call, slope: float, x: float, dtype: type = np.float64) -> Verdict:
    """The verdict on `slope` as the derivative of a function of one variable at x."""
    leaf: Any = np.asarray(x, dtype)
    sampled = lambda leaves: np.asarray(value(leaves[0]), dtype).reshape(-1, 1).astype(np.float64)
    with np.errstate(all="ignore"):
        point = Point([leaf], sampled([leaf[None]])[0], float(np.finfo(dtype).eps))
        along = lines_through([leaf], 1, 0, np.random.default_rng(0))
        (compared,) = point.compare(along, np.asarray([[slope]]), sampled)
    return Verdict(int(compared.verdicts[0]))


SMOOTH: list[tuple[Call, Call]] = [
    (np.sin, np.cos),
    (np.exp, np.exp),
    (np.tanh, lambda x: 1 / np.cosh(x) ** 2),
    (lambda x: x**3, lambda x: 3 * x**2),
    (lambda x: 1 / (1 + x**2), lambda x: -2 * x / (1 + x**2) ** 2),
]


@given(
    which=st.integers(0, len(SMOOTH) - 1),
    x=st.floats(-3, 3),
    units=st.integers(-26, 26),
    outputs=st.integers(-26, 26),
    factor=st.sampled_from([1.0, 1.01, 0.99, -1.0, 2.0, 1 + 1e-7]),
)
def test_right_derivatives_pass_and_wrong_ones_do_not_whatever_the_units(
    which: int, x: float, units: int, outputs: int, factor: float
) -> None:
    value, slope = SMOOTH[which]
    derivative = float(slope(x))
    if abs(derivative * x) < 1e-3 * abs(value(x)) or abs(x) < 1e-3:
        return  # so close to an extremum, or to zero, that the derivative is judged by what matters
    input_unit, output_unit = 2.0**units, 2.0**outputs
    scaled = lambda z: output_unit * value(z / input_unit)
    claimed = factor * derivative * output_unit / input_unit
    assert verdict(scaled, claimed, x * input_unit) == (Verdict.PASS if factor == 1.0 else Verdict.WRONG)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize(
    ("value", "slope", "x"),
    [
        (np.abs, 1.0, 0.0),
        (lambda x: np.maximum(x, 0), 0.0, 0.0),
        (lambda x: np.maximum(x, 0), 0.5, 0.0),  # agrees with central differences, and is none all the same
        (lambda x: np.abs(x - 1), 0.0, 1.0),
        (np.floor, 0.0, 2.0),
        (np.sign, 0.0, 0.0),
        (np.sqrt, np.inf, 0.0),
        (lambda x: np.sqrt(np.abs(x)), np.nan, 0.0),
        (np.cbrt, np.inf, 0.0),
        (np.log, np.inf, 0.0),
    ],
)
def test_where_there_is_no_derivative_there_is_a_kink(value: Call, slope: float, x: float, dtype: type) -> None:
    assert verdict(value, slope, x, dtype) == Verdict.KINK


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize(
    ("value", "slope", "x"),
    [
        (lambda x: 3.0 + 0 * x, 0.0, 1.0),
        (np.square, 0.0, 0.0),
        (np.floor, 0.0, 1.5),
        (lambda x: np.maximum(x, 0), 1.0, 0.5),
        (lambda x: np.maximum(x, 0), 0.0, -1e-3),
        (lambda x: np.abs(x) ** 3, 0.0, 0.0),
        (lambda x: np.cos(100 * x), float(-100 * np.sin(100.0)), 1.0),
    ],
)
def test_what_is_smooth_there_passes(value: Call, slope: float, x: float, dtype: type) -> None:
    assert verdict(value, slope, x, dtype) == Verdict.PASS


def test_a_nan_where_differences_have_a_number_is_wrong() -> None:
    assert verdict(lambda x: np.where(x > 0, x, 0.0), np.nan, -1.0) == Verdict.WRONG


def test_a_derivative_that_noise_hides_is_noisy_and_neither_passes_nor_fails() -> None:
    random = np.random.default_rng(1)
    noisy = lambda x: np.sin(x) + 1e-3 * random.standard_normal(np.shape(x))
    assert verdict(noisy, np.cos(1.0) * 1.002, 1.0) == Verdict.NOISY
    drowned = lambda x: 1e-9 * np.sin(x) + 1e-3 * random.standard_normal(np.shape(x))
    assert verdict(drowned, 1e-9 * np.cos(1.0), 1.0) == Verdict.NOISY


def test_a_derivative_that_is_far_off_is_wrong_in_spite_of_noise() -> None:
    random = np.random.default_rng(1)
    noisy = lambda x: np.sin(x) + 1e-6 * random.standard_normal(np.shape(x))
    assert verdict(noisy, 2 * np.cos(1.0), 1.0) == Verdict.WRONG


def test_values_in_float32_do_not_vouch_for_a_float64_derivative() -> None:
    rounded = lambda x: np.sin(x.astype(np.float32)).astype(np.float64)
    assert verdict(rounded, float(np.cos(1.3)), 1.3) != Verdict.PASS


def test_terms_that_cancel_leave_their_noise_behind() -> None:
    """A sum of large terms that is small: its rounding is theirs, and no derivative is called wrong for it."""
    random = np.random.default_rng(2)
    for _ in range(50):
        terms = random.standard_normal(6)
        terms[-1] = -terms[:-1].sum() * (1 - 1e-9)
        sampled = lambda leaves, terms=terms: (leaves[0] * terms).sum(axis=1, keepdims=True)
        leaf = np.ones(6)
        point = Point([leaf], sampled([leaf[None]])[0], EPSILON)
        found = point.compare(lines_through([leaf], 6, 4, random), terms[None], sampled)
        assert {int(v) for one in found for v in one.verdicts} == {Verdict.PASS}


def test_a_fault_in_one_of_many_elements_shows_along_directions() -> None:
    """So elements need not all be moved: a thousand, of which eight are looked at one by one."""
    leaf = np.linspace(0.5, 1.5, 1000)
    sampled = lambda leaves: np.sin(leaves[0]).sum(axis=1, keepdims=True)
    jacobian = np.cos(leaf)[None].copy()
    point = Point([leaf], sampled([leaf[None]])[0], EPSILON)
    along = lines_through([leaf], 8, 4, np.random.default_rng(0))
    assert all((one.verdicts == Verdict.PASS).all() for one in point.compare(along, jacobian, sampled))
    moved = {one.element for one in along if one.name is not None}
    jacobian[0, next(index for index in range(1000) if index not in moved)] *= 1.01
    wrong = [one.line.name for one in point.compare(along, jacobian, sampled) if (one.verdicts == Verdict.WRONG).any()]
    assert wrong == [None] * 4
