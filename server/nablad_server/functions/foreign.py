"""Functions of another engine than JAX, as one operation of JAX.

What such a function is to JAX is a `Call`: something that runs on the host, and that can make of itself the call for
many points, the call for its derivative along tangents, and the call for its transpose. These are the operation's rules
for `vmap`, forward and reverse mode; since every one of them gives a call again, derivatives of any order, linear maps
and batches of them come about as they do for JAX's own operations. How an engine computes them is its own affair.
"""

import functools
from collections.abc import Sequence
from typing import Any, Protocol

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
from jax.interpreters import ad, batching, mlir

from nablad.errors import NabladError
from nablad.tensors import Array
from nablad_server.functions.signature import ArraySpec


class Call(Protocol):
    """A function from arrays to arrays. Compared by identity: equal ones must be the same, so that traces are equal.

    Attributes:
        linear: how many of its last arguments it is linear in, all of them together.
    """

    @property
    def linear(self) -> int: ...  # noqa: D102 - described above

    def run(self, arrays: Sequence[Array], outputs: Sequence[ArraySpec]) -> list[Array]:
        """What it gives, in these shapes and dtypes. The arrays are JAX's memory: neither to be changed nor kept."""

    def batched(self, mapped: tuple[bool, ...]) -> "Call":
        """All points at once: arguments that are `mapped` have an axis for points before theirs, as all results do."""

    def pushed(self, moving: tuple[int, ...], outputs: tuple[int, ...]) -> "Call":
        """From its arguments and tangents of those that are `moving` to tangents of these outputs. Linear in these."""

    def pulled(self, moving: tuple[int, ...], outputs: tuple[int, ...]) -> "Call":
        """From its arguments and cotangents of these outputs to those of the arguments `moving`. Linear in these."""

    def transposed(self, wanted: tuple[int, ...], given: tuple[int, ...]) -> "Call":
        """From its other arguments and cotangents of the outputs `given` to those of its linear arguments `wanted`.

        `wanted` counts the linear arguments alone.
        """


class Foreign(Protocol):
    """A function of another engine.

    Attributes:
        engine: its name.
        call: the function, from input leaves to output leaves.
        failure: why some call of it failed last; None if none did.
    """

    @property
    def engine(self) -> str: ...  # noqa: D102 - described above
    @property
    def call(self) -> Call: ...  # noqa: D102 - described above
    @property
    def failure(self) -> NabladError | None: ...  # noqa: D102 - described above

    def outputs_at(self, inputs: tuple[ArraySpec, ...]) -> tuple[tuple[str, ArraySpec], ...]:
        """The names, shapes and dtypes of the outputs. Raises FunctionFailed if it cannot be run at such inputs."""


def traced(call: Call, leaves: Sequence[Any], outputs: Sequence[ArraySpec]) -> tuple[Any, ...]:
    """What the call gives, as JAX sees it."""
    avals = tuple(jax.core.ShapedArray(spec.shape, spec.dtype) for spec in outputs)
    return tuple(foreign_callback.bind(*map(jnp.asarray, leaves), call=call, outputs=avals))


# Its name says to `calls_back` that Python runs in it.
foreign_callback = jax.extend.core.Primitive("foreign_callback")
foreign_callback.multiple_results = True


def _run(call: Call, outputs: Sequence[Any], *arrays: Any) -> list[Array]:
    """The call on the host. Of no points, or of no elements, there is nothing to compute."""
    specs = [ArraySpec(aval.shape, np.dtype(aval.dtype)) for aval in outputs]
    if not any(spec.size for spec in specs):
        return [np.zeros(spec.shape, spec.dtype) for spec in specs]
    return call.run([np.asarray(array) for array in arrays], specs)


def _impl(*arrays: Any, call: Call, outputs: tuple[Any, ...]) -> list[Any]:
    return [jnp.asarray(found) for found in _run(call, outputs, *arrays)]


def _abstract(*_: Any, call: Call, outputs: tuple[Any, ...]) -> tuple[Any, ...]:  # noqa: ARG001 - JAX gives all
    return outputs


def _lowered(ctx: Any, *operands: Any, call: Call, outputs: tuple[Any, ...]) -> Any:
    """As `jax.pure_callback`, which would wrap the arrays as JAX's first."""
    results, _, _ = mlir.emit_python_callback(
        ctx, functools.partial(_run, call, outputs), None, list(operands), ctx.avals_in, ctx.avals_out,
        has_side_effect=False, returns_token=False,
    )  # fmt: skip
    return results


def _batched(
    arrays: Sequence[Any], axes: Sequence[int | None], *, call: Call, outputs: tuple[Any, ...]
) -> tuple[list[Any], list[int]]:
    """The axis for points comes first, and all linear arguments have it: then the transpose has nothing to sum."""
    size = next(array.shape[axis] for array, axis in zip(arrays, axes, strict=True) if axis is not None)
    known = len(arrays) - call.linear
    moved = [
        jnp.moveaxis(array, axis, 0) if axis is not None
        else array if index < known else jnp.broadcast_to(array, (size, *array.shape))
        for index, (array, axis) in enumerate(zip(arrays, axes, strict=True))
    ]  # fmt: skip
    mapped = tuple(index >= known or axis is not None for index, axis in enumerate(axes))
    every = tuple(jax.core.ShapedArray((size, *aval.shape), aval.dtype) for aval in outputs)
    return foreign_callback.bind(*moved, call=call.batched(mapped), outputs=every), [0] * len(every)


def _jvp(
    primals: Sequence[Any], tangents: Sequence[Any], *, call: Call, outputs: tuple[Any, ...]
) -> tuple[list[Any], list[Any]]:
    values = foreign_callback.bind(*primals, call=call, outputs=outputs)
    moving = tuple(index for index, tangent in enumerate(tangents) if not isinstance(tangent, ad.Zero))
    smooth = tuple(index for index, aval in enumerate(outputs) if jnp.issubdtype(aval.dtype, jnp.inexact))
    found: list[Any] = [ad.Zero(aval.to_tangent_aval()) for aval in outputs]
    known = len(primals) - call.linear
    if not moving or not smooth:
        return values, found
    if moving[0] >= known:  # it is its own derivative
        directions = [ad.instantiate_zeros(tangent) for tangent in tangents[known:]]
        return values, foreign_callback.bind(*primals[:known], *directions, call=call, outputs=outputs)
    pushed = foreign_callback.bind(
        *primals, *(tangents[index] for index in moving),
        call=call.pushed(moving, smooth), outputs=tuple(outputs[index] for index in smooth),
    )  # fmt: skip
    for index, tangent in zip(smooth, pushed, strict=True):
        found[index] = tangent
    return values, found


def _transposed(cotangents: Sequence[Any], *arrays: Any, call: Call, outputs: tuple[Any, ...]) -> list[Any]:  # noqa: ARG001
    known = len(arrays) - call.linear
    wanted = tuple(index for index, array in enumerate(arrays) if ad.is_undefined_primal(array))
    given = tuple(index for index, cotangent in enumerate(cotangents) if not isinstance(cotangent, ad.Zero))
    avals = tuple(arrays[index].aval for index in wanted)
    found: list[Any] = [None] * len(arrays)
    if given:
        pulled = foreign_callback.bind(
            *arrays[:known], *(cotangents[index] for index in given),
            call=call.transposed(tuple(index - known for index in wanted), given),
            outputs=tuple(jax.core.ShapedArray(aval.shape, aval.dtype) for aval in avals),
        )  # fmt: skip
    else:
        pulled = [ad.Zero(aval) for aval in avals]
    for index, cotangent in zip(wanted, pulled, strict=True):
        found[index] = cotangent
    return found


foreign_callback.def_impl(_impl)
foreign_callback.def_abstract_eval(_abstract)
mlir.register_lowering(foreign_callback, _lowered, cacheable=False)
batching.primitive_batchers[foreign_callback] = _batched
ad.primitive_jvps[foreign_callback] = _jvp
ad.primitive_transposes[foreign_callback] = _transposed
