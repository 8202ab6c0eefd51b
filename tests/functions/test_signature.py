import dataclasses
import math
from collections import OrderedDict
from typing import Any, NamedTuple

import jax.tree_util as jtu
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nablad.errors import WrongDtype, WrongShape
from nablad_server.functions.signature import (
    ArraySpec,
    Dim,
    Signature,
    TensorSpec,
    describe_shape,
    flatten,
    flatten_outputs,
)

F64, F32, I32 = (np.dtype(name) for name in ("float64", "float32", "int32"))
FLOATS = (F64, F32)


def array(*shape: int, dtype: Any = F64) -> ArraySpec:
    return ArraySpec(shape, np.dtype(dtype))


def tensor(*shape: Dim, dtypes: tuple[Any, ...] = FLOATS) -> TensorSpec:
    return TensorSpec(dtypes, shape)


PRODUCT = Signature.of({"x": tensor("n"), "A": tensor("n", "m"), "k": tensor(3, None, dtypes=(I32,))})
FIELDS = ["inputs[0]", "inputs[1]", "inputs[2]"]


def check(*given: ArraySpec) -> None:
    PRODUCT.check(given, FIELDS, "product@1")


@given(st.integers(0, 9), st.integers(0, 9), st.integers(0, 9))
def test_shapes_that_agree_on_every_symbol_fit(n: int, m: int, anything: int) -> None:
    check(array(n), array(n, m), array(3, anything, dtype=I32))


@pytest.mark.parametrize(
    ("given", "field", "reasons"),
    [
        ((array(4), array(5, 2), array(3, 1, dtype=I32)), "inputs[1]", ["'A'", "axis 0 is n", "'x' says is 4, not 5"]),
        ((array(4), array(4, 2), array(2, 1, dtype=I32)), "inputs[2]", ["'k'", "axis 0 is 3, not 2"]),
        ((array(4, 1), array(4, 2), array(3, 1, dtype=I32)), "inputs[0]", ["'x'", "1 axes, not 2", "batched"]),
        ((array(), array(4, 2), array(3, 1, dtype=I32)), "inputs[0]", ["'x'", "[n]", "1 axes, not 0"]),
    ],
)
def test_a_shape_that_does_not_fit_is_named_with_its_input_and_axis(
    given: tuple[ArraySpec, ...], field: str, reasons: list[str]
) -> None:
    with pytest.raises(WrongShape) as refused:
        check(*given)
    assert refused.value.field == f"{field}.tensor.shape"
    for reason in ["product@1", *reasons]:
        assert reason in refused.value.message


def test_a_symbol_binds_within_one_input_too() -> None:
    square = Signature.of({"A": tensor("n", "n")})

    square.check([array(3, 3)], ["inputs[0]"], "square@1")
    with pytest.raises(WrongShape, match="axis 1 is n, which input 'A' says is 3, not 4"):
        square.check([array(3, 4)], ["inputs[0]"], "square@1")


def test_a_dtype_that_does_not_fit_is_named_with_those_that_do() -> None:
    with pytest.raises(WrongDtype, match="input 'x' of product@1 is int32; expected float32 or float64") as refused:
        check(array(4, dtype=I32), array(4, 2), array(3, 1, dtype=I32))
    assert refused.value.field == "inputs[0].tensor.dtype"


def test_an_input_left_open_takes_anything() -> None:
    anything = Signature.of({"x": TensorSpec()})

    for one in (array(), array(2, 3, dtype=I32), array(0, dtype="complex64")):
        anything.check([one], ["inputs[0]"], "open@1")


class Layer(NamedTuple):
    w: Any
    b: Any


@jtu.register_dataclass
@dataclasses.dataclass
class Model:
    layers: Any
    scale: Any


def test_leaves_are_named_by_their_path() -> None:
    layer = Layer(tensor("d", "h"), tensor("h"))
    model = Model([layer, layer], tensor())

    signature = Signature.of({"model": model, "x": tensor("d"), "rest": {"a b": tensor(), "c": (tensor(),)}})

    assert [spec.name for spec in signature.inputs] == [
        "model.layers[0].w", "model.layers[0].b", "model.layers[1].w", "model.layers[1].b", "model.scale", "x",
        'rest["a b"]', "rest.c[0]",
    ]  # fmt: skip
    assert signature.symbols == ("d", "h")


def test_arguments_are_rebuilt_from_their_leaves() -> None:
    signature = Signature.of({"layer": Layer(tensor(), tensor()), "x": tensor(), "none": {}, "more": [tensor()]})

    assert signature.unflatten([1, 2, 3, 4]) == (Layer(1, 2), 3, {}, [4])


def test_two_leaves_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match=r"two inputs would both be called .*0\.1"):
        Signature.of({"x": {0.1: tensor(), np.float32(0.1): tensor()}})


def test_a_key_and_a_quoted_path_are_different_names() -> None:
    signature = Signature.of({"x": {"a.b": tensor(), "a": {"b": tensor()}}})

    assert [spec.name for spec in signature.inputs] == ["x.a.b", 'x["a.b"]']


def test_a_leaf_that_is_no_specification_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"'x\.w' is 3; expected a jaxtyping annotation"):
        Signature.of({"x": {"w": 3}})


@pytest.mark.parametrize(
    ("result", "names"),
    [
        (1, ["value"]),
        ((1, 2), ["[0]", "[1]"]),
        ({"b": 1, "a": 2}, ["a", "b"]),
        (OrderedDict(b=1, a=2), ["b", "a"]),
        (Layer(1, (2, 3)), ["w", "b[0]", "b[1]"]),
        ({"only": 1, "nothing": None}, ["only"]),
        ([], []),
    ],
)
def test_outputs_are_named_from_the_top(result: Any, names: list[str]) -> None:
    assert [name for name, _ in flatten_outputs(result)] == names


def test_flattening_keeps_leaves_beside_their_names() -> None:
    pairs, structure = flatten("p", {"b": 1, "a": [2, 3]})

    assert pairs == [("p.a[0]", 2), ("p.a[1]", 3), ("p.b", 1)]
    assert jtu.tree_unflatten(structure, [leaf for _, leaf in pairs]) == {"b": 1, "a": [2, 3]}


@pytest.mark.parametrize(
    ("shape", "closed"), [((), True), (("n", 3), True), ((0,), True), (("n", None), False), (None, False)]
)
def test_a_signature_is_closed_if_its_symbols_say_everything(shape: tuple[Dim, ...] | None, closed: bool) -> None:
    assert Signature.of({"x": TensorSpec(FLOATS, shape)}).closed is closed


def test_concrete_inputs_take_sizes_from_symbols_and_the_dtype_where_they_may() -> None:
    signature = Signature.of({"x": tensor("n", 0, None), "k": tensor(dtypes=(I32,)), "any": TensorSpec()})

    assert signature.at({"n": 4}, F32) == (array(4, 0, 1, dtype=F32), array(dtype=I32), array(dtype=F32))


@pytest.mark.parametrize(
    ("dtype", "differentiable", "wide"),
    [
        ("float64", True, True),
        ("float16", True, False),
        (ml_dtypes.bfloat16, True, False),
        ("int64", False, False),
        ("bool", False, False),
        ("complex64", False, False),
        ("complex128", False, True),
    ],
)
def test_what_an_array_can_be_used_for(dtype: Any, differentiable: bool, wide: bool) -> None:
    assert (array(dtype=dtype).differentiable, array(dtype=dtype).wide) == (differentiable, wide)
    assert tensor(dtypes=(np.dtype(dtype),)).differentiable is differentiable


@given(st.lists(st.integers(0, 5)))
def test_the_size_of_an_array_is_the_product_of_its_axes(shape: list[int]) -> None:
    assert array(*shape).size == math.prod(shape)


def test_descriptions_are_for_people() -> None:
    assert describe_shape(("n", 3, None)) == "[n, 3, _]"
    assert describe_shape(None) == "[…]"
    assert str(array(2, 3)) == "float64[2, 3]"
    assert str(tensor("n")) == "float64|float32[n]"
    assert str(TensorSpec()) == "any dtype[…]"
    every_float = tuple(np.dtype(t) for t in ("float64", "float32", "float16", ml_dtypes.bfloat16))
    assert str(tensor("n", dtypes=every_float)) == "float[n]"
