"""Arrays survive the wire bit by bit."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from nablad.errors import InvalidTensor, WrongDtype
from nablad.tensors import DTYPES, Array, read, to_array, to_tensor
from nablad.v1 import tensor_pb2

PLAIN = [dtype for dtype in DTYPES.values() if dtype.kind != "V"]


@given(st.sampled_from(PLAIN).flatmap(lambda dtype: arrays.arrays(dtype, arrays.array_shapes(min_dims=0, min_side=0))))
def test_round_trip(array: Array) -> None:
    tensor = to_tensor(array)
    back = to_array(tensor_pb2.Tensor.FromString(tensor.SerializeToString()))
    assert back.dtype == array.dtype
    assert back.shape == array.shape
    assert back.tobytes() == array.tobytes()
    assert back.flags.writeable


def test_bfloat16_round_trip() -> None:
    dtype = DTYPES[tensor_pb2.DTYPE_BFLOAT16]
    array = np.array([1.0, -0.0, 3.140625, np.inf, np.nan], dtype)
    assert to_array(to_tensor(array)).tobytes() == array.tobytes()


@pytest.mark.parametrize("order", ["C", "F"])
def test_layout_is_row_major_whatever_the_memory_order(order: str) -> None:
    array = np.asarray(np.arange(6.0).reshape(2, 3), order=order)  # type: ignore[call-overload]  # a literal in a variable
    assert to_tensor(array).data == np.arange(6.0).tobytes()
    assert to_tensor(array[:, ::2]).data == np.array([0.0, 2.0, 3.0, 5.0]).tobytes()


def test_big_endian_arrays_are_turned() -> None:
    assert to_tensor(np.array([1.5, -2.0], ">f8")).data == np.array([1.5, -2.0]).tobytes()


@pytest.mark.parametrize("value", ["text", [object()], np.array(["2020-01-01"], "M8[D]")])
def test_what_has_no_place_on_the_wire_is_refused(value: object) -> None:
    with pytest.raises(WrongDtype, match="cannot be sent"):
        to_tensor(value)  # type: ignore[arg-type]  # that is the point


def test_reading_copies_nothing() -> None:
    tensor = to_tensor(np.arange(4.0))
    assert read(tensor, "t").shape == (4,)
    with pytest.raises(InvalidTensor, match="takes 32 bytes; got 31") as caught:
        read(tensor_pb2.Tensor(dtype=tensor_pb2.DTYPE_FLOAT64, shape=[4], data=tensor.data[:-1]), "inputs[3].tensor")
    assert caught.value.field == "inputs[3].tensor.data"
