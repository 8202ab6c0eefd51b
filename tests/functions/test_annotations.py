# jaxtyping writes shapes as strings, which are not forward references:
# ruff: noqa: F722, F821

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import pytest
from jaxtyping import Array, Bool, Complex, Float, Float32, Inexact, Int, Num, Real, Shaped, UInt8

from nablad_server.functions.annotations import signature_of, spec
from nablad_server.functions.signature import TensorSpec

FLOATS = {"float64", "float32", "float16", "bfloat16"}
INTS = {"int8", "int16", "int32", "int64"}
UINTS = {"uint8", "uint16", "uint32", "uint64"}
COMPLEX = {"complex64", "complex128"}


@pytest.mark.parametrize(
    ("kind", "dtypes"),
    [
        (Float, FLOATS),
        (Float32, {"float32"}),
        (Int, INTS),
        (UInt8, {"uint8"}),
        (Bool, {"bool"}),
        (Complex, COMPLEX),
        (Inexact, FLOATS | COMPLEX),
        (Real, FLOATS | INTS | UINTS),
        (Num, FLOATS | INTS | UINTS | COMPLEX),
        (Shaped, set()),  # any
    ],
)
def test_an_annotation_accepts_the_dtypes_of_its_kind(kind: Any, dtypes: set[str]) -> None:
    assert {dtype.name for dtype in spec(kind[Array, "n"]).dtypes} == dtypes


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("", ()),
        ("n", ("n",)),
        ("n m n", ("n", "m", "n")),
        ("3 n", (3, "n")),
        ("rows=3", (3,)),
        ("_ n", (None, "n")),
        ("_batch n", (None, "n")),
        ("0", (0,)),
        ("...", None),
    ],
)
def test_an_annotation_says_the_shape(text: str, shape: Any) -> None:
    assert spec(Float[Array, text]).shape == shape


@pytest.mark.parametrize("text", ["n+1", "2*n", "n-1 m", "*batch n", "... n", "#n", "{n}"])
def test_a_size_that_is_an_expression_is_refused_with_advice(text: str) -> None:
    with pytest.raises(ValueError, match="neither a number, a name nor _; give it a name of its own"):
        spec(Float[Array, text])


class Pair(NamedTuple):
    left: Float[Array, "n"]
    right: Int[Array, ""]


@jtu.register_dataclass
@dataclasses.dataclass
class Layer:
    w: Float[Array, "d h"]
    pair: Pair


F = Float[Array, ""]


@pytest.mark.parametrize(
    ("annotation", "names"),
    [
        (F, ["x"]),
        (Pair, ["x.left", "x.right"]),
        (Layer, ["x.w", "x.pair.left", "x.pair.right"]),
        (tuple[F, Pair], ["x[0]", "x[1].left", "x[1].right"]),
        ({"b": F, "a": [F, (F,)]}, ["x.a[0]", "x.a[1][0]", "x.b"]),
        (TensorSpec(), ["x"]),
        (Any, ["x"]),
    ],
)
def test_structures_of_arrays_are_understood(annotation: Any, names: list[str]) -> None:
    def call(x: Any) -> Any:
        return x

    signature = signature_of(call, {"x": annotation}, None)

    assert [leaf.name for leaf in signature.inputs] == names


@pytest.mark.parametrize(
    "annotation", [float, "Float", jax.Array, np.ndarray, list[float], dict[str, Any], tuple[F, ...], F | None, None]
)
def test_what_says_nothing_of_shapes_is_refused_by_parameter_with_an_example(annotation: Any) -> None:
    def call(x: Any, y: Any) -> Any:
        return x + y

    with pytest.raises(ValueError, match=r"parameter 'y': .*for example Float\[Array, 'n 3'\]"):
        signature_of(call, {"x": F, "y": annotation}, None)


def test_dtypes_that_cannot_be_sent_are_refused() -> None:
    base: Any = Float
    kind: Any = type("Key", (base,), {"dtypes": ["prng_key"]})

    with pytest.raises(ValueError, match=r"none of the dtypes .*prng_key.* can be sent"):
        spec(kind[Array, "n"])


def defaulted(x: Float[Array, "n"], power: int = 2, *, scale: float = 1.0) -> Float[Array, "n"]:
    return scale * x**power


def test_parameters_with_a_default_are_not_inputs() -> None:
    assert signature_of(defaulted, None, None).arguments == ("x",)


def test_a_default_cannot_be_made_an_input_by_name() -> None:
    with pytest.raises(ValueError, match=r"inputs= names \['power'\]"):
        signature_of(defaulted, {"power": F}, None)


def variadic(*xs: Float[Array, "n"]) -> Float[Array, "n"]:
    return jnp.sum(jnp.stack(xs), 0)


def keywords(x: Float[Array, "n"], **more: Float[Array, "n"]) -> Float[Array, "n"]:
    return x + sum(more.values())


def nothing() -> Float[Array, ""]:
    return jnp.zeros(())


def misspelt(x: "Float[Arry, 'n']") -> Float[Array, ""]:  # type: ignore[name-defined]
    return jnp.sum(x)


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (variadic, r"parameter \*xs: an input needs a name of its own"),
        (keywords, r"parameter \*more: an input needs a name of its own"),
        (nothing, "no inputs"),
        (misspelt, "annotations cannot be read: NameError: name 'Arry'"),
    ],
)
def test_parameters_that_could_not_be_inputs_are_refused(call: Callable[..., Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        signature_of(call, None, None)


def bare(x, y: Float[Array, "n"]):  # type: ignore[no-untyped-def]  # noqa: ANN001
    return x + y


def test_a_parameter_without_annotation_takes_any_array() -> None:
    signature = signature_of(bare, None, None)

    assert signature.inputs[0] == TensorSpec()
    assert signature.outputs is None


def test_what_is_returned_is_read_like_an_input_and_may_be_replaced() -> None:
    annotated = signature_of(defaulted, None, None).outputs
    replaced = signature_of(defaulted, None, {"a": F, "b": Float[Array, "2"]}).outputs

    assert annotated is not None
    assert replaced is not None
    assert [(leaf.name, leaf.shape) for leaf in annotated] == [("value", ("n",))]
    assert [(leaf.name, leaf.shape) for leaf in replaced] == [("a", ()), ("b", (2,))]


def test_a_result_that_says_nothing_is_refused_as_such() -> None:
    with pytest.raises(ValueError, match="what it returns: "):
        signature_of(defaulted, None, float)


def test_text_annotations_are_read_too() -> None:
    def call(x: "Float[Array, 'n 3']") -> "Float[Array, '3']":
        return x.sum(0)

    assert signature_of(call, None, None).inputs[0].shape == ("n", 3)
