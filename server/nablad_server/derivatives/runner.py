"""Runs batches of points: chooses programs, joins the callers' bytes, calls the programs, splits the results."""

import contextlib
import copy
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from nablad.errors import FunctionFailed, NabladError, ResourceExhausted
from nablad.tensors import Array
from nablad_server.derivatives.buckets import cheapest, power_of_two_from
from nablad_server.derivatives.cache import Done, ProgramCache
from nablad_server.derivatives.inspection import Inspection
from nablad_server.derivatives.linear import Product
from nablad_server.derivatives.operators import result_bytes
from nablad_server.derivatives.program import Program
from nablad_server.derivatives.query import Query
from nablad_server.derivatives.recipe import Recipe

COMPILE_SECONDS = 0.1
"""About what a compilation takes: a batch runs through programs that fit badly, rather than wait for the one that fits,
if that costs less."""

MAX_REMEMBERED = 8192

Bytes = bytes | memoryview


@dataclass(frozen=True, slots=True)
class Points:
    """Some points of one query: for every array the bytes of all the points, row-major, the points axis first."""

    count: int
    data: tuple[Bytes, ...]


class Results(NamedTuple):
    """What the points gave: groups of arrays, the points axis first.

    Each array is in pieces, one for each execution that gave some of its points.
    """

    groups: tuple[tuple[tuple[Array, ...], ...], ...]


class Prepared:
    """A batch of so many points that can run now.

    Attributes:
        points: how many points it is for.
        computed: how many it computes, padding included.
        first: how many of them the first execution holds.
        seconds: what that takes, by the programs' own measure.
        calls_back: whether Python code of the function's is called meanwhile.
        aside: the black box that is called meanwhile, if one is.
    """

    __slots__ = ("_fixed", "_programs", "_query", "aside", "calls_back", "computed", "first", "points", "seconds")

    def __init__(
        self, query: Recipe, points: int, programs: Sequence[Program], seconds: float, fixed: Sequence[Any] = ()
    ) -> None:
        """`fixed` are the first arrays of the programs: they are there already, on the device."""
        self._query = query
        self._programs = programs
        self._fixed = fixed
        self.points = points
        self.computed = sum(program.bucket for program in programs)
        self.first = min(points, programs[0].bucket)
        self.seconds = seconds
        self.calls_back = programs[0].calls_back
        self.aside = programs[0].aside

    def at(self, fixed: Sequence[Any]) -> "Prepared":
        """The same with other arrays to begin with."""
        return Prepared(self._query, self.points, self._programs, self.seconds, fixed)

    def __call__(self, members: Sequence[Points]) -> list[Results]:
        """Computes the points of all members together; the result of each, in order.

        Raises:
            FunctionFailed: the computation raised an error, such as a callback's.
            ResourceExhausted: the device ran out of memory.
        """
        query, programs = self._query, self._programs
        total = members[0].count if len(members) == 1 else sum([member.count for member in members])
        if total != self.points:
            raise ValueError(f"prepared for {self.points} points, called with {total}")
        arrays = [*self._fixed, *_joined(query, members, self.computed - total, len(self._fixed))]
        try:
            if len(programs) == 1:
                outputs = [programs[0].run(arrays)]
            else:
                outputs, start = [], 0
                for program in programs:
                    stop = start + program.bucket
                    outputs.append(program.run([
                        array if common else array[start:stop]
                        for array, common in zip(arrays, query.shared, strict=True)
                    ]))  # fmt: skip
                    start = stop
        except Exception as error:
            raise execution_failed(query, error) from error
        return _split(outputs, programs, members)


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
        # For as long as the cache's programs stay what they are.
        self._ready: dict[tuple[Query | Product | Inspection, int], Prepared] = {}
        self._version = -1

    def prepare(
        self, query: Query | Product | Inspection, points: int, done: Done, asker: Hashable = None,
        fixed: Sequence[Any] = (),
    ) -> Prepared | None:  # fmt: skip
        """What runs `points` points of a query; None if that is being compiled: then `done` will be called.

        It is compiled in the asker's turn. `fixed` are arrays that all points share and that are on the device: those
        that a product begins with.

        Buckets that do not fit well are used all the same, while the one that does is compiled behind them.

        Raises:
            NabladError: the query is known not to compile, or the compile queue is full, perhaps for this asker.
        """
        if self._version != self._cache.version:
            self._version = self._cache.version  # first: what is published meanwhile makes us forget once more
            self._ready = {}
        ready = self._ready
        prepared = ready.get((query, points))
        if prepared is not None and self._cache.touch(query):
            return prepared.at(fixed) if fixed else prepared
        prepared, final = self._prepare(query, points, done, asker)
        if prepared is not None and final and len(ready) < MAX_REMEMBERED:
            ready[query, points] = prepared
        return prepared.at(fixed) if fixed and prepared is not None else prepared

    def forget(self) -> None:
        """Lets go of what is remembered of the cache: it is found again."""
        self._ready = {}

    def _prepare(
        self, query: Query | Product | Inspection, points: int, done: Done, asker: Hashable
    ) -> tuple[Prepared | None, bool]:
        """As `prepare`; and whether the answer will be the same until the cache changes."""
        wanted = self._bucket(query, points)
        programs = self._cache.buckets(query)
        if wanted not in programs:
            wanted = min(wanted, self._cache.largest(query) or wanted)
        if not programs:
            self._cache.request(query, wanted, done, asker)
            return None, False
        chosen, seconds = cheapest(points, {bucket: program.seconds for bucket, program in programs.items()})
        final = wanted in programs
        if not final:
            # A larger bucket costs little more; many executions of smaller ones may not be worth it.
            if seconds > COMPILE_SECONDS and not any(bucket > wanted for bucket in programs):
                self._cache.request(query, wanted, done, asker)
                return None, False
            with contextlib.suppress(NabladError):  # an improvement, not a need
                self._cache.request(query, wanted, _nobody_waits, asker)
        return Prepared(query, points, [programs[bucket] for bucket in chosen], seconds), final

    def _bucket(self, query: Query | Product | Inspection, points: int) -> int:
        """The bucket for so many points: the next power of two, within the limits."""
        results = result_bytes(query) if isinstance(query, Query) else query.result_bytes
        fitting = self._max_batch_bytes // max(1, query.argument_bytes + results)
        limit = max(1, min(self._max_bucket, fitting))
        return min(power_of_two_from(points), 1 << (limit.bit_length() - 1))


def _nobody_waits(error: NabladError | None, seconds: float) -> None:
    """Nobody waits for a bucket that is only an improvement."""


def _joined(query: Recipe, members: Sequence[Points], padding: int, fixed: int) -> list[Array]:
    """One array for each of the query's but the `fixed` first: all members' points, then the last `padding` times over.

    Padding repeats a real point, because zeros would make infinities and NaN in functions that cannot take them.
    """
    alone = len(members) == 1
    count = padding + (members[0].count if alone else sum([member.count for member in members]))
    arrays = []
    for index, (spec, common) in enumerate(zip(query.arrays[fixed:], query.shared[fixed:], strict=True)):
        if common:
            arrays.append(np.frombuffer(members[0].data[index], spec.dtype).reshape(spec.shape))
            continue
        data: Bytes
        if alone and not padding:
            data = members[0].data[index]
        else:
            parts = [member.data[index] for member in members]
            if padding:
                last = parts[-1]
                parts += [last[len(last) - spec.bytes :]] * padding
            data = b"".join(parts)
        arrays.append(np.frombuffer(data, spec.dtype).reshape((count, *spec.shape)))
    return arrays


def _split(outputs: Sequence[Sequence[Array]], programs: Sequence[Program], members: Sequence[Points]) -> list[Results]:
    """Each member's share of what the executions gave, without copying."""
    groups = programs[0].groups
    if len(outputs) == 1:
        return _split_one(outputs[0], groups, members)
    results, start = [], 0
    for member in members:
        stop = start + member.count
        flat: list[tuple[Array, ...]] = []
        for position in range(len(outputs[0])):
            pieces, first = [], 0
            for output, program in zip(outputs, programs, strict=True):
                low, high = max(start, first) - first, min(stop, first + program.bucket) - first
                if low < high:
                    pieces.append(output[position][low:high])
                first += program.bucket
            flat.append(tuple(pieces))
        results.append(_grouped(flat, groups))
        start = stop
    return results


def _split_one(outputs: Sequence[Array], groups: Sequence[int], members: Sequence[Points]) -> list[Results]:
    results, start = [], 0
    for member in members:
        stop = start + member.count
        results.append(_grouped([(output[start:stop],) for output in outputs], groups))
        start = stop
    return results


def _grouped(flat: Sequence[tuple[Array, ...]], groups: Sequence[int]) -> Results:
    grouped, position = [], 0
    for size in groups:
        grouped.append(tuple(flat[position : position + size]))
        position += size
    return Results(tuple(grouped))


def _without_traceback(text: str) -> str:
    """What a callback raised, without the lines of this server's code that XLA puts before it."""
    _, traceback, last = text.rpartition('\n  File "')
    return last.partition("\n")[2] if traceback else text


def execution_failed(query: Recipe, error: Exception) -> NabladError:
    """The error for who asked, of one that an execution gave."""
    box = query.function.black_box
    if box is not None and box.failure is not None:
        return box.failure
    foreign = query.function.foreign
    failure = None if foreign is None else foreign.failure
    if failure is not None and failure.message in str(error):  # another thread may have failed since
        return copy.copy(failure)
    text = " ".join(_without_traceback(str(error)).split())[:500]
    if "RESOURCE_EXHAUSTED" in text or isinstance(error, MemoryError):
        return ResourceExhausted(f"{query} ran out of memory; ask for fewer points at once: {text}")
    return FunctionFailed(
        f"{query} failed while it ran: {text}",
        metadata={"function": query.function.reference, "exception": type(error).__name__},
    )
