"""Compiling programs before the first caller needs them, by making the very calls that callers will make."""

import functools
import queue
from typing import Any

import numpy as np

from nablad.errors import NabladError
from nablad.tensors import DTYPES, to_tensor
from nablad.v1 import tensor_pb2
from nablad_server.batching.batcher import Batcher
from nablad_server.batching.ticket import Outcome
from nablad_server.derivatives.patterns import Patterns
from nablad_server.functions.function import Function, Warm
from nablad_server.serving.decode import Decoder
from nablad_server.serving.sparsity import when_known
from nablad_server.serving.work import KINDS, ticket_of

PATTERN_SECONDS = 600.0
"""A safety net: searches for patterns are given up long before."""


def warm_up(function: Function, warm: Warm, decoder: Decoder, patterns: Patterns, batcher: Batcher) -> None:
    """Compiles the programs that a Warm names and waits for them.

    Raises:
        ValueError: the operator, a symbol or the dtype is unknown.
        NabladError: the function does not allow the operator, or it fails.
    """
    name = "".join(word.capitalize() for word in warm.operator.split("_"))
    if name not in KINDS:
        raise ValueError(f"cannot warm {function.reference}: there is no operator {warm.operator!r}")
    dtypes = {dtype.name: dtype for dtype in DTYPES.values()}
    symbols = function.signature.symbols
    if set(warm.sizes) != set(symbols) or warm.dtype not in dtypes:
        raise ValueError(
            f"cannot warm {function.reference}: got sizes {dict(warm.sizes)} and dtype {warm.dtype!r}; expected a size "
            f"for each of {list(symbols)} and a dtype such as float64"
        )
    for points in warm.points:
        kind = KINDS[name]
        request = _request(kind.request(function=function.reference), function, warm, dtypes[warm.dtype], points)
        done: queue.SimpleQueue[Outcome | NabladError] = queue.SimpleQueue()
        decoded = when_known(functools.partial(kind.decode, decoder, request), patterns, PATTERN_SECONDS)
        batcher.take([ticket_of(decoded, done.put)])
        outcome = done.get()
        if isinstance(outcome, NabladError):
            raise outcome


def _request(request: Any, function: Function, warm: Warm, dtype: np.dtype[Any], points: int) -> Any:
    """A request at the point of all ones, with vectors of ones where the operator takes some."""
    specs = function.signature.at(warm.sizes, dtype)
    batch = () if points == 1 else (points,)

    def ones(name: str, shape: tuple[int, ...], kind: np.dtype[Any]) -> tensor_pb2.NamedTensor:
        return tensor_pb2.NamedTensor(name=name, tensor=to_tensor(np.ones(batch + shape, kind)), batched=bool(batch))

    names = [spec.name for spec in function.signature.inputs]
    request.inputs.extend(ones(name, spec.shape, spec.dtype) for name, spec in zip(names, specs, strict=True))
    moving = [ones(name, s.shape, s.dtype) for name, s in zip(names, specs, strict=True) if s.differentiable]
    match warm.operator:
        case "hvp" | "jvp":
            request.tangents.extend(moving)
        case "directional_derivative":
            request.direction.extend(moving)
        case "vjp":
            outputs = function.outputs_at(specs)
            request.cotangents.extend(ones(name, s.shape, s.dtype) for name, s in outputs if s.differentiable)
        case "derivative":
            request.order = 1
        case _:
            pass
    return request
