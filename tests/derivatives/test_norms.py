# ruff: noqa: F722, F821 - jaxtyping's shapes are strings, not forward references
"""Norms of gradients and clipped gradients, against NumPy where that can, and by hand where squares do not fit."""

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from jaxtyping import Array, Float
from numpy.testing import assert_allclose, assert_array_equal

from nablad.v1 import differentiation_pb2 as pb
from nablad.v1 import function_pb2
from nablad_server.derivatives.operators import result_bytes, result_specs
from nablad_server.derivatives.program import Program, compile_program, trace
from nablad_server.derivatives.query import Clip, Differences, Query
from nablad_server.functions.registration import build
from queries import MEMORY, answer, query_of, spec, specs

GRADIENT = function_pb2.OPERATOR_GRADIENT
INF, NAN = math.inf, math.nan


def weighted(
    x: Float[Array, "n"], y: Float[Array, "m"], a: Float[Array, "n"], b: Float[Array, "m"]
) -> Float[Array, ""]:
    """Its gradient with respect to x and y is a and b."""
    return jnp.sum(x * a) + jnp.sum(y * b)


WEIGHTED = build(weighted, "test")
_PROGRAMS: dict[Query, Program] = {}


def measured(a: Any, b: Any, *, clip: Clip | None = None, bound: float = INF) -> tuple[list[Any], Any]:
    """The gradient (a, b), perhaps clipped, and its norms."""
    given = [np.zeros_like(a), np.zeros_like(b), a, b]
    query = query_of(WEIGHTED, GRADIENT, specs(given), wrt=(0, 1), clipping=clip)
    if query not in _PROGRAMS:
        _PROGRAMS[query] = compile_program(trace(query, {}), 1, MEMORY)
    bounds = [] if clip is None else [np.asarray(bound, query.arrays[-1].dtype)]
    _, *gradient, norms = [found[0] for found in _PROGRAMS[query].run([array[None] for array in (*given, *bounds)])]
    return gradient, norms


def ordinary(dtype: Any, size: int) -> Any:
    numbers = st.floats(-1000, 1000, width=32).map(lambda x: 0.0 if abs(x) < 1e-6 else x)
    return arrays(np.float32, size, elements=numbers).map(lambda array: array.astype(dtype))


WIDE = (np.float64, np.float32)
DTYPES = (*WIDE, np.float16, ml_dtypes.bfloat16)


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_norms_are_those_of_numpy(dtype: Any, data: st.DataObject) -> None:
    a, b = data.draw(ordinary(dtype, 5)), data.draw(ordinary(dtype, 2))

    gradient, norms = measured(a, b)

    for found, part in zip(gradient, (a, b), strict=True):
        assert_array_equal(found, part)
    assert norms.dtype == (np.float64 if dtype == np.float64 else np.float32)
    first, second = (np.linalg.norm(part.astype(np.float64)) for part in (a, b))
    assert_allclose(norms, [np.hypot(first, second), first, second], rtol=4 * np.finfo(norms.dtype).eps)


def test_pythagorean_triples_have_exact_norms_in_every_dtype() -> None:
    for dtype in DTYPES:
        _, norms = measured(np.array([3, -4], dtype), np.array([12], dtype))
        assert norms.tolist() == [13, 5, 12]


@pytest.mark.parametrize(
    ("dtype", "scale"),
    [(np.float64, 2.0**700), (np.float64, 2.0**-700), (np.float64, 2.0**1019), (np.float64, 2.0**-1022),
     (np.float32, 2.0**90), (np.float32, 2.0**-90), (np.float32, 2.0**123), (np.float32, 2.0**-126)],
)  # fmt: skip
def test_squares_may_overflow_and_vanish_where_norms_do_not(dtype: Any, scale: float) -> None:
    _, norms = measured(np.array([3 * scale, 4 * scale], dtype), np.array([12 * scale], dtype))
    assert norms.tolist() == [13 * scale, 5 * scale, 12 * scale]


def test_a_small_part_beside_a_large_one_has_its_own_norm() -> None:
    _, norms = measured(np.array([3e200, 4e200]), np.array([1e-200]))
    assert_allclose(norms, [5e200, 5e200, 1e-200], rtol=1e-15)


def test_float16_has_norms_beyond_its_own_numbers() -> None:
    _, norms = measured(np.full(4, 65504, np.float16), np.full(1, 6e-8, np.float16))
    assert norms.tolist() == [131008, 131008, np.float16(6e-8)]


@pytest.mark.parametrize("slope", [0.0, 3e200, 3e-200])
@pytest.mark.parametrize("x", [0.0, 2e-200, 2e200])
def test_slopes_that_the_compiler_knows_are_squared_no_sooner_than_others(slope: float, x: float) -> None:
    def ramp(x: Float[Array, "n"], y: Float[Array, "m"], z: Float[Array, "0"]) -> Float[Array, ""]:
        return jnp.sum(x) * slope + jnp.sum(y * y) + jnp.sum(z)

    given = (np.ones(1), np.array([x]), np.zeros(0))
    *_, (norms,) = answer(query_of(ramp, GRADIENT, specs(given)), *given)
    assert_allclose(norms, [math.hypot(slope, 2 * x), slope, 2 * x, 0], rtol=1e-15)


@pytest.mark.parametrize("dtype", DTYPES)
def test_zeros_and_what_has_no_elements_have_the_norm_zero(dtype: Any) -> None:
    _, norms = measured(np.zeros(0, dtype), np.zeros(3, dtype))
    assert norms.tolist() == [0, 0, 0]


@pytest.mark.parametrize("dtype", WIDE)
@pytest.mark.parametrize(
    ("a", "norms"),
    [([1, INF], [INF, INF, 2]), ([-INF, 0], [INF, INF, 2]), ([1, NAN], [NAN, NAN, 2]), ([INF, NAN], [NAN, NAN, 2])],
)
def test_elements_that_are_not_finite_make_norms_that_are_not(dtype: Any, a: list[float], norms: list[float]) -> None:
    _, found = measured(np.array(a, dtype), np.array([2], dtype))
    assert_array_equal(found, norms)


@pytest.mark.parametrize("points", [1, 8])
@pytest.mark.parametrize("dtype", WIDE)
def test_no_norm_misses_an_element_that_is_not_finite_however_many_there_are(dtype: Any, points: int) -> None:
    inputs = (spec((1001,), dtype), spec((0,), dtype), spec((1001,), dtype), spec((0,), dtype))
    program = compile_program(trace(query_of(WEIGHTED, GRADIENT, inputs, wrt=(0, 1)), {}), points, MEMORY)
    empty = np.zeros((points, 0), dtype)
    for bad in (INF, -INF, NAN):
        for position in (0, 1, 499, 998, 1000):
            a = np.ones((points, 1001), dtype)
            a[-1, position] = bad
            *_, norms = program.run([np.zeros_like(a), empty, a, empty])
            assert_array_equal(np.isfinite(norms[:, 0]), [True] * (points - 1) + [False])


@pytest.mark.parametrize("dtype", WIDE)
def test_a_norm_above_all_numbers_is_infinite(dtype: Any) -> None:
    _, norms = measured(np.full(2, np.finfo(dtype).max), np.zeros(1, dtype))
    assert norms.tolist() == [INF, INF, 0]


BOUNDS = st.floats(1e-3, 1e4)


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=60, deadline=None)
@given(data=st.data(), bound=BOUNDS)
def test_a_clipped_norm_is_within_its_bound_and_the_direction_is_kept(
    dtype: Any, data: st.DataObject, bound: float
) -> None:
    parts = [data.draw(ordinary(dtype, 5)), data.draw(ordinary(dtype, 2))]
    whole = np.concatenate(parts).astype(np.float64)

    gradient, norms = measured(*parts, clip=Clip.GLOBAL_NORM, bound=bound)

    found = np.concatenate(gradient).astype(np.float64)
    norm = np.linalg.norm(whole)
    eps, tiny = float(jnp.finfo(dtype).eps), float(jnp.finfo(dtype).tiny)
    assert_allclose(norms[0], norm, rtol=1e-6)
    assert np.linalg.norm(found) <= bound * (1 + 8 * eps) + 3 * tiny
    if norm <= bound * (1 - 1e-6):
        assert_array_equal(found, whole)
    elif norm > bound * (1 + 1e-6):
        assert_allclose(found, whole * (bound / norm), rtol=8 * eps, atol=tiny)


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=40, deadline=None)
@given(data=st.data(), bound=BOUNDS)
def test_clipped_values_are_those_of_numpy(dtype: Any, data: st.DataObject, bound: float) -> None:
    parts = [data.draw(ordinary(dtype, 5)), data.draw(ordinary(dtype, 2))]
    gradient, norms = measured(*parts, clip=Clip.VALUE, bound=bound)
    narrow = np.float64 if dtype == np.float64 else np.float32
    for found, part in zip(gradient, parts, strict=True):
        assert_array_equal(found, np.clip(part.astype(narrow), -narrow(bound), narrow(bound)).astype(dtype))
    assert_array_equal(norms, measured(*parts)[1])


@pytest.mark.parametrize(
    ("size", "bound"),
    [(1e200, 1.0), (1e-200, 1e-201), (1e200, 1e-200), (1e308, 1e-3), (1e308, 1e307), (1e-290, 1e-300)],
)
def test_gradients_whose_squares_do_not_fit_are_clipped_right(size: float, bound: float) -> None:
    gradient, _ = measured(np.full(3, size), np.full(1, size), clip=Clip.GLOBAL_NORM, bound=bound)
    assert_allclose(np.concatenate(gradient), bound / 2, rtol=1e-14)


def test_a_gradient_whose_norm_is_above_all_numbers_is_clipped_right() -> None:
    gradient, norms = measured(np.full(2, np.finfo(np.float64).max), np.zeros(1), clip=Clip.GLOBAL_NORM, bound=2.0)
    assert norms[0] == INF
    assert_allclose(gradient[0], math.sqrt(2), rtol=1e-14)


@pytest.mark.parametrize(
    ("a", "b", "scaled"),
    [([1, INF], 2, [0, NAN, 0]), ([1, -INF], 0, [0, NAN, 0]), ([1, NAN], 2, [NAN, NAN, NAN]), ([0, 0], 0, [0, 0, 0])],
)
def test_what_is_not_finite_is_scaled_as_optax_does(a: list[float], b: float, scaled: list[float]) -> None:
    optax = pytest.importorskip("optax")
    given = [np.array(a, np.float64), np.array([b], np.float64)]
    gradient, _ = measured(*given, clip=Clip.GLOBAL_NORM, bound=1.0)
    assert_array_equal(np.concatenate(gradient), scaled)
    theirs, _ = optax.clip_by_global_norm(np.float32(1)).update([part.astype(np.float32) for part in given], None)
    assert_array_equal(np.concatenate(theirs), scaled)


@pytest.mark.parametrize("clip", Clip)
def test_an_infinite_bound_changes_nothing(clip: Clip) -> None:
    for a in ([1.0, -2.0], [INF, 3.0], [NAN, 3.0], [1e308, 1e308]):
        gradient, _ = measured(np.array(a), np.array([-1e-300]), clip=clip, bound=INF)
        assert_array_equal(np.concatenate(gradient), [*a, -1e-300])


def test_infinite_values_become_the_bound_and_nan_stays() -> None:
    gradient, _ = measured(np.array([-INF, NAN]), np.array([INF]), clip=Clip.VALUE, bound=0.5)
    assert_array_equal(np.concatenate(gradient), [-0.5, NAN, 0.5])


def test_each_point_has_a_norm_and_a_bound_of_its_own() -> None:
    inputs = (spec((2,)), spec((1,)), spec((2,)), spec((1,)))
    query = query_of(WEIGHTED, GRADIENT, inputs, wrt=(0, 1), clipping=Clip.GLOBAL_NORM)
    program = compile_program(trace(query, {}), 4, MEMORY)
    a = np.array([[3.0, 4.0], [NAN, 0.0], [3e200, 4e200], [0.0, 0.0]])
    zeros, bounds = [np.zeros((4, 2)), np.zeros((4, 1))], np.array([1.0, 1.0, 10.0, 1.0])

    _, by_x, by_y, norms = program.run([*zeros, a, np.zeros((4, 1)), bounds])

    assert_allclose(norms[:, 0], [5, NAN, 5e200, 0], rtol=1e-15)
    assert_allclose(by_x, [[0.6, 0.8], [NAN, NAN], [6.0, 8.0], [0.0, 0.0]], rtol=1e-15)
    assert_array_equal(by_y[:, 0], [0, NAN, 0, 0])


def test_of_a_gradient_by_differences_the_errors_stay_those_of_the_whole_one() -> None:
    def cubes(x: Float[Array, "n"]) -> Float[Array, ""]:
        return jnp.sum(x**3)

    x, differences = np.array([2.0, -3.0]), Differences(pb.DIFFERENCE_SCHEME_RIDDERS)
    _, whole, errors, norms = answer(query_of(cubes, GRADIENT, specs((x,)), differences=differences), x, 0.0)
    scaled = np.array([12, 27]) / np.hypot(12, 27)
    for clip, wanted in ((Clip.GLOBAL_NORM, scaled), (Clip.VALUE, np.ones(2))):
        query = query_of(cubes, GRADIENT, specs((x,)), differences=differences, clipping=clip)
        _, (clipped,), still, measure = answer(query, x, 1.0, 0.0)
        assert_allclose(clipped, np.asarray(wanted), rtol=1e-8)
        assert_array_equal(still, errors)
        assert_array_equal(measure, norms)
    assert_allclose(norms, [[np.linalg.norm(whole)] * 2], rtol=1e-15)


@pytest.mark.parametrize(
    ("dtypes", "norm"), [((np.float64, np.float32), np.float64), ((np.float16, np.float32), np.float32)]
)
def test_several_dtypes_have_norms_of_the_programs_precision(dtypes: Sequence[Any], norm: Any) -> None:
    first, second = dtypes
    inputs = (spec((2,), first), spec((1,), second), spec((2,), first), spec((1,), second))
    query = query_of(WEIGHTED, GRADIENT, inputs, wrt=(0, 1), clipping=Clip.VALUE)
    assert query.extras == (spec((), norm),)
    gradient, (norms,) = result_specs(query)[1:]
    assert [part.dtype for part in gradient] == [np.dtype(first), np.dtype(second)]
    assert (norms.shape, norms.dtype) == ((3,), np.dtype(norm))
    assert result_bytes(query) == sum(part.bytes for part in gradient) + norms.bytes + query.output_specs[0].bytes
    found = answer(query, *(np.ones(each.shape) for each in inputs), 2.0)
    assert [part.dtype for part in (*found[1], *found[2])] == [np.dtype(first), np.dtype(second), np.dtype(norm)]
