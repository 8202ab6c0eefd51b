# jaxtyping writes shapes as strings, which are not forward references:
# ruff: noqa: F722, F821

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jaxtyping import Array, Bool, Float, Int

from nablad.errors import CompileFailed, InvalidOption, NotDifferentiable, ResultTooLarge
from nablad.v1 import function_pb2
from nablad_server.derivatives import program as program_module
from nablad_server.derivatives.program import (
    HOISTED_BYTES,
    LOOP_SECONDS,
    Constants,
    Program,
    _compiled,
    compile_program,
    trace,
)
from nablad_server.derivatives.query import Query
from nablad_server.functions.registration import build
from nablad_server.functions.signature import ArraySpec
from puppets import SAFETY
from queries import MEMORY, answer, query_of, spec

EVALUATE, GRADIENT = function_pb2.OPERATOR_EVALUATE, function_pb2.OPERATOR_GRADIENT
JACOBIAN = function_pb2.OPERATOR_JACOBIAN

SIDE = 128
MATRIX = np.random.default_rng(1).normal(size=(SIDE, SIDE))
MATRIX_ON_DEVICE = jnp.asarray(MATRIX)
SMALL = np.arange(16.0)
assert SMALL.nbytes < HOISTED_BYTES < MATRIX.nbytes


def argument_bytes(program: Program) -> int:
    analysis: Any = program.executable.memory_analysis()
    return int(analysis.argument_size_in_bytes)


def program_of(query: Query, bucket: int = 1) -> Program:
    return compile_program(trace(query, {}), bucket, MEMORY)


def numpy_closure(x: Float[Array, "128"]) -> Any:
    return MATRIX @ x


def device_closure(x: Float[Array, "128"]) -> Any:
    return MATRIX_ON_DEVICE @ x


def made_anew(x: Float[Array, "128"]) -> Any:
    return jnp.asarray(MATRIX + 0.0) @ x


CLOSURES = [numpy_closure, device_closure, made_anew]


@pytest.mark.parametrize("call", CLOSURES)
def test_a_large_constant_is_an_argument_and_lies_on_the_device_once(call: Callable[..., Any]) -> None:
    function, constants = build(call, "test"), Constants()
    evaluate, jacobian = (
        trace(query_of(function, operator, (spec((SIDE,)),)), constants) for operator in (EVALUATE, JACOBIAN)
    )

    programs = [compile_program(traced, 1, MEMORY) for traced in (evaluate, jacobian)]

    (one,), (other,) = (program.hoisted for program in programs)
    assert one is other
    assert len(constants) == 1
    for program in programs:
        assert argument_bytes(program) >= MATRIX.nbytes
    x = np.linspace(-1, 1, SIDE)
    np.testing.assert_allclose(programs[0].run([x[None]])[0][0], MATRIX @ x, rtol=1e-12)
    np.testing.assert_array_equal(programs[1].run([x[None]])[1][0], MATRIX)


def small_closure(x: Float[Array, "16"]) -> Any:
    return SMALL @ x


def test_a_small_constant_is_compiled_in() -> None:
    program = program_of(query_of(small_closure, EVALUATE, (spec((16,)),)))

    assert program.hoisted == ()
    assert argument_bytes(program) == 16 * 8


def both_ways(x: Float[Array, "128"]) -> Any:
    return MATRIX @ x + 2 * (MATRIX.T @ x)


def test_views_of_one_array_are_different_constants() -> None:
    x = np.linspace(-1, 1, SIDE)

    ((value,),) = answer(query_of(both_ways, EVALUATE, (spec((SIDE,)),)), x)

    np.testing.assert_allclose(value, MATRIX @ x + 2 * (MATRIX.T @ x), rtol=1e-12, atol=1e-12)


def careless(x: Float[Array, "n"]) -> Any:
    """Full of numbers that would make a float32 computation a float64 one in 64-bit mode."""
    y = np.float64(2) * x + jnp.zeros(x.shape) + jnp.asarray(np.full(x.shape, 0.5)) + jnp.linspace(0, 1, x.shape[0])
    return jnp.sum(y**2) * np.pi


@pytest.mark.parametrize("operator", [EVALUATE, GRADIENT, function_pb2.OPERATOR_HESSIAN])
def test_a_float32_program_holds_no_float64(operator: function_pb2.Operator.ValueType) -> None:
    traced = trace(query_of(careless, operator, (spec((4,), np.float32),)), {})
    program = compile_program(traced, 2, MEMORY)

    assert "f64" not in str(traced.jaxpr)
    assert "f64" not in str(program.executable.as_text())
    assert {output.dtype.name for output in program.run([np.ones((2, 4), np.float32)])} == {"float32"}


def test_a_large_float64_constant_is_narrowed_for_a_float32_program_alone() -> None:
    function, constants = build(numpy_closure, "test"), Constants()
    wide, narrow = (
        compile_program(trace(query_of(function, EVALUATE, (spec((SIDE,), dtype),)), constants), 1, MEMORY)
        for dtype in (np.float64, np.float32)
    )

    assert [program.hoisted[0].dtype.name for program in (wide, narrow)] == ["float64", "float32"]


def quartic(x: Float[Array, "n"]) -> Float[Array, ""]:
    return jnp.sum((2.5 * x) ** 2 + x**4)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
def test_results_have_the_dtype_of_their_inputs(dtype: Any) -> None:
    x = np.array([-1.5, 0.25, 1.0])

    (value,), (gradient,), _ = answer(query_of(quartic, GRADIENT, (spec((3,), dtype),)), x)

    assert (value.dtype, gradient.dtype) == (np.dtype(dtype), np.dtype(dtype))
    eps = float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(gradient.astype(np.float64), 12.5 * x + 4 * x**3, rtol=8 * eps)


def counts(x: Float[Array, "n"], k: Int[Array, ""], flag: Bool[Array, ""]) -> Any:
    return {"k": k * 2, "range": jnp.arange(3), "long": jnp.asarray(np.arange(4)), "python": 7, "flag": ~flag, "x": x}


@pytest.mark.parametrize(("floats", "integers"), [(np.float32, "int32"), (np.float64, "int64")])
def test_integers_are_as_wide_as_the_program(floats: Any, integers: str) -> None:
    inputs = (spec((2,), floats), spec((), integers), spec((), np.bool_))
    query = query_of(counts, EVALUATE, inputs, outputs=tuple(range(6)))
    names = [name for name, _ in query.function.outputs_at(inputs)]

    (group,) = answer(query, [1.0, 2.0], 21, True)

    found = dict(zip(names, group, strict=True))
    assert {name: array.dtype.name for name, array in found.items()} == {
        "k": integers, "range": integers, "long": integers, "python": integers, "flag": "bool",
        "x": np.dtype(floats).name,
    }  # fmt: skip
    assert [found["k"], found["python"], found["flag"]] == [42, 7, False]
    assert tuple((array.shape, array.dtype) for array in group) == tuple((s.shape, s.dtype) for s in query.output_specs)


def bilinear(x: Float[Array, "n"], A: Float[Array, "n n"]) -> Float[Array, ""]:
    return x @ A @ x


@pytest.mark.parametrize("bucket", [1, 4])
def test_a_shared_array_is_the_same_for_every_point(bucket: int) -> None:
    rng = np.random.default_rng(2)
    x, A = rng.normal(size=(bucket, 3)), rng.normal(size=(3, 3))
    shared = program_of(query_of(bilinear, GRADIENT, (spec((3,)), spec((3, 3))), shared=(False, True)), bucket)

    values, by_x, by_A, _ = shared.run([x, A])

    np.testing.assert_allclose(values, np.einsum("pi,ij,pj->p", x, A, x), rtol=1e-13)
    np.testing.assert_allclose(by_x, x @ (A + A.T), rtol=1e-13)
    np.testing.assert_allclose(by_A, np.einsum("pi,pj->pij", x, x), rtol=1e-13)


@pytest.mark.parametrize("bucket", [1, 4])
def test_arrays_without_elements_are_arrays(bucket: int) -> None:
    program = program_of(query_of(bilinear, GRADIENT, (spec((0,)), spec((0, 0)))), bucket)

    values, by_x, by_A, norms = program.run([np.zeros((bucket, 0)), np.zeros((bucket, 0, 0))])

    assert values.tolist() == [0.0] * bucket
    assert norms.tolist() == [[0.0] * 3] * bucket
    assert (by_x.shape, by_A.shape) == ((bucket, 0), (bucket, 0, 0))


def test_groups_say_how_the_results_are_grouped() -> None:
    query = query_of(bilinear, function_pb2.OPERATOR_HESSIAN, (spec((3,)), spec((3, 3))))

    assert program_of(query).groups == (1, 2, 4)


def grumbling(x: Float[Array, ""]) -> Any:
    def refuse_ones(value: Any) -> Any:
        if np.any(value == 1.0):
            raise ValueError("not one, please")
        return np.asarray(2 * value)

    return jax.pure_callback(refuse_ones, jax.ShapeDtypeStruct((), x.dtype), x, vmap_method="expand_dims")


def test_a_function_that_fails_at_some_point_is_compiled_all_the_same() -> None:
    program = program_of(query_of(grumbling, EVALUATE, (spec(),)), 2)

    assert program.run([np.array([2.0, 3.0])])[0].tolist() == [4.0, 6.0]
    with pytest.raises(Exception, match="not one, please"):
        program.run([np.array([1.0, 3.0])])


def one_at_a_time(x: Float[Array, ""]) -> Any:
    return jax.pure_callback(lambda value: value, jax.ShapeDtypeStruct((), x.dtype), x)


def test_what_cannot_be_batched_fails_by_name_and_can_run_alone() -> None:
    traced = trace(query_of(one_at_a_time, EVALUATE, (spec(),)), {})

    assert compile_program(traced, 1, MEMORY).run([np.array([2.0])])[0].tolist() == [2.0]
    with pytest.raises(CompileFailed, match=r"one_at_a_time@1.*2 points.*vmap") as failed:
        compile_program(traced, 2, MEMORY)
    assert failed.value.metadata["function"] == "one_at_a_time@1"


def test_what_cannot_be_differentiated_fails_by_name() -> None:
    with pytest.raises(NotDifferentiable, match=r"gradient of one_at_a_time@1\(float64\[\]\)"):
        trace(query_of(one_at_a_time, GRADIENT, (spec(),)), {})


def arctangent(x: Float[Array, ""]) -> Float[Array, ""]:
    return jnp.arctan(x)


def test_an_error_of_ours_is_passed_on_as_it_is() -> None:
    with pytest.raises(InvalidOption):
        trace(query_of(arctangent, function_pb2.OPERATOR_DERIVATIVE, (spec(),), order=9), {})


def strategies(call: Callable[..., Any], inputs: Sequence[ArraySpec], bucket: int, **options: Any) -> list[Program]:
    """The same query in each way to go about its points."""
    traced = trace(query_of(call, GRADIENT, inputs, **options), {})
    return [_compiled(traced, bucket, strategy, MEMORY) for strategy in ("vmap", "loop")]


def smooth(x: Float[Array, "n"], A: Float[Array, "n n"]) -> Float[Array, ""]:
    return jnp.sum(jnp.sin(A @ x) * jnp.exp(-(x**2))) + x @ A @ x


@pytest.mark.parametrize("shared", [(False, False), (False, True), (True, False)])
@pytest.mark.parametrize("bucket", [2, 8])
def test_every_strategy_gives_the_same_to_within_rounding(bucket: int, shared: tuple[bool, bool]) -> None:
    rng = np.random.default_rng(4)
    inputs = (spec((5,)), spec((5, 5)))
    arrays = [
        rng.normal(size=given.shape if common else (bucket, *given.shape))
        for given, common in zip(inputs, shared, strict=True)
    ]
    single = compile_program(trace(query_of(smooth, GRADIENT, inputs, shared=shared), {}), 1, MEMORY)
    alone = [
        single.run([array if common else array[row : row + 1] for array, common in zip(arrays, shared, strict=True)])
        for row in range(bucket)
    ]
    expected = [np.concatenate(rows) for rows in zip(*alone, strict=True)]

    for program in strategies(smooth, inputs, bucket, shared=shared):
        for found, want in zip(program.run(arrays), expected, strict=True):
            scale = np.max(np.abs(want))
            np.testing.assert_allclose(
                found, want, rtol=0, atol=64 * np.finfo(float).eps * scale, err_msg=program.strategy
            )


def test_one_point_is_compiled_as_one() -> None:
    program = program_of(query_of(quartic, GRADIENT, (spec((3,)),)))

    assert (program.bucket, program.strategy) == (1, "single")


def test_a_light_batch_is_compiled_once() -> None:
    assert program_of(query_of(quartic, GRADIENT, (spec((3,)),)), 2).strategy == "vmap"


def measured(monkeypatch: pytest.MonkeyPatch, seconds: Mapping[str, float]) -> None:
    """Has the programs of each strategy measured as so slow."""
    monkeypatch.setattr(program_module, "_timed", lambda program, _: seconds[program.strategy])


@pytest.mark.parametrize(
    ("vmap", "loop", "strategy"), [(3e-3, 2e-3, "loop"), (2e-3, 3e-3, "vmap"), (LOOP_SECONDS / 2, 0.0, "vmap")]
)
def test_of_a_batch_that_takes_its_time_the_faster_way_is_kept(
    monkeypatch: pytest.MonkeyPatch, vmap: float, loop: float, strategy: str
) -> None:
    measured(monkeypatch, {"vmap": vmap, "loop": loop})

    program = program_of(query_of(quartic, GRADIENT, (spec((3,)),)), 4)

    assert (program.strategy, program.seconds) == (strategy, {"vmap": vmap, "loop": loop}[strategy])


def branching(x: Float[Array, "n"]) -> Float[Array, ""]:
    """One branch costs next to nothing. All points at once take both; one after the other takes the one it needs."""

    def long(y: Any) -> Any:
        return jax.lax.fori_loop(0, 2000, lambda _, z: jnp.tanh(z) + 0.1, y)

    return jnp.sum(jax.lax.cond(x[0] > 2, long, lambda y: y * 2, x))


def test_where_a_loop_over_the_points_wins_it_is_what_runs() -> None:
    program = program_of(query_of(branching, EVALUATE, (spec((200,)),)), 16)

    assert program.strategy == "loop"
    x = np.random.default_rng(0).uniform(-1, 1, (16, 200))
    np.testing.assert_allclose(program.run([x])[0], 2 * x.sum(1), rtol=1e-12, atol=1e-12)


def demanding(x: Float[Array, "n"]) -> Float[Array, ""]:
    """Needs n × n numbers on its way."""
    return jnp.sum(jnp.cumsum(jnp.outer(x, x), axis=0) @ x)


def test_a_batch_that_needs_too_much_memory_at_once_runs_as_a_loop() -> None:
    side = 64
    traced = trace(query_of(demanding, EVALUATE, (spec((side,)),)), {})
    with pytest.raises(ResultTooLarge, match="for 16 points at once"):
        _compiled(traced, 16, "vmap", 6 * side * side * 8)

    program = compile_program(traced, 16, 6 * side * side * 8)

    assert program.strategy == "loop"
    x = np.random.default_rng(0).normal(size=(16, side))
    want = [np.sum(np.cumsum(np.outer(row, row), axis=0) @ row) for row in x]
    np.testing.assert_allclose(program.run([x])[0], want, rtol=1e-12)


@pytest.mark.parametrize("bucket", [1, 2])
def test_a_program_says_how_long_it_takes(bucket: int) -> None:
    assert 0 < program_of(query_of(quartic, GRADIENT, (spec((3,)),)), bucket).seconds < SAFETY


def test_a_function_that_fails_at_all_ones_is_of_no_known_cost() -> None:
    assert program_of(query_of(grumbling, EVALUATE, (spec(),)), 2).seconds == 0


def called_in_a_scan(x: Float[Array, ""]) -> Any:
    shape = jax.ShapeDtypeStruct((), x.dtype)
    step = lambda carry, _: (jax.pure_callback(np.asarray, shape, carry, vmap_method="expand_dims"), None)
    return jax.lax.scan(step, x, None, length=2)[0]


def called_in_a_jit(x: Float[Array, ""]) -> Any:
    shape = jax.ShapeDtypeStruct((), x.dtype)
    return jax.jit(lambda y: jax.pure_callback(np.asarray, shape, y, vmap_method="expand_dims"))(x) + 1


def called_in_a_branch(x: Float[Array, ""]) -> Any:
    shape = jax.ShapeDtypeStruct((), x.dtype)
    call = lambda y: jax.pure_callback(np.asarray, shape, y, vmap_method="expand_dims")
    return jax.lax.cond(x > 0, call, lambda y: y, x)


def scanned(x: Float[Array, ""]) -> Any:
    return jax.lax.scan(lambda carry, _: (jnp.sin(carry), None), x, None, length=2)[0]


@pytest.mark.parametrize(
    ("call", "calls_back"),
    [
        (called_in_a_scan, True),
        (called_in_a_jit, True),
        (called_in_a_branch, True),
        (grumbling, True),
        (scanned, False),
    ],
)
def test_a_program_says_whether_it_calls_back(call: Callable[..., Any], calls_back: bool) -> None:
    assert program_of(query_of(call, EVALUATE, (spec(),))).calls_back == calls_back
