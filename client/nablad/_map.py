"""How `map` cuts iterables into operations of many points. Pure: both pipelines only carry it out."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np

from nablad._calls import Operator, split
from nablad._packing import Chunk, Settable
from nablad._plans import PACK_BYTES, PACK_POINTS, Key, Plan, key_of, kinds, make, pack_points
from nablad.results import FunctionInfo
from nablad.tensors import Array

_F = TypeVar("_F", bound=Settable)

AHEAD_BYTES = 16 * PACK_BYTES
"""So much is under way while results are given out, each point counted with its share of a pack at least."""
AHEAD_POINTS = AHEAD_BYTES // PACK_BYTES * PACK_POINTS
"""The same, where points are small."""
CUT_SECONDS = 0.005
"""An iterable that takes its time is not waited for longer than this until what it gave is sent."""


class Piece(NamedTuple):
    """Consecutive points of one kind: rows of arguments, or for each argument an array of all of them."""

    kind: Key | None
    rows: list[tuple[Any, ...]]
    arrays: tuple[Array, ...] = ()

    @property
    def points(self) -> int:
        """How many."""
        return len(self.arrays[0]) if self.arrays else len(self.rows)

    def each(self) -> Iterator[tuple[Any, ...]]:
        """The arguments of each point."""
        return zip(*self.arrays, strict=True) if self.arrays else iter(self.rows)


def cut(iterables: tuple[Iterable[Any], ...], clock: Callable[[], float]) -> Iterator[Piece]:
    """The points of the iterables, zipped, in pieces that fit into a pack. Arrays are cut without a look at rows."""
    if iterables and all(isinstance(iterable, np.ndarray) and iterable.ndim for iterable in iterables):
        yield from _cut_arrays([np.asarray(iterable) for iterable in iterables])
        return
    rows: list[tuple[Any, ...]] = []
    kind: Key | None = None
    limit, closes = 1, 0.0
    for row in zip(*iterables, strict=False):
        found = kinds(row)
        if rows and found != kind:
            yield Piece(kind, rows)
            rows = []
        if not rows:
            kind, limit, closes = found, _limit(row), clock() + CUT_SECONDS
        rows.append(row)
        if kind is None or len(rows) >= limit or clock() > closes:
            yield Piece(kind, rows)
            rows = []
    if rows:
        yield Piece(kind, rows)


def _cut_arrays(arrays: list[Array]) -> Iterator[Piece]:
    points = min(map(len, arrays))
    if not points:
        return
    first = tuple(array[0] for array in arrays)
    kind, limit = kinds(first), _limit(first)
    for start in range(0, points, limit):
        yield Piece(kind, [first], tuple(array[start : min(start + limit, points)] for array in arrays))


def _limit(row: tuple[Any, ...]) -> int:
    size = sum(np.asarray(argument).nbytes for argument in row) if kinds(row) is not None else PACK_BYTES
    return pack_points(size)


class Ahead(Generic[_F]):
    """The futures of what is under way, in the order of the points."""

    def __init__(self) -> None:
        self._futures: deque[tuple[_F, int]] = deque()
        self._weight = 0

    @property
    def wanting(self) -> bool:
        """Whether more may be begun."""
        return self._weight < AHEAD_BYTES

    @property
    def waiting(self) -> bool:
        """Whether there is something whose answer is not there."""
        return bool(self._futures) and not self._futures[0][0].done()

    def __bool__(self) -> bool:
        return bool(self._futures)

    def add(self, future: _F) -> None:
        """Adds what comes last."""
        self._futures.append((future, _weight(future)))
        self._weight += self._futures[-1][1]

    def put_back(self, futures: Sequence[_F]) -> None:
        """Puts the parts of what was taken where it stood."""
        for future in reversed(futures):
            self._futures.appendleft((future, _weight(future)))
            self._weight += self._futures[0][1]

    def take(self) -> _F:
        """Takes what comes first."""
        future, weight = self._futures.popleft()
        self._weight -= weight
        return future

    def cancel(self) -> None:
        """Gives everything up."""
        for future, _ in self._futures:
            future.cancel()


def _weight(future: Settable) -> int:
    return future.operation.weight if future.operation is not None else 1


class Mapped:
    """What `map` asks of each point.

    Attributes:
        operator: what is asked for.
        function: the reference.
        timeout: seconds.
        keywords: options of the operator and named arguments, the same for all points.
    """

    def __init__(
        self, pipeline: type, operator: str, function: str, timeout: float | None, keywords: Mapping[str, Any]
    ) -> None:
        """`pipeline` has the operators as methods, whose options have defaults. Raises InvalidOption for another."""
        asked = split(pipeline, operator, keywords)
        self.operator: Operator[Any] = asked.operator
        self.function = function
        self.timeout = timeout
        self.keywords = keywords
        self._named, self._options, self._vector = asked.named, asked.options, asked.vector
        self._plans: dict[Key, tuple[Plan[Any] | None, list[bytes]]] = {}

    @property
    def learnt(self) -> bool:
        """Whether it is known how large results are: before that, only one piece is under way."""
        return all(plan is None or plan.answer_bytes for plan, _ in self._plans.values())

    def chunks(self, info: FunctionInfo, piece: Piece, future: Callable[[], Settable], now: float) -> list[Chunk]:
        """The operations of a piece; none if its points are to be asked for one by one."""
        if piece.kind is None:
            return []
        if piece.kind not in self._plans:
            self._plans[piece.kind] = self._plan(info, piece.rows[0])
        plan, shared = self._plans[piece.kind]
        if plan is None:
            return []
        chunks = []
        for start in range(0, piece.points, plan.points):
            stop = min(start + plan.points, piece.points)
            columns: list[list[bytes]]
            if piece.arrays:
                columns = [[array[start:stop].tobytes()] for array in piece.arrays]
            else:
                arguments = zip(*piece.rows[start:stop], strict=True)
                columns = [list(map(encode, values)) for encode, values in zip(plan.encoders, arguments, strict=False)]
            chunk = Chunk(plan, [*columns, *([item] for item in shared)], stop - start, future())
            if self.timeout is not None:
                chunk.deadline = now + self.timeout
            chunks.append(chunk)
        return chunks

    def _plan(self, info: FunctionInfo, row: tuple[Any, ...]) -> tuple[Plan[Any] | None, list[bytes]]:
        """The plan of points like this one, and the data of the arguments that all of them share."""
        operator, function = self.operator, self.function
        key, arguments = key_of(operator, function, row, self._named, vector=self._vector, options=self._options)
        if key is None:
            return None, []
        prepared = operator.prepared(info, function, row, self._named, vector=self._vector, options=self._options)
        shared = [index >= len(row) for index in range(len(arguments))]
        plan = make(operator, prepared, arguments, shared)
        if plan is None or not plan.packable:
            return None, []
        return plan, plan.data(arguments)[len(row) :]
