# jaxtyping writes shapes as strings, which are not forward references:
# ruff: noqa: F722, F821

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jaxtyping import Array, Bool, Float, Int

from nablad.errors import CompileFailed, InvalidOption, NotDifferentiable
from nablad.v1 import function_pb2
from nablad_server.derivatives.program import HOISTED_BYTES, Constants, Program, compile_program, trace
from nablad_server.derivatives.query import Query
from nablad_server.functions.registration import build
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

    (value,), (gradient,) = answer(query_of(quartic, GRADIENT, (spec((3,), dtype),)), x)

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

    values, by_x, by_A = shared.run([x, A])

    np.testing.assert_allclose(values, np.einsum("pi,ij,pj->p", x, A, x), rtol=1e-13)
    np.testing.assert_allclose(by_x, x @ (A + A.T), rtol=1e-13)
    np.testing.assert_allclose(by_A, np.einsum("pi,pj->pij", x, x), rtol=1e-13)


@pytest.mark.parametrize("bucket", [1, 4])
def test_arrays_without_elements_are_arrays(bucket: int) -> None:
    program = program_of(query_of(bilinear, GRADIENT, (spec((0,)), spec((0, 0)))), bucket)

    values, by_x, by_A = program.run([np.zeros((bucket, 0)), np.zeros((bucket, 0, 0))])

    assert values.tolist() == [0.0] * bucket
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
