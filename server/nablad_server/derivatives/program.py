"""A Program: one query compiled for one bucket, that is, for a fixed number of points at a time."""

import hashlib
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np

from nablad.errors import CompileFailed, NabladError, NotDifferentiable, ResultTooLarge
from nablad.tensors import Array
from nablad_server.derivatives.memory import inner_jaxprs, refuse_excess, refuse_hopeless, refuse_overflow
from nablad_server.derivatives.operators import finish, point_function, result_specs
from nablad_server.derivatives.query import Query
from nablad_server.derivatives.recipe import Recipe
from nablad_server.functions.precision import precision_of
from nablad_server.functions.signature import ArraySpec

HOISTED_BYTES = 64 * 1024
"""Constants that a function closes over are compiled in up to this size and passed as arguments above it: a large one
makes each compilation slow and lies in memory once a program."""

LOOP_SECONDS = 100e-6
"""Batches that take longer than this are also compiled as a loop over their points, and the faster program is kept:
what fits into the processor's caches one point at a time may not do so for all points at once."""

TIMED_SECONDS = 10e-3
"""A program is timed until it has run for so long, or four times."""

_Point = Callable[..., Sequence[Any]]
"""A traced query at one point."""

Constants = dict[tuple[tuple[int, ...], str, bytes], jax.Array]
"""Large constants on the device, by shape, dtype and a digest of their bytes."""


@dataclass(frozen=True)
class Traced:
    """A recipe traced once, for all its buckets.

    Attributes:
        query: what was traced.
        jaxpr: the operations for one point.
        constants: the values of the jaxpr's constants, large ones on the device.
        groups: how many arrays each group of the result has.
        calls_back: whether it calls Python code of the function's while it runs.
        after: what makes all results of a point from its arrays and those of the jaxpr; None: they are all.
    """

    query: Recipe
    jaxpr: jax.extend.core.Jaxpr
    constants: tuple[Any, ...]
    groups: tuple[int, ...]
    calls_back: bool
    after: Callable[[Sequence[Any], Sequence[Any]], list[Any]] | None = None


@dataclass(frozen=True)
class Program:
    """A compiled query. Call `run` from any thread.

    Attributes:
        bucket: the number of points it takes.
        executable: the compiled XLA program.
        hoisted: its constant arguments, on the device.
        groups: how many arrays each group of the result has.
        seconds: what one execution takes, measured at a point of all ones.
        strategy: how it goes about its points: `single`, `vmap` or `loop`.
        calls_back: whether it calls Python code of the function's while it runs.
        aside: the black box that it calls, if it does: what takes long without using this process.
        compile_seconds: what lowering and compiling it took.
    """

    bucket: int
    executable: jax.stages.Compiled
    hoisted: tuple[Any, ...]
    groups: tuple[int, ...]
    seconds: float
    strategy: str
    calls_back: bool
    aside: Hashable = None
    compile_seconds: float = 0.0

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

    def flat(*arrays: Any) -> list[Any]:
        return [leaf for group in compute(arrays[:count], arrays[count:]) for leaf in group]

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
        values = tuple(placed(constant, query.wide, constants) for constant in closed.consts)
    groups = tuple(len(specs) for specs in result_specs(query))
    return Traced(query, closed.jaxpr, values, groups, calls_back(closed.jaxpr), finish(query))


def placed(constant: Any, wide: bool, kept: Constants) -> Any:
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
    """Compiles a traced query for `bucket` points, and runs it: its first caller finds it warm, and its cost is known.

    Raises:
        ResultTooLarge: an execution would need more than `memory_limit` bytes.
        CompileFailed: XLA refused it.
    """
    if bucket == 1:
        return _compiled(traced, bucket, "single", memory_limit)
    try:
        program = _compiled(traced, bucket, "vmap", memory_limit)
    except ResultTooLarge:  # a loop needs the memory of one point at a time
        return _compiled(traced, bucket, "loop", memory_limit)
    if program.seconds < LOOP_SECONDS:
        return program
    try:
        looped = _compiled(traced, bucket, "loop", memory_limit)
    except NabladError:
        return program
    return min(program, looped, key=lambda candidate: candidate.seconds)


def _compiled(traced: Traced, bucket: int, strategy: str, memory_limit: int) -> Program:
    query = traced.query
    hoisted = tuple(constant for constant in traced.constants if isinstance(constant, jax.Array))

    def batched(arguments: Sequence[Any], *arrays: Any) -> tuple[Any, ...]:
        passed = iter(arguments)
        constants = [next(passed) if isinstance(c, jax.Array) else c for c in traced.constants]

        def one(*point: Any) -> list[Any]:
            return list(jax.core.eval_jaxpr(traced.jaxpr, constants, *point))

        outputs = STRATEGIES[strategy](one, query.shared, bucket, arrays)
        after, count = traced.after, len(arrays)
        if after is None:
            return outputs
        # Of all points at once in any case: a few operations on what is there, which would slow a loop down.
        shared = (*query.shared, *(False for _ in outputs))
        finished = lambda *both: after(both[:count], both[count:])
        return STRATEGIES["single" if bucket == 1 else "vmap"](finished, shared, bucket, (*arrays, *outputs))

    refuse_hopeless(query, traced.jaxpr, bucket if strategy == "vmap" else 1, memory_limit)
    specs = [_with_points(spec, bucket, common) for spec, common in zip(query.arrays, query.shared, strict=True)]
    started = time.perf_counter()
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
    compiled = time.perf_counter() - started
    aside = query.function.black_box
    program = Program(bucket, executable, hoisted, traced.groups, 0.0, strategy, traced.calls_back, aside, compiled)
    return replace(program, seconds=_timed(program, specs))


def _timed(program: Program, specs: Sequence[jax.ShapeDtypeStruct]) -> float:
    """The least time of a few executions; 0 if the function cannot be run at all ones."""
    ones = [np.ones(spec.shape, spec.dtype) for spec in specs]
    best, total = float("inf"), 0.0
    if program.aside is not None:  # it may take as long as it likes, and others wait to be compiled
        return 0.0
    try:
        for _ in range(4):
            started = time.perf_counter()
            program.run(ones)
            seconds = time.perf_counter() - started
            best, total = min(best, seconds), total + seconds
            if total > TIMED_SECONDS:
                break
    except Exception:  # what a function does at an arbitrary point (a callback that raises, say) is not the compiler's
        return 0.0  # business
    return best


def _single(one: _Point, shared: tuple[bool, ...], _: int, arrays: Sequence[Any]) -> tuple[Any, ...]:
    # Without vmap a matrix product stays one, instead of a batch of one.
    point = [array if common else array[0] for array, common in zip(arrays, shared, strict=True)]
    return tuple(output[None] for output in one(*point))


def _vmap(one: _Point, shared: tuple[bool, ...], bucket: int, arrays: Sequence[Any]) -> tuple[Any, ...]:
    axes = tuple(None if common else 0 for common in shared)
    return tuple(jax.vmap(one, in_axes=axes, axis_size=bucket)(*arrays))


def _loop(one: _Point, shared: tuple[bool, ...], _: int, arrays: Sequence[Any]) -> tuple[Any, ...]:
    own = tuple(array for array, common in zip(arrays, shared, strict=True) if not common)

    def point(mine: Sequence[Any]) -> tuple[Any, ...]:
        taken = iter(mine)
        return tuple(one(*(array if common else next(taken) for array, common in zip(arrays, shared, strict=True))))

    outputs: tuple[Any, ...] = jax.lax.map(point, own)
    return outputs


STRATEGIES = {"single": _single, "vmap": _vmap, "loop": _loop}
"""How a program for one point becomes one for many."""


def _with_points(spec: ArraySpec, bucket: int, shared: bool) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(spec.shape if shared else (bucket, *spec.shape), spec.dtype)


def calls_back(jaxpr: Any) -> bool:
    """Whether Python code is called while the program runs."""
    return any(
        "callback" in equation.primitive.name or any(map(calls_back, inner_jaxprs(equation))) for equation in jaxpr.eqns
    )
