"""Runs batches of points: chooses buckets, joins the callers' bytes, calls the program, splits the results."""

import contextlib
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from nablad.errors import FunctionFailed, NabladError, ResourceExhausted
from nablad.tensors import Array
from nablad_server.derivatives.cache import Done, ProgramCache
from nablad_server.derivatives.operators import result_bytes
from nablad_server.derivatives.program import Program
from nablad_server.derivatives.query import Query

MAX_PIECES = 8
"""A batch runs in at most so many pieces of a smaller bucket that is warm, rather than wait for a compilation."""


@dataclass(frozen=True, slots=True)
class Points:
    """Some points of one query: for every array the bytes of all the points, row-major, the points axis first."""

    count: int
    data: tuple[bytes, ...]


class Results(NamedTuple):
    """What the points gave: groups of arrays, the points axis first."""

    groups: tuple[tuple[Array, ...], ...]


Prepared = Callable[[Sequence[Points]], list[Results]]
"""A batch that can run now: computes the points of all members together; the result of each, in order.

Raises FunctionFailed if the computation raised an error, such as a callback's, and ResourceExhausted if the device ran
out of memory.
"""


class DerivativeRunner:
    """Prepares programs and runs batches with them; safe to use from several threads."""

    def __init__(self, cache: ProgramCache, max_bucket: int, max_batch_bytes: int) -> None:
        """Sets the limits of one execution.

        Args:
            cache: where the programs are.
            max_bucket: the most points of one execution.
            max_batch_bytes: the most bytes of arguments and results of one execution, unless one point has more.
        """
        self._cache = cache
        self._max_bucket = max_bucket
        self._max_batch_bytes = max_batch_bytes

    def prepare(self, query: Query, points: int, done: Done) -> Prepared | None:
        """What runs `points` points of a query; None if that is being compiled: then `done` will be called.

        A bucket that does not fit well is used all the same, while the one that does is compiled behind it.

        Raises:
            NabladError: the query is known not to compile, or the compile queue is full.
        """
        wanted = self._bucket(query, points)
        programs = self._cache.buckets(query)
        program = programs.get(wanted)
        if program is None:
            wanted = min(wanted, self._cache.largest(query) or wanted)
            program = programs.get(wanted)
        if program is None:
            usable = [bucket for bucket in programs if bucket > wanted or -(-points // bucket) <= MAX_PIECES]
            if not usable:
                self._cache.request(query, wanted, done)
                return None
            with contextlib.suppress(NabladError):  # an improvement, not a need
                self._cache.request(query, wanted, _nobody_waits)
            larger = [bucket for bucket in usable if bucket > wanted]
            program = programs[min(larger) if larger else max(usable)]
        return functools.partial(_run, query, program)

    def _bucket(self, query: Query, points: int) -> int:
        """The bucket for so many points: the next power of two, within the limits."""
        fitting = self._max_batch_bytes // max(1, query.argument_bytes + result_bytes(query))
        limit = max(1, min(self._max_bucket, fitting))
        return min(_power_of_two_from(points), 1 << (limit.bit_length() - 1))


def _run(query: Query, program: Program, members: Sequence[Points]) -> list[Results]:
    total = sum(member.count for member in members)
    bucket = program.bucket
    starts = range(0, total, bucket)
    arrays = _joined(query, members, len(starts) * bucket - total)
    try:
        outputs = [
            program.run([
                array if common else array[start : start + bucket]
                for array, common in zip(arrays, query.shared, strict=True)
            ])
            for start in starts
        ]  # fmt: skip
    except Exception as error:
        raise _execution_failed(query, error) from error
    whole = outputs[0] if len(outputs) == 1 else [np.concatenate(parts) for parts in zip(*outputs, strict=True)]
    return _split(whole, program.groups, members)


def _nobody_waits(error: NabladError | None, seconds: float) -> None:
    """Nobody waits for a bucket that is only an improvement."""


def _power_of_two_from(points: int) -> int:
    return 1 << (points - 1).bit_length()


def _joined(query: Query, members: Sequence[Points], padding: int) -> list[Array]:
    """One array for each of the query's arrays: all members' points, then the last point `padding` times over.

    Padding repeats a real point, because zeros would make infinities and NaN in functions that cannot take them.
    """
    arrays = []
    for index, (spec, common) in enumerate(zip(query.arrays, query.shared, strict=True)):
        if common:
            arrays.append(_view(members[0].data[index], spec.dtype, spec.shape))
            continue
        parts = [member.data[index] for member in members]
        if padding:
            size = spec.size * spec.dtype.itemsize
            parts += [parts[-1][len(parts[-1]) - size :]] * padding
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        count = sum(member.count for member in members) + padding
        arrays.append(_view(data, spec.dtype, (count, *spec.shape)))
    return arrays


def _view(data: bytes, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
    return np.frombuffer(data, dtype).reshape(shape)


def _split(outputs: Sequence[Array], groups: Sequence[int], members: Sequence[Points]) -> list[Results]:
    results, start = [], 0
    for member in members:
        mine = [output[start : start + member.count] for output in outputs]
        start += member.count
        grouped, position = [], 0
        for size in groups:
            grouped.append(tuple(mine[position : position + size]))
            position += size
        results.append(Results(tuple(grouped)))
    return results


def _without_traceback(text: str) -> str:
    """What a callback raised, without the lines of this server's code that XLA puts before it."""
    _, traceback, last = text.rpartition('\n  File "')
    return last.partition("\n")[2] if traceback else text


def _execution_failed(query: Query, error: Exception) -> NabladError:
    text = " ".join(_without_traceback(str(error)).split())[:500]
    if "RESOURCE_EXHAUSTED" in text or isinstance(error, MemoryError):
        return ResourceExhausted(f"{query} ran out of memory; ask for fewer points at once: {text}")
    return FunctionFailed(
        f"{query} failed while it ran: {text}",
        metadata={"function": query.function.reference, "exception": type(error).__name__},
    )
