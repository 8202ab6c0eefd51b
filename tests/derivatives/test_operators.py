# jaxtyping writes shapes as strings, which are not forward references:
# ruff: noqa: F722, F821

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import Array, Float, Int
from numpy.typing import ArrayLike

from nablad.errors import InvalidOption, NotDifferentiable
from nablad.v1 import differentiation_pb2 as pb
from nablad.v1 import function_pb2
from nablad_server.derivatives.operators import OPERATORS, result_bytes, result_specs
from nablad_server.derivatives.program import compile_program, trace
from nablad_server.derivatives.query import Query
from nablad_server.functions.precision import precision_of
from nablad_server.functions.registration import build, function
from queries import MEMORY, answer, query_of, spec, specs

MODES = (pb.MODE_AUTO, pb.MODE_FORWARD, pb.MODE_REVERSE)
EVALUATE, GRADIENT, JACOBIAN = (
    function_pb2.OPERATOR_EVALUATE,
    function_pb2.OPERATOR_GRADIENT,
    function_pb2.OPERATOR_JACOBIAN,
)
HESSIAN, HVP, JVP = function_pb2.OPERATOR_HESSIAN, function_pb2.OPERATOR_HVP, function_pb2.OPERATOR_JVP
VJP, DERIVATIVE = function_pb2.OPERATOR_VJP, function_pb2.OPERATOR_DERIVATIVE
DIRECTIONAL = function_pb2.OPERATOR_DIRECTIONAL_DERIVATIVE
LAPLACIAN = function_pb2.OPERATOR_LAPLACIAN


# A scalar function of a pytree of two leaves, a and b, and an integer k: k b Σa² + b³.
@function(inputs={"params": {"a": Float[Array, "n"], "b": Float[Array, ""]}})
def energy(params: Any, k: Int[Array, ""]) -> Any:
    return jnp.sum(params["a"] ** 2) * params["b"] * k + params["b"] ** 3


A, B, K = np.array([1.0, -2.0, 0.5]), 1.5, 3
POINT: tuple[ArrayLike, ...] = (A, B, K)
VALUE = K * B * A @ A + B**3
GRADIENT_A, GRADIENT_B = 2 * K * B * A, K * A @ A + 3 * B**2
HESSIAN_AA, HESSIAN_AB, HESSIAN_BB = 2 * K * B * np.eye(3), 2 * K * A, 6 * B


# Two outputs of two inputs: p = x y, q = (Σx, y²).
def curves(x: Float[Array, "n"], y: Float[Array, ""]) -> Any:
    return {"p": x * y, "q": jnp.stack([jnp.sum(x), y**2])}


X, Y = np.array([1.0, 2.0, -3.0]), 0.5
P, Q = X * Y, np.array([X.sum(), Y**2])
NORM_A, NORM_B = np.linalg.norm(GRADIENT_A), np.linalg.norm(GRADIENT_B)
NORM = np.hypot(NORM_A, NORM_B)

DP_DX, DP_DY = Y * np.eye(3), X
DQ_DX, DQ_DY = np.array([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]]), np.array([0.0, 2 * Y])

VA, VB = np.array([0.5, 1.0, -1.0]), 2.0
STACK_A, STACK_B = np.array([VA, 3 * VA]), np.array([VB, -VB])
CP, CQ = np.array([1.0, 0.0, 2.0]), np.array([-1.0, 4.0])
PRODUCT_A, PRODUCT_B = HESSIAN_AA @ VA + HESSIAN_AB * VB, HESSIAN_AB @ VA + HESSIAN_BB * VB


class Case(NamedTuple):
    """What an operator must give at a point."""

    name: str
    call: Callable[..., Any]
    operator: function_pb2.Operator.ValueType
    options: dict[str, Any]
    arrays: tuple[ArrayLike, ...]
    groups: list[list[Any]]
    modes: tuple[pb.Mode.ValueType, ...] = MODES

    def query(self, mode: pb.Mode.ValueType) -> Query:
        count = len(self.arrays) - len(self.options.get("vectors", ()))
        return query_of(self.call, self.operator, specs(self.arrays[:count]), mode=mode, **self.options)


ONE_MODE = (pb.MODE_AUTO,)
XY: tuple[ArrayLike, ...] = (X, Y)

CASES = [
    Case("evaluate", curves, EVALUATE, {"outputs": (0, 1)}, XY, [[P, Q]], ONE_MODE),
    Case("evaluate one output", curves, EVALUATE, {"outputs": (1,)}, XY, [[Q]], ONE_MODE),
    Case("gradient", energy, GRADIENT, {}, POINT, [[VALUE], [GRADIENT_A, GRADIENT_B], [[NORM, NORM_A, NORM_B]]]),
    Case("gradient of some inputs", energy, GRADIENT, {"wrt": (1,)}, POINT, [[VALUE], [GRADIENT_B], [[NORM_B] * 2]]),
    Case(
        "gradient in another order", energy, GRADIENT, {"wrt": (1, 0)}, POINT,
        [[VALUE], [GRADIENT_B, GRADIENT_A], [[NORM, NORM_B, NORM_A]]],
    ),
    Case(
        "jacobian", curves, JACOBIAN, {"outputs": (0, 1)}, XY, [[P, Q], [DP_DX, DP_DY, DQ_DX, DQ_DY]]
    ),
    Case("jacobian, tall", curves, JACOBIAN, {"outputs": (0, 1), "wrt": (1,)}, XY, [[P, Q], [DP_DY, DQ_DY]]),
    Case("jacobian, wide", curves, JACOBIAN, {"outputs": (1,), "wrt": (0,)}, XY, [[Q], [DQ_DX]]),
    Case(
        "hessian", energy, HESSIAN, {}, POINT,
        [[VALUE], [GRADIENT_A, GRADIENT_B], [HESSIAN_AA, HESSIAN_AB, HESSIAN_AB, HESSIAN_BB]],
    ),
    Case(
        "hessian, off-diagonal block", energy, HESSIAN, {"wrt": (0,), "columns": (1,)}, POINT,
        [[VALUE], [GRADIENT_A], [HESSIAN_AB]],
    ),
    Case(
        "hessian, overlapping columns", energy, HESSIAN, {"wrt": (1,), "columns": (0, 1)}, POINT,
        [[VALUE], [GRADIENT_B], [HESSIAN_AB, HESSIAN_BB]],
    ),
    Case(
        "hessian, diagonal", energy, HESSIAN, {"diagonal": True}, POINT,
        [[VALUE], [GRADIENT_A, GRADIENT_B], [np.diag(HESSIAN_AA), HESSIAN_BB]],
    ),
    Case(
        "hvp", energy, HVP, {"vectors": (0, 1)}, (*POINT, VA, VB),
        [[VALUE], [GRADIENT_A, GRADIENT_B], [PRODUCT_A, PRODUCT_B]],
    ),
    Case(
        "hvp, one tangent of two", energy, HVP, {"vectors": (1,)}, (*POINT, VB),
        [[VALUE], [GRADIENT_A, GRADIENT_B], [HESSIAN_AB * VB, HESSIAN_BB * VB]],
    ),
    Case(
        "hvp, stack", energy, HVP, {"vectors": (0, 1), "stack": 2}, (*POINT, STACK_A, STACK_B),
        [[VALUE], [GRADIENT_A, GRADIENT_B], [
            STACK_A @ HESSIAN_AA + np.outer(STACK_B, HESSIAN_AB), STACK_A @ HESSIAN_AB + STACK_B * HESSIAN_BB,
        ]],
    ),
    Case(
        "jvp", curves, JVP, {"outputs": (0, 1), "vectors": (0, 1)}, (*XY, VA, VB),
        [[P, Q], [DP_DX @ VA + DP_DY * VB, DQ_DX @ VA + DQ_DY * VB]], ONE_MODE,
    ),
    Case(
        "jvp, stack along one input", curves, JVP, {"outputs": (1,), "vectors": (0,), "stack": 2}, (*XY, STACK_A),
        [[Q], [STACK_A @ DQ_DX.T]], ONE_MODE,
    ),
    Case(
        "vjp", curves, VJP, {"outputs": (0, 1), "vectors": (0, 1)}, (*XY, CP, CQ),
        [[P, Q], [CP @ DP_DX + CQ @ DQ_DX, CP @ DP_DY + CQ @ DQ_DY]], ONE_MODE,
    ),
    Case(
        "vjp, stack of one output", curves, VJP, {"outputs": (0,), "wrt": (1,), "vectors": (0,), "stack": 2},
        (*XY, STACK_A), [[P], [STACK_A @ DP_DY]], ONE_MODE,
    ),
    Case(
        "directional derivative", energy, DIRECTIONAL, {"vectors": (0, 1)}, (*POINT, 10 * VA, 10 * VB),
        [[VALUE], [(GRADIENT_A @ VA + GRADIENT_B * VB) / math.hypot(*VA, VB)],
         [GRADIENT_A / math.hypot(*GRADIENT_A, GRADIENT_B), GRADIENT_B / math.hypot(*GRADIENT_A, GRADIENT_B)],
         [math.hypot(*GRADIENT_A, GRADIENT_B)]],
        ONE_MODE,
    ),
    Case(
        "derivative", curves, DERIVATIVE, {"outputs": (0, 1), "wrt": (1,), "order": 3}, XY,
        [[P, Q], [np.array([X, 0 * X, 0 * X]), np.array([[0, 2 * Y], [0, 2], [0, 0]])]], ONE_MODE,
    ),
    Case(
        "derivative along a line", energy, DERIVATIVE, {"wrt": (0, 1), "vectors": (0, 1), "order": 2}, (*POINT, VA, VB),
        [[VALUE], [np.array([GRADIENT_A @ VA + GRADIENT_B * VB, VA @ PRODUCT_A + VB * PRODUCT_B])]], ONE_MODE,
    ),
    Case(
        "laplacian", energy, LAPLACIAN, {}, POINT,
        [[VALUE], [GRADIENT_A, GRADIENT_B], [np.trace(HESSIAN_AA) + HESSIAN_BB]],
    ),
    Case("laplacian in some inputs", energy, LAPLACIAN, {"wrt": (1,)}, POINT, [[VALUE], [GRADIENT_B], [HESSIAN_BB]]),
]  # fmt: skip

EVERY = [pytest.param(case, mode, id=f"{case.name}-{pb.Mode.Name(mode)}") for case in CASES for mode in case.modes]


@pytest.mark.parametrize(("case", "mode"), EVERY)
def test_operators_give_the_closed_form(case: Case, mode: pb.Mode.ValueType) -> None:
    query = case.query(mode)

    found = answer(query, *case.arrays)

    assert [len(group) for group in found] == [len(group) for group in case.groups]
    for arrays, expected, known in zip(found, case.groups, result_specs(query), strict=True):
        for array, truth in zip(arrays, expected, strict=True):
            np.testing.assert_allclose(array, truth, rtol=1e-13, atol=1e-13)
        assert specs(arrays) == known


def test_every_operator_has_a_case() -> None:
    assert {case.operator for case in CASES} == set(OPERATORS)
    assert set(OPERATORS) == set(function_pb2.Operator.values()) - {function_pb2.OPERATOR_UNSPECIFIED}


def test_the_bytes_of_a_result_are_counted_before_it_is_computed() -> None:
    hessian = query_of(energy, HESSIAN, (spec((100_000,)), spec(), spec((), np.int64)))

    assert result_bytes(hessian) == 8 * (1 + 100_001 + 100_001**2)


MIXED = [
    pytest.param(operator, options, first, second, mode, id=f"{operator}-{mode}-{first}-{second}")
    for operator, options in [
        (GRADIENT, {}),
        (JACOBIAN, {}),
        (HESSIAN, {}),
        (HESSIAN, {"diagonal": True}),
        (HESSIAN, {"diagonal": True, "samples": 2}),
        (LAPLACIAN, {}),
        (LAPLACIAN, {"samples": 2}),
        (HVP, {"vectors": (0,)}),
    ]
    for first, second in [("float32", "float64"), ("float16", "float32"), ("bfloat16", "float16")]
    for mode in MODES
] + [
    pytest.param(DIRECTIONAL, {"vectors": (0, 1)}, "float16", "float32", pb.MODE_AUTO, id="directional"),
    pytest.param(VJP, {"vectors": (0,)}, "float16", "float32", pb.MODE_AUTO, id="vjp"),
    pytest.param(JVP, {"vectors": (0, 1)}, "float16", "float32", pb.MODE_AUTO, id="jvp"),
]  # fmt: skip


@pytest.mark.parametrize(("operator", "options", "first", "second", "mode"), MIXED)
def test_results_have_the_announced_dtypes_when_inputs_have_several(
    operator: function_pb2.Operator.ValueType, options: Any, first: str, second: str, mode: pb.Mode.ValueType
) -> None:
    def mixed(x: Float[Array, "n"], y: Float[Array, "n"]) -> Float[Array, ""]:
        return jnp.sum(x * x * y)

    inputs = (spec((2,), ml_dtypes.bfloat16 if first == "bfloat16" else first), spec((2,), second))
    query = query_of(mixed, operator, inputs, mode=mode, **options)

    traced = trace(query, {})

    outputs: list[Any] = [variable.aval for variable in traced.jaxpr.outvars]
    if traced.after is not None:
        with precision_of(inputs):
            outputs = jax.eval_shape(traced.after, [jax.ShapeDtypeStruct(s.shape, s.dtype) for s in inputs], outputs)
    announced = [known for group in result_specs(query) for known in group]
    assert [(found.shape, found.dtype) for found in outputs] == [(s.shape, s.dtype) for s in announced]


def ripple(x: Float[Array, "n"], y: Float[Array, "n"]) -> Any:
    return jnp.sum(jnp.sin(x) * jnp.exp(0.5 * y[::-1])) + jnp.prod(1 + x * y), jnp.cos(x * y[::-1])


REALS = st.lists(st.floats(-2.0, 2.0), min_size=6, max_size=6).map(np.array)
RIPPLE = build(ripple, "test")
STEP = 1e-5


def numpy_ripple(z: Any) -> tuple[Any, Any]:
    x, y = z[:3], z[3:]
    return np.sum(np.sin(x) * np.exp(0.5 * y[::-1])) + np.prod(1 + x * y), np.cos(x * y[::-1])


def central(of: Callable[[Any], Any], z: Any) -> Any:
    """Central finite differences; the axis of the inputs comes last."""
    steps = STEP * np.eye(len(z))
    return np.stack([(np.asarray(of(z + h)) - np.asarray(of(z - h))) / (2 * STEP) for h in steps], axis=-1)


@given(REALS)
@settings(max_examples=25, deadline=None)
@pytest.mark.parametrize("mode", MODES)
def test_jacobians_agree_with_finite_differences(mode: pb.Mode.ValueType, z: Any) -> None:
    query = query_of(RIPPLE, JACOBIAN, (spec((3,)), spec((3,))), outputs=(0, 1), mode=mode)

    _, (sx, sy, vx, vy) = prepared(query)(z[:3], z[3:])

    np.testing.assert_allclose(np.concatenate([sx, sy]), central(lambda w: numpy_ripple(w)[0], z), atol=1e-6)
    np.testing.assert_allclose(np.concatenate([vx, vy], -1), central(lambda w: numpy_ripple(w)[1], z), atol=1e-6)


@given(REALS)
@settings(max_examples=25, deadline=None)
@pytest.mark.parametrize("mode", MODES)
def test_hessians_agree_with_finite_differences_of_the_gradient(mode: pb.Mode.ValueType, z: Any) -> None:
    query = query_of(RIPPLE, HESSIAN, (spec((3,)), spec((3,))), mode=mode)
    gradient = prepared(query_of(RIPPLE, GRADIENT, (spec((3,)), spec((3,)))))

    _, _, (xx, xy, yx, yy) = prepared(query)(z[:3], z[3:])

    truth = central(lambda w: np.concatenate(gradient(w[:3], w[3:])[1]), z)
    np.testing.assert_allclose(np.block([[xx, xy], [yx, yy]]), truth, atol=1e-6)


_PREPARED: dict[Query, Callable[..., list[list[Any]]]] = {}


def prepared(query: Query) -> Callable[..., list[list[Any]]]:
    """The query's answer as a function, compiled once."""
    if query not in _PREPARED:
        program = compile_program(trace(query, {}), 1, MEMORY)

        def call(*arrays: Any) -> list[list[Any]]:
            flat = iter(program.run([array[None] for array in arrays]))
            return [[next(flat)[0] for _ in range(size)] for size in program.groups]

        _PREPARED[query] = call
    return _PREPARED[query]


def looped(x: Float[Array, ""], n: Int[Array, ""]) -> Any:
    """x to the power n, by a loop of unknown length."""
    return jax.lax.fori_loop(0, n, lambda _, product: product * x, jnp.ones_like(x))


LOOP: tuple[ArrayLike, ...] = (2.0, 5)
LOOPED = [
    (GRADIENT, {"mode": pb.MODE_FORWARD}, (), [[32.0], [80.0], [[80.0, 80.0]]]),
    (JACOBIAN, {"mode": pb.MODE_FORWARD}, (), [[32.0], [80.0]]),
    (HESSIAN, {"mode": pb.MODE_FORWARD}, (), [[32.0], [80.0], [160.0]]),
    (HESSIAN, {"mode": pb.MODE_FORWARD, "diagonal": True}, (), [[32.0], [80.0], [160.0]]),
    (LAPLACIAN, {"mode": pb.MODE_FORWARD}, (), [[32.0], [80.0], [160.0]]),
    (HVP, {"mode": pb.MODE_FORWARD, "vectors": (0,)}, (3.0,), [[32.0], [80.0], [480.0]]),
    (HVP, {"mode": pb.MODE_FORWARD, "vectors": (0,), "stack": 2}, ([1.0, 2.0],), [[32.0], [80.0], [[160.0, 320.0]]]),
    (JVP, {"vectors": (0,)}, (3.0,), [[32.0], [240.0]]),
    (JVP, {"vectors": (0,), "stack": 2}, ([1.0, 2.0],), [[32.0], [[80.0, 160.0]]]),
    (DERIVATIVE, {"order": 4}, (), [[32.0], [[80.0, 160.0, 240.0, 240.0]]]),
    (DERIVATIVE, {"order": 3, "vectors": (0,)}, (2.0,), [[32.0], [[160.0, 640.0, 1920.0]]]),
]


@pytest.mark.parametrize(("operator", "options", "vectors", "groups"), LOOPED)
def test_forward_mode_goes_through_loops_of_unknown_length(
    operator: function_pb2.Operator.ValueType,
    options: dict[str, Any],
    vectors: tuple[ArrayLike, ...],
    groups: Sequence[Sequence[Any]],
) -> None:
    found = answer(query_of(looped, operator, specs(LOOP), **options), *LOOP, *vectors)

    for arrays, expected in zip(found, groups, strict=True):
        for array, truth in zip(arrays, expected, strict=True):
            np.testing.assert_allclose(array, truth, rtol=1e-14)


@pytest.mark.parametrize(
    ("operator", "options"),
    [
        (GRADIENT, {"mode": pb.MODE_REVERSE}),
        (GRADIENT, {"mode": pb.MODE_AUTO}),
        (JACOBIAN, {"mode": pb.MODE_REVERSE}),
        (HESSIAN, {"mode": pb.MODE_AUTO}),
        (VJP, {"vectors": (0,)}),
        (DIRECTIONAL, {"vectors": (0,)}),
    ],
)
def test_reverse_mode_through_such_a_loop_is_refused_with_advice(
    operator: function_pb2.Operator.ValueType, options: dict[str, Any]
) -> None:
    with pytest.raises(NotDifferentiable, match=r"looped@1.*MODE_FORWARD"):
        trace(query_of(looped, operator, specs(LOOP), **options), {})


def looped_sum(x: Float[Array, "m"], n: Int[Array, ""]) -> Any:
    return jax.lax.fori_loop(0, n, lambda _, product: product * jnp.sum(x), jnp.ones(2))


def test_automatic_jacobians_go_forward_where_the_inputs_are_no_larger_than_the_outputs() -> None:
    _, (jacobian,) = answer(query_of(looped_sum, JACOBIAN, (spec((2,)), spec((), np.int64))), [1.0, 2.0], 3)

    np.testing.assert_allclose(jacobian, np.full((2, 2), 3 * 3.0**2))
    with pytest.raises(NotDifferentiable):
        trace(query_of(looped_sum, JACOBIAN, (spec((3,)), spec((), np.int64))), {})


def exponential(x: Float[Array, ""]) -> Float[Array, ""]:
    return jnp.exp(2 * x)


def sine(x: Float[Array, ""]) -> Float[Array, ""]:
    return jnp.sin(x)


def hyperbola(x: Float[Array, ""]) -> Float[Array, ""]:
    return 1 / (1 + x)


def logarithm(x: Float[Array, ""]) -> Float[Array, ""]:
    return jnp.log(x)


def septic(x: Float[Array, ""]) -> Float[Array, ""]:
    return x**7


Nth = Callable[[float, int], float]
SMOOTH: list[tuple[Callable[..., Any], Nth]] = [
    (exponential, lambda x, n: 2**n * math.exp(2 * x)),
    (sine, lambda x, n: math.sin(x + n * math.pi / 2)),
    (hyperbola, lambda x, n: (-1) ** n * math.factorial(n) / (1 + x) ** (n + 1)),
    (logarithm, lambda x, n: math.log(x) if n == 0 else (-1) ** (n - 1) * math.factorial(n - 1) / x**n),
    (septic, lambda x, n: math.perm(7, n) * x ** (7 - n) if n <= 7 else 0.0),
]


@pytest.mark.parametrize(("call", "nth"), SMOOTH, ids=lambda part: getattr(part, "__name__", ""))
@pytest.mark.parametrize("order", [1, 8])
def test_derivatives_of_all_orders_are_the_closed_form(call: Callable[..., Any], nth: Nth, order: int) -> None:
    x = 0.75

    (value,), (orders,) = answer(query_of(call, DERIVATIVE, (spec(),), order=order), x)

    np.testing.assert_allclose(value, nth(x, 0), rtol=1e-14)
    np.testing.assert_allclose(orders, [nth(x, n) for n in range(1, order + 1)], rtol=1e-11, atol=1e-9)


def without_taylor_rule(call: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, in a loop of one turn: Taylor arithmetic has no rule for loops."""

    def turned(x: Float[Array, ""]) -> Any:
        return jax.lax.scan(lambda moved, _: (call(moved), None), x, None, length=1)[0]

    return turned


@pytest.mark.parametrize(("call", "nth"), SMOOTH, ids=lambda part: getattr(part, "__name__", ""))
def test_derivatives_are_the_same_without_a_taylor_rule(call: Callable[..., Any], nth: Nth) -> None:
    x, order = 0.75, 4

    (value,), (orders,) = answer(query_of(without_taylor_rule(call), DERIVATIVE, (spec(),), order=order), x)

    np.testing.assert_allclose(value, nth(x, 0), rtol=1e-14)
    np.testing.assert_allclose(orders, [nth(x, n) for n in range(1, order + 1)], rtol=1e-11, atol=1e-9)


def test_orders_up_to_six_need_no_taylor_rule() -> None:
    _, (orders,) = answer(query_of(without_taylor_rule(jnp.sin), DERIVATIVE, (spec(),), order=6), 0.0)

    np.testing.assert_allclose(orders, [1, 0, -1, 0, 1, 0], atol=1e-14)


@pytest.mark.parametrize("order", [7, 16])
def test_high_orders_without_a_taylor_rule_are_refused(order: int) -> None:
    with pytest.raises(InvalidOption, match=f"turned@1 has no Taylor rule.*above 6.*got order {order}") as refused:
        trace(query_of(without_taylor_rule(jnp.sin), DERIVATIVE, (spec(),), order=order), {})
    assert refused.value.field == "order"


def bowl(x: Float[Array, "n"]) -> Any:
    return jnp.sum(x**2)


def test_where_the_gradient_is_zero_nothing_ascends() -> None:
    query = query_of(bowl, DIRECTIONAL, (spec((3,)),), vectors=(0,))

    found = answer(query, np.zeros(3), [3.0, 0.0, 4.0])

    assert [array.tolist() for group in found for array in group] == [0.0, 0.0, [0.0, 0.0, 0.0], 0.0]


def plane(x: Float[Array, "n"], slope: Float[Array, "n"]) -> Any:
    return x @ slope


@pytest.mark.parametrize(("direction", "slope"), [*itertools.product([1e-200, 1.0, 1e200], repeat=2)])
def test_lengths_neither_overflow_nor_vanish(direction: float, slope: float) -> None:
    query = query_of(plane, DIRECTIONAL, (spec((2,)), spec((2,))), wrt=(0,), vectors=(0,))

    _, (derivative,), (ascent,), (rate,) = answer(
        query, [0.0, 0.0], slope * np.array([6.0, 8.0]), direction * np.array([3.0, -4.0])
    )

    np.testing.assert_allclose(derivative, slope * -2.8, rtol=1e-14)
    np.testing.assert_allclose(ascent, [0.6, 0.8], rtol=1e-14)
    np.testing.assert_allclose(rate, slope * 10.0, rtol=1e-14)


EMPTY = [
    (GRADIENT, {}, 0), (JACOBIAN, {}, 0), (HESSIAN, {}, 0), (HESSIAN, {"diagonal": True}, 0),
    (HVP, {"vectors": (0,)}, 1), (DIRECTIONAL, {"vectors": (0,)}, 1),
]  # fmt: skip


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("operator", "options", "vectors"), EMPTY)
def test_an_input_without_elements_has_derivatives_without_elements(
    operator: function_pb2.Operator.ValueType, options: dict[str, Any], vectors: int, mode: pb.Mode.ValueType
) -> None:
    query = query_of(bowl, operator, (spec((0,)),), mode=mode, **options)

    found = answer(query, *[np.zeros(0)] * (1 + vectors))

    assert tuple(specs(group) for group in found) == result_specs(query)
    assert found[0][0] == 0.0


def test_low_orders_are_right_where_a_taylor_rule_takes_a_logarithm() -> None:
    def square(x: Float[Array, ""]) -> Float[Array, ""]:
        return x**2.0

    _, (orders,) = answer(query_of(square, DERIVATIVE, (spec(),), order=2), np.array(0.0))
    assert orders.tolist() == [0.0, 2.0]
