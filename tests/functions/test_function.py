# jaxtyping writes shapes as strings, which are not forward references:
# ruff: noqa: F722, F821

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Complex, Float, Int

from nablad.errors import FunctionFailed
from nablad.v1 import function_pb2
from nablad_server.functions.function import MAX_KNOWN_SHAPES, Warm
from nablad_server.functions.registration import build, function
from nablad_server.functions.signature import ArraySpec

F64, F32 = np.dtype(np.float64), np.dtype(np.float32)


def polynomial(x: Float[Array, "n"], k: Int[Array, ""]) -> Any:
    """A polynomial.

    And its degree.
    """
    return {"p": jnp.sum(x**2) + k, "each": x * k, "degree": k * 2}


def shapes(call: Callable[..., Any]) -> dict[str, Any]:
    outputs = build(call, "test").signature.outputs
    assert outputs is not None
    return {spec.name: spec.shape for spec in outputs}


def test_a_plain_function_becomes_one_by_its_name_and_docstring() -> None:
    built = build(polynomial, "file:models.py")

    assert (built.reference, built.source) == ("polynomial@1", "file:models.py")
    assert built.documentation == "A polynomial.\n\nAnd its degree."
    assert built.warm == ()


def test_marking_leaves_a_function_what_it_is() -> None:
    def plain(x: Float[Array, "n"]) -> Float[Array, "n"]:
        return x

    marked = function(name="other", version=3, warm=[Warm("gradient", {"n": 4})])(plain)

    assert marked is plain
    built = build(marked, "test")
    assert built.reference == "other@3"
    assert built.warm == (Warm("gradient", {"n": 4}),)


def test_the_decorator_may_go_without_parentheses_and_around_jit() -> None:
    @function
    def plain(x: Float[Array, "n"]) -> Float[Array, "n"]:
        return x

    @function
    @jax.jit
    def jitted(x: Float[Array, "n"]) -> Float[Array, "n"]:
        return x

    @jax.jit
    @function(version=2)
    def marked_inside(x: Float[Array, "n"]) -> Float[Array, "n"]:
        return x

    assert [build(call, "test").reference for call in (plain, jitted, marked_inside)] == [
        "plain@1",
        "jitted@1",
        "marked_inside@2",
    ]


@pytest.mark.parametrize("name", ["1st", "a b", "a@1", "<lambda>", "_private", "é", "a" * 129])
def test_a_name_that_could_not_be_asked_for_is_refused(name: str) -> None:
    @function(name=name)
    def call(x: Float[Array, "n"]) -> Float[Array, "n"]:
        return x

    with pytest.raises(ValueError, match=r"test: function .*: the name is not a letter followed by .*give name="):
        build(call, "test")


def test_versions_begin_at_one() -> None:
    @function(version=0)
    def call(x: Float[Array, "n"]) -> Float[Array, "n"]:
        return x

    with pytest.raises(ValueError, match="version=0; expected 1 or more"):
        build(call, "test")


def test_outputs_are_named_and_shaped_by_tracing() -> None:
    outputs = build(polynomial, "test").signature.outputs

    assert outputs is not None
    assert [(spec.name, spec.shape) for spec in outputs] == [("degree", ()), ("each", ("n",)), ("p", ())]
    assert [spec.differentiable for spec in outputs] == [False, True, True]


def test_sizes_of_outputs_are_symbols_only_where_they_follow_them() -> None:
    def call(x: Float[Array, "n"], y: Float[Array, "m 2"], z: Float[Array, "k"]) -> Any:
        return {
            "x": x, "outer": jnp.outer(y[:, 0], z), "fixed": x[:3], "twice": jnp.concatenate([x, x]),
            "more": jnp.append(x, 0.0), "fewer": y[1:, 0], "two": y[0],
        }  # fmt: skip

    assert shapes(call) == {
        "x": ("n",), "outer": ("m", "k"), "fixed": (3,), "twice": (None,), "more": (None,), "fewer": (None,),
        "two": (2,),
    }  # fmt: skip


def test_an_open_signature_leaves_the_outputs_open() -> None:
    def call(x: Float[Array, "..."]) -> Any:
        return x

    assert build(call, "test").signature.outputs is None


@pytest.mark.parametrize(
    ("declared", "reason"),
    [
        (Float[Array, "n"], r"output 'value' is declared as \[n\] but has the shape \[\] when n=3"),
        (Float[Array, "2"], r"declared as \[2\] but has the shape \[\]"),
        (Int[Array, ""], "declared as .*int64.* but is float64"),
        ({"a": Float[Array, ""]}, r"declared to return \['a'\] but returns \['value'\]"),
        (tuple[Float[Array, ""], Float[Array, ""]], r"declared to return \['\[0\]', '\[1\]'\] but returns"),
    ],
)
def test_a_declared_output_that_is_not_what_is_returned_is_refused(declared: Any, reason: str) -> None:
    @function(outputs=declared)
    def total(x: Float[Array, "n"]) -> Any:
        return jnp.sum(x)

    with pytest.raises(ValueError, match=f"test: function 'total': .*{reason}"):
        build(total, "test")


@pytest.mark.parametrize("declared", [Float[Array, "n"], Float[Array, "_"], Float[Array, "..."], Float[Array, "other"]])
def test_a_declared_output_that_fits_is_kept(declared: Any) -> None:
    @function(outputs=declared)
    def double(x: Float[Array, "n"]) -> Any:
        return 2 * x

    outputs = build(double, "test").signature.outputs
    assert outputs is not None
    assert outputs[0].shape == {"n": ("n",), "_": (None,), "...": None, "other": ("other",)}[declared.dim_str]


def test_a_function_that_raises_is_refused_at_registration_with_its_reason() -> None:
    def mismatched(x: Float[Array, "n"], y: Float[Array, "m"]) -> Any:
        return x + y

    with pytest.raises(
        ValueError, match=r"test: mismatched@1 raised TypeError for inputs \(float64\[3\], float64\[4\]\): .*sizes="
    ):
        build(mismatched, "test")


def test_without_symbols_there_is_no_advice_about_sizes() -> None:
    def broken(x: Float[Array, "2"]) -> Any:
        raise RuntimeError("one\ntwo\nthree\nfour\nfive")

    with pytest.raises(ValueError, match=r"broken@1 raised RuntimeError.*one\ntwo\nthree\nfour$"):
        build(broken, "test")


def test_example_sizes_make_a_function_traceable() -> None:
    @function(sizes={"n": 4})
    def pairs(x: Float[Array, "n"], y: Float[Array, "m"]) -> Any:
        return x.reshape(-1, 2) * y[0], x, y

    assert shapes(pairs) == {"[0]": (2, 2), "[1]": ("n",), "[2]": ("m",)}


def test_sizes_for_symbols_that_are_not_there_are_refused() -> None:
    @function(sizes={"k": 4})
    def call(x: Float[Array, "n"]) -> Any:
        return x

    with pytest.raises(ValueError, match=r"sizes= names \['k'\]; the symbols are \['n'\]"):
        build(call, "test")


@pytest.mark.parametrize("result", [None, {}, [None]])
def test_a_function_that_returns_no_array_is_refused(result: Any) -> None:
    def call(x: Float[Array, "n"]) -> Any:
        return result

    with pytest.raises(ValueError, match="call@1 returns no array"):
        build(call, "test")


def test_a_result_that_is_no_array_is_refused() -> None:
    def call(x: Float[Array, "n"]) -> Any:
        return {"name": "text", "x": x}

    with pytest.raises(ValueError, match="call@1 raised TypeError"):
        build(call, "test")


def test_plain_numbers_in_a_result_are_outputs() -> None:
    def call(x: Float[Array, "n"]) -> Any:
        return {"x": x, "two": 2, "half": 0.5, "yes": True}

    built = build(call, "test")

    assert dict(built.outputs_at((ArraySpec((2,), F32),))) == {
        "half": ArraySpec((), F32),
        "two": ArraySpec((), np.dtype(np.int32)),
        "x": ArraySpec((2,), F32),
        "yes": ArraySpec((), np.dtype(np.bool_)),
    }
    leaves = built.flat([jnp.ones(2)])
    assert [leaf.tolist() for leaf in leaves] == [0.5, 2, [1.0, 1.0], True]


def test_outputs_are_traced_once_for_the_same_shapes_and_never_remembered_without_bound() -> None:
    traces = []

    def call(x: Float[Array, "n"]) -> Any:
        traces.append(x.shape)
        return x

    built = build(call, "test")
    traces.clear()
    shape = (ArraySpec((7,), F64),)

    assert built.outputs_at(shape) == built.outputs_at(shape)
    assert traces == [(7,)]
    for size in range(100, 100 + MAX_KNOWN_SHAPES):
        built.outputs_at((ArraySpec((size,), F64),))
    built.outputs_at(shape)
    assert traces.count((7,)) == 2


def test_a_function_that_fails_at_some_shapes_fails_there_alone() -> None:
    def call(x: Float[Array, "n"]) -> Any:
        return x[:20] + jnp.ones(min(x.shape[0], 21))

    built = build(call, "test")

    with pytest.raises(FunctionFailed, match=r"call@1 raised TypeError for inputs \(float64\[40\]\)") as failed:
        built.outputs_at((ArraySpec((40,), F64),))
    assert failed.value.metadata == {"function": "call@1", "exception": "TypeError"}
    assert built.outputs_at((ArraySpec((5,), F64),)) == (("value", ArraySpec((5,), F64)),)


def test_two_functions_are_equal_only_if_they_are_one() -> None:
    assert build(polynomial, "test") != build(polynomial, "test")


def names_of(call: Callable[..., Any]) -> set[str]:
    return {
        function_pb2.Operator.Name(operator).removeprefix("OPERATOR_") for operator in build(call, "test").operators()
    }


FIRST_ORDER = {"EVALUATE", "JACOBIAN", "JVP", "VJP", "DERIVATIVE"}
OF_SCALARS = {"GRADIENT", "HESSIAN", "HVP", "DIRECTIONAL_DERIVATIVE", "LAPLACIAN"}


def scalar_of_vector(x: Float[Array, "n"]) -> Any:
    return jnp.sum(x)


def vector_of_vector(x: Float[Array, "n"]) -> Any:
    return 2 * x


def scalar_of_scalar(x: Float[Array, ""]) -> Any:
    return 2 * x


def vector_of_scalar(x: Float[Array, ""], k: Int[Array, ""]) -> Any:
    return jnp.stack([x, k * x])


def integers(k: Int[Array, "n"]) -> Any:
    return 1.0 * k


def counting(x: Float[Array, "n"]) -> Any:
    return jnp.sum(x > 0)


def complex_numbers(z: Complex[Array, "n"]) -> Any:
    return jnp.abs(z)


def anything(x: Any) -> Any:
    return x


@pytest.mark.parametrize(
    ("call", "operators"),
    [
        (scalar_of_vector, FIRST_ORDER | OF_SCALARS),
        (vector_of_vector, FIRST_ORDER),
        (scalar_of_scalar, FIRST_ORDER | OF_SCALARS),
        (vector_of_scalar, FIRST_ORDER),
        (integers, {"EVALUATE"}),
        (counting, {"EVALUATE"}),
        (complex_numbers, {"EVALUATE"}),
        (anything, FIRST_ORDER | OF_SCALARS),
    ],
    ids=lambda part: getattr(part, "__name__", ""),
)
def test_the_operators_are_those_that_the_signature_allows(call: Callable[..., Any], operators: set[str]) -> None:
    assert names_of(call) == operators


def test_a_return_annotation_without_shapes_leaves_them_to_tracing() -> None:
    def doubled(x: Float[Array, "n"]) -> jax.Array:
        return 2 * x

    def parts(x: Float[Array, "n"]) -> dict[str, Any]:
        return {"sum": jnp.sum(x), "all": x}

    outputs = [build(call, "test").signature.outputs or () for call in (doubled, parts)]
    assert [[(leaf.name, leaf.shape) for leaf in leaves] for leaves in outputs] == [
        [("value", ("n",))],
        [("all", ("n",)), ("sum", ())],
    ]
