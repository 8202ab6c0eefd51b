"""A Program: one query compiled for one bucket, that is, for a fixed number of points at a time."""

import contextlib
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np

from nablad.errors import CompileFailed, NabladError, NotDifferentiable
from nablad.tensors import Array
from nablad_server.derivatives.memory import refuse_excess, refuse_overflow
from nablad_server.derivatives.operators import point_function
from nablad_server.derivatives.query import Query
from nablad_server.functions.precision import precision_of
from nablad_server.functions.signature import ArraySpec

HOISTED_BYTES = 64 * 1024
"""Constants that a function closes over are compiled in up to this size and passed as arguments above it: a large one
makes each compilation slow and lies in memory once a program."""


Constants = dict[tuple[tuple[int, ...], str, bytes], jax.Array]
"""Large constants on the device, by shape, dtype and a digest of their bytes."""


@dataclass(frozen=True)
class Traced:
    """A query traced once, for all its buckets.

    Attributes:
        query: what was traced.
        jaxpr: the operations for one point.
        constants: the values of the jaxpr's constants, large ones on the device.
        groups: how many arrays each group of the result has.
    """

    query: Query
    jaxpr: jax.extend.core.Jaxpr
    constants: tuple[Any, ...]
    groups: tuple[int, ...]


@dataclass(frozen=True)
class Program:
    """A compiled query. Call `run` from any thread.

    Attributes:
        bucket: the number of points it takes.
        executable: the compiled XLA program.
        hoisted: its constant arguments, on the device.
        groups: how many arrays each group of the result has.
    """

    bucket: int
    executable: jax.stages.Compiled
    hoisted: tuple[Any, ...]
    groups: tuple[int, ...]

    def run(self, arrays: Sequence[Array]) -> list[Array]:
        """Computes `bucket` points.

        `arrays` are the query's arrays with the points axis first, those that are shared without it. They must not
        change until this returns. The results are read-only views of the device's memory where it is the host's.
        """
        outputs = self.executable(self.hoisted, *arrays)
        return [np.asarray(output) for output in outputs]


def trace(query: Query, constants: Constants) -> Traced:
    """Traces the derivative at one point.

    `constants` keeps large constants on the device, one copy for all the programs of the function.

    Raises:
        NotDifferentiable: the function runs, but its derivative cannot be traced in this mode.
        InvalidOption: the order is too high for the function.
        ResultTooLarge: an array on the way has a size that XLA might not survive.
    """
    compute = point_function(query)
    count = len(query.inputs)
    groups: list[int] = []

    def flat(*arrays: Any) -> list[Any]:
        found = compute(arrays[:count], arrays[count:])
        groups[:] = [len(group) for group in found]
        return [leaf for group in found for leaf in group]

    with precision_of(query.inputs):
        try:
            closed = jax.make_jaxpr(flat)(*(jax.ShapeDtypeStruct(spec.shape, spec.dtype) for spec in query.arrays))
        except NabladError:
            raise
        except Exception as error:
            text = " ".join(str(error).split())[:500]
            raise NotDifferentiable(
                f"{query}: the function can be evaluated, but JAX cannot differentiate it in this mode: "
                f"{type(error).__name__}: {text}. For loops of unknown length try MODE_FORWARD, or Jvp",
                metadata={"function": query.function.reference},
            ) from error
        refuse_overflow(query, closed.jaxpr)
        placed = tuple(_placed(constant, query.wide, constants) for constant in closed.consts)
    return Traced(query, closed.jaxpr, placed, tuple(groups))


def _placed(constant: Any, wide: bool, kept: Constants) -> Any:
    """A constant in the program's precision; a large one as one device array for all programs of the function."""
    if jnp.issubdtype(constant.dtype, jax.dtypes.extended):  # random keys and the like are no plain arrays
        return constant
    array = np.asarray(constant)
    dtype = array.dtype if wide else jax.dtypes.canonicalize_dtype(array.dtype)
    if array.nbytes < HOISTED_BYTES:
        return array.astype(dtype, copy=False)
    array = np.ascontiguousarray(array.astype(dtype, copy=False))
    # By content: an address says nothing of strides (a matrix and its transpose share it), and a function that makes
    # the constant anew at every trace would have one copy for each.
    key = (array.shape, str(dtype), hashlib.blake2b(array.tobytes()).digest())
    if key not in kept:
        kept[key] = jax.device_put(array)
    return kept[key]


def compile_program(traced: Traced, bucket: int, memory_limit: int) -> Program:
    """Compiles a traced query for `bucket` points, and runs it once so that its first caller finds it warm.

    Raises:
        ResultTooLarge: an execution would need more than `memory_limit` bytes.
        CompileFailed: XLA refused it.
    """
    query = traced.query
    hoisted = tuple(constant for constant in traced.constants if isinstance(constant, jax.Array))

    def batched(arguments: Sequence[Any], *arrays: Any) -> tuple[Any, ...]:
        passed = iter(arguments)
        constants = [next(passed) if isinstance(c, jax.Array) else c for c in traced.constants]

        def one(*point: Any) -> list[Any]:
            return list(jax.core.eval_jaxpr(traced.jaxpr, constants, *point))

        if bucket == 1:  # without vmap: a matrix product stays one, instead of a batch of one
            point = [array if common else array[0] for array, common in zip(arrays, query.shared, strict=True)]
            return tuple(output[None] for output in one(*point))
        axes = tuple(None if common else 0 for common in query.shared)
        return tuple(jax.vmap(one, in_axes=axes, axis_size=bucket)(*arrays))

    specs = [_with_points(spec, bucket, common) for spec, common in zip(query.arrays, query.shared, strict=True)]
    try:
        with precision_of(query.inputs):
            executable = jax.jit(batched).lower(hoisted, *specs).compile()
    except Exception as error:
        text = " ".join(str(error).split())[:500]
        raise CompileFailed(
            f"{query} could not be compiled for {bucket} points: {type(error).__name__}: {text}",
            metadata={"function": query.function.reference},
        ) from error
    refuse_excess(query, executable, bucket, memory_limit)
    program = Program(bucket, executable, hoisted, traced.groups)
    # What a function does at an arbitrary point (a callback that raises, say) is not the compiler's business.
    with contextlib.suppress(Exception):
        program.run([np.ones(spec.shape, spec.dtype) for spec in specs])
    return program


def _with_points(spec: ArraySpec, bucket: int, shared: bool) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(spec.shape if shared else (bucket, *spec.shape), spec.dtype)
