"""The numerical policy, statement by statement: docs/numerics.md names a test of this file for each."""

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy import special

import nablad
from nablad.errors import NotDifferentiable, WrongDtype
from servers import ServerProcess

ROOT = Path(__file__).parents[2]
FUNCTIONS = Path(__file__).with_name("policy_functions.py")

INF, NAN = math.inf, math.nan
LARGE = np.array([1000.0, 1001.0, 1002.0])
SHARES = special.softmax(LARGE)

WIDE: tuple[type[np.floating[Any]], ...] = (np.float64, np.float32)
DTYPES: tuple[type[np.floating[Any]], ...] = (*WIDE, np.float16)


@pytest.fixture(scope="module")
def policy() -> Iterator[nablad.Client]:
    """A client of a server with the catalogue and this folder's functions."""
    with ServerProcess(FUNCTIONS) as process, nablad.Client(process.address, timeout=120) as client:
        yield client
        assert process.errors() == []


def subnormal(dtype: type[np.floating[Any]]) -> Any:
    """A quarter of the smallest normal number: itself exact."""
    return dtype(float(np.finfo(dtype).tiny) / 4)


def test_the_page_names_these_tests_and_no_others() -> None:
    page = (ROOT / "docs" / "numerics.md").read_text()
    here = set(re.findall(r"^def (test_\w+)", Path(__file__).read_text(), re.MULTILINE))
    assert set(re.findall(r"test_\w+(?!\w*\.py)\b", page.replace("test_policy.py", ""))) == here - {
        "test_the_page_names_these_tests_and_no_others"
    }


# NaN and the infinities


@pytest.mark.parametrize("x", [INF, -INF, NAN])
@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_and_infinities_are_taken_and_given(policy: nablad.Client, x: float, dtype: type[np.floating[Any]]) -> None:
    found = policy.gradient("same", dtype(x))
    assert_array_equal(found.value, x)
    assert found.value.dtype == dtype
    assert found.gradient == 1
    assert found.non_finite


def test_non_finite_speaks_of_the_answer_and_not_of_the_input(policy: nablad.Client) -> None:
    found = policy.gradient("tanh", np.array([-INF, INF]), batched=True)
    assert_array_equal(found.value, [-1, 1])
    assert_array_equal(found.gradient, [0, 0])
    assert not found.non_finite
    assert policy.gradient("root", 0.0).non_finite  # the value is 0; the slope is not finite


def test_a_point_that_is_not_finite_leaves_the_others_of_its_batch_alone(policy: nablad.Client) -> None:
    found = policy.gradient("square", np.array([1.0, NAN, 3.0, INF]), batched=True)
    assert_array_equal(found.value, [1, NAN, 9, INF])
    assert_array_equal(found.gradient, [2, NAN, 6, INF])
    assert found.non_finite


def test_the_sign_of_zero_is_kept(policy: nablad.Client) -> None:
    assert math.copysign(1, policy.evaluate("same", -0.0).value) == -1
    assert policy.evaluate("reciprocal", np.array([0.0, -0.0]), batched=True).value.tolist() == [INF, -INF]


# Subnormal numbers


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("function", ["same", "absolute"])
def test_subnormals_survive_the_wire_and_what_only_moves_them(
    policy: nablad.Client, function: str, dtype: type[np.floating[Any]]
) -> None:
    tiny = subnormal(dtype)
    assert policy.evaluate(function, tiny).value == tiny != 0
    assert_array_equal(policy.evaluate(function, np.full(16, tiny, dtype), batched=True).value, np.full(16, tiny))


@pytest.mark.parametrize("dtype", WIDE)
def test_subnormals_are_zero_to_float64_and_float32_arithmetic(
    policy: nablad.Client, dtype: type[np.floating[Any]]
) -> None:
    tiny, one = subnormal(dtype), dtype(1)
    assert policy.evaluate("product", tiny, one).value == 0
    assert policy.evaluate("total", np.array([tiny, 0], dtype)).value == 0
    assert policy.evaluate("square", tiny).value == 0
    assert policy.evaluate("reciprocal", tiny).value == INF
    assert policy.evaluate("root", tiny).value == 0


@pytest.mark.parametrize("dtype", WIDE)
def test_results_below_the_smallest_normal_number_are_zero(
    policy: nablad.Client, dtype: type[np.floating[Any]]
) -> None:
    smallest = dtype(np.finfo(dtype).tiny)
    assert policy.evaluate("half", smallest).value == 0
    assert_array_equal(policy.evaluate("half", np.full(16, smallest, dtype), batched=True).value, np.zeros(16))
    assert policy.evaluate("reciprocal", dtype(np.finfo(dtype).max)).value == 0


def test_float16_keeps_its_subnormals(policy: nablad.Client) -> None:
    tiny = subnormal(np.float16)
    assert policy.evaluate("half", tiny).value == tiny / 2 == 2.0**-17
    assert policy.evaluate("total", np.full(9, tiny, np.float16)).value == np.float16(9 * 2.0**-16)
    assert policy.gradient("square", tiny).gradient == 2 * tiny


# Overflow


@pytest.mark.parametrize("dtype", DTYPES)
def test_softmax_is_stable_at_1000(policy: nablad.Client, dtype: type[np.floating[Any]]) -> None:
    within = 4 * float(np.finfo(dtype).eps)
    softmax = policy.jacobian("softmax", LARGE.astype(dtype))
    assert_allclose(softmax.value, SHARES, rtol=within)
    assert_allclose(softmax.jacobian, np.diag(SHARES) - np.outer(SHARES, SHARES), atol=within)
    assert not softmax.non_finite


@pytest.mark.parametrize("dtype", DTYPES)
def test_log_sum_exp_is_stable_at_1000(policy: nablad.Client, dtype: type[np.floating[Any]]) -> None:
    within = 4 * float(np.finfo(dtype).eps)
    smooth = policy.gradient("logsumexp", LARGE.astype(dtype))
    assert_allclose(smooth.value, special.logsumexp(LARGE), rtol=within)
    assert_allclose(smooth.gradient, SHARES, rtol=within)
    assert_allclose(policy.evaluate("log_softmax", LARGE.astype(dtype)).value, special.log_softmax(LARGE), rtol=within)


@pytest.mark.parametrize("dtype", DTYPES)
def test_cross_entropies_are_stable_at_1000(policy: nablad.Client, dtype: type[np.floating[Any]]) -> None:
    """Hopelessly wrong predictions cost 1000, and their gradient is that of the text: p − y, over the examples."""
    many = policy.gradient("softmax_cross_entropy", np.array([[1000, 0, -1000]], dtype), np.array([1]))
    assert (many.value, many.gradient.tolist()) == (1000, [[1, -1, 0]])
    two = policy.gradient("binary_cross_entropy", np.array([1000, -1000], dtype), np.array([0, 1]))
    assert (two.value, two.gradient.tolist()) == (1000, [0.5, -0.5])
    assert not many.non_finite
    assert not two.non_finite


def test_a_formula_that_overflows_on_the_way_gives_inf_and_nan(policy: nablad.Client) -> None:
    naive = policy.gradient("naive_logsumexp", LARGE)
    assert naive.value == INF
    assert np.isnan(naive.gradient).all()
    long = policy.gradient("norm", [1e200, 1e200])
    assert (long.value, long.gradient.tolist()) == (INF, [0, 0])  # the true ones are 1.4e200 and 1/√2
    assert naive.non_finite
    assert long.non_finite


@pytest.mark.parametrize(("dtype", "x"), [(np.float64, 1e200), (np.float32, 1e20), (np.float16, 300)])
def test_overflow_is_infinity_and_a_slope_may_still_fit(
    policy: nablad.Client, dtype: type[np.floating[Any]], x: float
) -> None:
    found = policy.gradient("square", dtype(x))
    assert found.value == INF
    assert found.gradient == dtype(2) * dtype(x)
    assert found.non_finite


def test_float16_overflows_above_65504(policy: nablad.Client) -> None:
    assert policy.evaluate("same", np.float16(65504)).value == 65504
    assert policy.evaluate("product", np.float16(65504), np.float16(2)).value == INF
    assert policy.evaluate("total", np.full(60, 1000, np.float16)).value == np.float16(60_000)
    assert policy.evaluate("total", np.full(66, 1000, np.float16)).value == INF
    assert_allclose(policy.evaluate("exp", np.float16(11)).value, math.exp(11), rtol=1e-3)
    assert policy.evaluate("exp", np.float16(12)).value == INF


# Corners


def test_relu_has_the_slope_0_at_0(policy: nablad.Client) -> None:
    found = policy.gradient("relu", np.array([-0.0, 0.0, 5e-300]), batched=True)
    assert_array_equal(found.gradient, [0, 0, 1])
    assert policy.hessian("relu", 0.0).hessian == 0


def test_abs_has_the_slope_1_at_0(policy: nablad.Client) -> None:
    found = policy.gradient("absolute", np.array([-2.0, -0.0, 0.0, 2.0]), batched=True)
    assert_array_equal(found.gradient, [-1, 1, 1, 1])
    assert policy.hessian("absolute", 0.0).hessian == 0


def test_leaky_relu_has_the_slope_of_its_right_side_at_0(policy: nablad.Client) -> None:
    assert policy.gradient("leaky_relu", 0.0, 0.1, wrt="x").gradient == 1


def test_a_maximum_shares_its_slope_among_equals(policy: nablad.Client) -> None:
    assert policy.gradient("larger", 1.0, 1.0).gradient == {"x": 0.5, "y": 0.5}
    assert policy.gradient("larger", 1.0, 2.0).gradient == {"x": 0, "y": 1}


def test_a_step_has_the_slope_0_also_where_it_jumps(policy: nablad.Client) -> None:
    found = policy.gradient("stepped", np.array([1.0, 1.5]), batched=True)
    assert_array_equal(found.value, [1, 1])
    assert_array_equal(found.gradient, [0, 0])


def test_comparisons_with_nan_are_false_so_relu_and_abs_hide_it_in_the_slope(policy: nablad.Client) -> None:
    assert policy.gradient("relu", NAN).gradient == 0
    assert policy.gradient("absolute", NAN).gradient == -1
    assert policy.gradient("relu", NAN).non_finite  # the value is NaN


# Poles


def test_the_square_root_has_an_infinite_slope_at_0_and_is_nan_below(policy: nablad.Client) -> None:
    found = policy.gradient("root", np.array([0.0, -1.0]), batched=True)
    assert_array_equal(found.value, [0, NAN])
    assert_array_equal(found.gradient, [INF, NAN])


def test_the_norm_by_its_formula_has_a_nan_gradient_at_0_and_a_guarded_one_does_not(policy: nablad.Client) -> None:
    plain, guarded = policy.gradient("norm", [0.0, 0.0]), policy.gradient("safe_norm", [0.0, 0.0])
    assert (plain.value, guarded.value) == (0, 0)
    assert_array_equal(plain.gradient, [NAN, NAN])  # ∞ · 0
    assert_array_equal(guarded.gradient, [0, 0])
    assert plain.non_finite
    assert not guarded.non_finite
    assert_allclose(policy.gradient("safe_norm", [3.0, 4.0]).gradient, [0.6, 0.8], rtol=1e-15)


def test_division_by_zero_gives_infinity_and_zero_by_zero_nan(policy: nablad.Client) -> None:
    values = policy.evaluate("quotient", np.array([1.0, -1.0, 1.0, 0.0]), np.array([0.0, 0.0, -0.0, 0.0]), batched=True)
    assert_array_equal(values.value, [INF, -INF, -INF, NAN])
    slopes = policy.gradient("quotient", 1.0, 0.0).gradient
    assert slopes == {"x": INF, "y": -INF}
    assert policy.gradient("reciprocal", 0.0).gradient == -INF
    assert policy.gradient("ln", 0.0).gradient == INF


def test_the_power_0_is_1_with_the_slope_0_also_at_0_and_nan(policy: nablad.Client) -> None:
    found = policy.gradient("nothing_to_the_zero", np.array([0.0, INF, NAN]), batched=True)
    assert_array_equal(found.value, [1, 1, 1])
    assert_array_equal(found.gradient, [0, 0, 0])
    whole = policy.gradient("integer_power", np.zeros(3), np.array([0, 1, 2]), batched=True)
    assert_array_equal(whole.value, [1, 0, 0])
    assert_array_equal(whole.gradient, [0, 1, 0])


def test_a_real_exponent_of_0_at_0_has_no_slope(policy: nablad.Client) -> None:
    """n xⁿ⁻¹ is 0 · ∞; a whole exponent, as an integer, has the slope 0."""
    found = policy.gradient("power", 0.0, 0.0)
    assert found.value == 1
    assert math.isnan(found.gradient["x"])
    assert policy.gradient("power", 0.0, 2.0).gradient == {"x": 0, "n": 0}


def test_a_real_power_of_a_negative_number_has_no_slope_by_its_exponent(policy: nablad.Client) -> None:
    found = policy.gradient("power", -2.0, 2.0)
    assert (found.value, found.gradient["x"]) == (4, -4)
    assert math.isnan(found.gradient["n"])


# A branch not taken


@pytest.mark.parametrize("x", [0.0, -4.0])
def test_a_branch_not_taken_spoils_the_gradient(policy: nablad.Client, x: float) -> None:
    """0 · ∞ or 0 · NaN: the value is right, the gradient NaN, and the flag tells."""
    found = policy.gradient("guarded_root", x)
    assert found.value == 0
    assert math.isnan(found.gradient)
    assert found.non_finite


@pytest.mark.parametrize(("x", "value", "slope"), [(0.0, 0, 0), (-4.0, 0, 0), (4.0, 2, 0.25)])
def test_a_second_where_inside_the_first_mends_it(policy: nablad.Client, x: float, value: float, slope: float) -> None:
    found = policy.gradient("twice_guarded_root", x)
    assert (found.value, found.gradient) == (value, slope)
    assert not found.non_finite


# Integers and booleans


def test_integers_and_booleans_are_carried_and_not_differentiated(policy: nablad.Client) -> None:
    x, keep = np.array([1.0, 2.0, 3.0]), np.array([True, False, True])
    found = policy.gradient("carried", x, 3, keep)
    assert found.value == 30
    assert_array_equal(found.gradient, [6, 0, 18])
    assert found.gradient.dtype == np.float64
    for name in ("times", "keep"):
        with pytest.raises(NotDifferentiable, match=name):
            policy.gradient("carried", x, 3, keep, wrt=name)


def test_a_float_where_an_integer_or_a_boolean_belongs_is_refused(policy: nablad.Client) -> None:
    with pytest.raises(WrongDtype, match="times"):
        policy.gradient("carried", [1.0, 2.0], 3.5, [True, False])
    with pytest.raises(WrongDtype, match="keep"):
        policy.gradient("carried", [1.0, 2.0], 3, [1.0, 0.0])


def test_integers_wrap_around_and_nothing_flags_it(policy: nablad.Client) -> None:
    found = policy.evaluate("whole_product", np.int32(65536), np.int32(65536))
    assert (found.value, found.value.dtype) == (0, np.int32)
    assert not found.non_finite


def test_an_integer_divided_by_zero_is_a_number_without_meaning(policy: nablad.Client) -> None:
    assert policy.evaluate("whole_quotient", -7, 2).value == -4
    found = policy.evaluate("whole_quotient", 7, 0)
    assert found.value.dtype == np.int64
    assert not found.non_finite
