"""The points of a CheckGradient request: inputs as given, and sampled ones for the rest."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from nablad.errors import InvalidBatch, InvalidOption, ResultTooLarge
from nablad.tensors import DTYPES, to_tensor
from nablad.v1 import diagnostics_pb2 as pb
from nablad.v1 import tensor_pb2
from nablad_server.diagnosis.sampling import sampled, sizes_of, specs_of
from nablad_server.functions.function import Function

MAX_POINTS, POINTS = 64, 3

MAX_BYTES = 1 << 26
"""Of all inputs that are sampled for one call."""


def chosen_inputs(
    request: pb.CheckGradientRequest, function: Function, random: np.random.Generator
) -> list[tensor_pb2.NamedTensor]:
    """All inputs of the function: those given, in their order, then those sampled.

    What is given is checked with the requests that are made of it.

    Raises:
        InvalidOption: points, sizes or dtype contradict the inputs, or an input cannot be sampled.
        InvalidBatch: there are too many points.
        ResultTooLarge: the inputs to be sampled are too large.
        FunctionFailed: the function's own way of sampling an input does not give what it should.
    """
    given = list(request.inputs)
    names = {tensor.name for tensor in given}
    missing = [index for index, spec in enumerate(function.signature.inputs) if spec.name not in names]
    points = _points(request, given, sampling=bool(missing))
    if not missing:
        return given
    sizes = sizes_of(function, _known_sizes(given, function), dict(request.sizes))
    specs = specs_of(function, missing, sizes, _dtype(request, given))
    size = points * sum(specs[index].bytes for index in missing)
    if size > MAX_BYTES:
        raise ResultTooLarge(
            f"the inputs of {function.reference} at {points} points are {size} bytes here; at most {MAX_BYTES} are "
            "sampled. Ask for fewer points or smaller sizes",
            field="sizes",
        )
    for index in missing:
        spec = function.signature.inputs[index]
        tensor = to_tensor(sampled(function, spec, specs[index], points, random))
        given.append(tensor_pb2.NamedTensor(name=spec.name, tensor=tensor, batched=True))
    return given


def _points(request: pb.CheckGradientRequest, given: Sequence[tensor_pb2.NamedTensor], *, sampling: bool) -> int:
    batches = [tensor for tensor in given if tensor.batched and tensor.tensor.shape]
    if request.points and (batches or not sampling):
        why = "the batched inputs say how many there are" if batches else "every input is given"
        raise InvalidOption(f"points is {request.points}, but {why}; leave it 0", field="points")
    if request.points > MAX_POINTS:
        raise InvalidOption(f"points is {request.points}; expected at most {MAX_POINTS}", field="points")
    if not batches:
        return request.points or POINTS
    count = batches[0].tensor.shape[0]
    if count > MAX_POINTS:
        raise InvalidBatch(f"{count} points; derivatives are checked at no more than {MAX_POINTS} in one call")
    return count


def _known_sizes(given: Sequence[tensor_pb2.NamedTensor], function: Function) -> dict[str, int]:
    """The sizes of symbols that given inputs tell."""
    specs = {spec.name: spec for spec in function.signature.inputs}
    known: dict[str, int] = {}
    for tensor in given:
        spec = specs.get(tensor.name)
        shape = tensor.tensor.shape[1:] if tensor.batched else tensor.tensor.shape
        if spec is not None and spec.shape is not None and len(shape) == len(spec.shape):
            known |= {dim: size for dim, size in zip(spec.shape, shape, strict=True) if isinstance(dim, str)}
    return known


def _dtype(request: pb.CheckGradientRequest, given: Sequence[tensor_pb2.NamedTensor]) -> np.dtype[Any]:
    """The dtype of sampled floating-point inputs: as asked, or the widest of those given, or float64."""
    if request.dtype:
        asked = DTYPES.get(request.dtype)
        if asked is None or asked.kind not in "fV":
            raise InvalidOption(
                f"dtype {request.dtype} is no floating-point one; expected FLOAT64, FLOAT32, BFLOAT16 or FLOAT16",
                field="dtype",
            )
        return asked
    dtypes = [DTYPES[tensor.tensor.dtype] for tensor in given if tensor.tensor.dtype in DTYPES]
    floating = [dtype for dtype in dtypes if dtype.kind in "fV"]
    return max(floating, key=lambda dtype: dtype.itemsize, default=np.dtype(np.float64))
