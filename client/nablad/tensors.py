"""Arrays in memory ↔ tensors on the wire. A dtype is one row of the table below."""

import math
import sys
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nablad.errors import InvalidTensor, WrongDtype
from nablad.v1 import tensor_pb2

Array = NDArray[Any]
"""An array in memory: any dtype, any shape, row-major or not."""

MAX_AXES = 32
"""As many as every version of numpy holds."""

_NUMPY_NAMES = {
    tensor_pb2.DTYPE_FLOAT64: "float64",
    tensor_pb2.DTYPE_FLOAT32: "float32",
    tensor_pb2.DTYPE_BFLOAT16: "bfloat16",
    tensor_pb2.DTYPE_FLOAT16: "float16",
    tensor_pb2.DTYPE_INT8: "int8",
    tensor_pb2.DTYPE_INT16: "int16",
    tensor_pb2.DTYPE_INT32: "int32",
    tensor_pb2.DTYPE_INT64: "int64",
    tensor_pb2.DTYPE_UINT8: "uint8",
    tensor_pb2.DTYPE_UINT16: "uint16",
    tensor_pb2.DTYPE_UINT32: "uint32",
    tensor_pb2.DTYPE_UINT64: "uint64",
    tensor_pb2.DTYPE_BOOL: "bool",
    tensor_pb2.DTYPE_COMPLEX64: "complex64",
    tensor_pb2.DTYPE_COMPLEX128: "complex128",
}

if sys.byteorder != "little":
    raise ImportError("nablad sends arrays as they lie in memory, little-endian; this machine is big-endian")


def _bfloat16() -> np.dtype[Any] | None:
    try:
        import ml_dtypes  # noqa: PLC0415 - optional: numpy itself has no bfloat16
    except ImportError:
        return None
    dtype: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return dtype


DTYPES: dict[int, np.dtype[Any]] = {
    number: np.dtype(name) for number, name in _NUMPY_NAMES.items() if name != "bfloat16"
}
"""The numpy dtype of each wire dtype that this process can hold; bfloat16 is among them if ml_dtypes is installed."""
if (_dtype := _bfloat16()) is not None:
    DTYPES[tensor_pb2.DTYPE_BFLOAT16] = _dtype

NUMBERS: dict[np.dtype[Any], tensor_pb2.Dtype.ValueType] = {
    DTYPES[number]: number for number in _NUMPY_NAMES if number in DTYPES
}
"""The wire dtype of each numpy dtype."""


class Data(NamedTuple):
    """A checked tensor, not yet an array: the number of bytes fits the shape and dtype."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    data: bytes


def read(tensor: tensor_pb2.Tensor, field: str) -> Data:
    """Checks a tensor from the wire without copying it.

    Raises:
        InvalidTensor: no dtype, an unknown one, a negative size, shape × dtype ≠ bytes, or a boolean that is neither
            0 nor 1. `field` is the path of the tensor, to which the offending member is added.
    """
    number = tensor.dtype
    dtype = DTYPES.get(number)
    if dtype is None:
        if number == tensor_pb2.DTYPE_BFLOAT16:
            raise InvalidTensor("a bfloat16 tensor needs the package ml_dtypes: pip install ml_dtypes", field=field)
        given = "no dtype was given" if number == tensor_pb2.DTYPE_UNSPECIFIED else f"dtype {number} is unknown"
        raise InvalidTensor(f"{given}; expected one of {', '.join(_NUMPY_NAMES.values())}", field=f"{field}.dtype")
    shape = tuple(tensor.shape)
    if shape and min(shape) < 0:
        raise InvalidTensor(f"shape {list(shape)} has a negative size; sizes are 0 or more", field=f"{field}.shape")
    if len(shape) > MAX_AXES or math.prod(size or 1 for size in shape) * dtype.itemsize >= 1 << 63:
        raise InvalidTensor(
            f"shape {list(shape[:8])}… of {dtype.name} is no array: at most {MAX_AXES} axes, and sizes whose product, "
            "those of 0 aside, is below 2^63 bytes",
            field=f"{field}.shape",
        )
    data = tensor.data
    expected = math.prod(shape) * dtype.itemsize
    if len(data) != expected:
        raise InvalidTensor(
            f"shape {list(shape)} of {dtype.name} takes {expected} bytes; got {len(data)}", field=f"{field}.data"
        )
    if dtype.kind == "b" and data.translate(None, b"\0\1"):
        raise InvalidTensor("a boolean is one byte, 0 or 1; got another byte", field=f"{field}.data")
    return Data(dtype, shape, data)


def to_array(tensor: tensor_pb2.Tensor, field: str = "tensor") -> Array:
    """The tensor as a writable array of its own. Raises InvalidTensor as `read` does."""
    dtype, shape, data = read(tensor, field)
    return np.frombuffer(data, dtype).reshape(shape).copy()


def to_tensor(values: ArrayLike) -> tensor_pb2.Tensor:
    """The array-like as a tensor: numpy's dtype rules, so Python floats become float64 and ints int64.

    Raises:
        WrongDtype: the dtype (strings, objects, dates) has no place on the wire.
    """
    array = np.asarray(values)
    if array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("<"))
    number = NUMBERS.get(array.dtype)
    if number is None:
        raise WrongDtype(f"dtype {array.dtype} cannot be sent; expected one of {', '.join(_NUMPY_NAMES.values())}")
    return tensor_pb2.Tensor(dtype=number, shape=array.shape, data=array.tobytes())
