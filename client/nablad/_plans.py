"""How the calls of one kind are made, found out once: calls that differ only in the numbers share a plan."""

import dataclasses
import operator as operators
import struct
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import repeat
from typing import Any, Generic, TypeVar, cast

import numpy as np
from google.protobuf.message import Message

from nablad._calls import MISSING, Operator, Prepared
from nablad._non_finite import of_each_point
from nablad._wire import Skeleton, tensors_of
from nablad.results import FunctionInfo, Result
from nablad.sparse import Patterns
from nablad.tensors import Array

MAX_PLANS = 1024
"""Plans kept by one client; beyond that all are made anew. Calls of ever new shapes need ever new plans."""
PACK_POINTS = 512
"""The most points in one operation of a pipeline. Most packs have this size, so that the server knows their header."""
PACK_BYTES = 1 << 20
"""The most bytes of arguments, or of results, in one operation packed from several points."""

Key = tuple[Hashable, ...]
_R = TypeVar("_R", bound=Result)
_Encode = Callable[[Any], bytes]


def pack_points(row_bytes: int) -> int:
    """How many points whose arguments have so many bytes go into one operation at most."""
    return max(1, min(PACK_POINTS, PACK_BYTES // max(row_bytes, 1)))


def kinds(arguments: Sequence[Any]) -> Key | None:
    """What a plan depends on: the types, dtypes and shapes. None if an argument may be a structure."""
    found: list[Any] = []
    for argument in arguments:
        kind = type(argument)
        if kind is np.ndarray:
            found += (argument.dtype, argument.shape)
        elif kind is float or kind is int:
            found.append(kind)
        elif issubclass(kind, np.generic):
            found += (kind, argument.dtype)
        elif kind is list or kind is tuple:
            try:
                array = np.asarray(argument)
            except ValueError:  # lists of unequal lengths
                return None
            found += (kind, array.dtype, array.shape)
        else:
            return None
    return tuple(found)


def key_of(
    operator: Operator[Any],
    function: str,
    args: tuple[Any, ...],
    named: Mapping[str, Any],
    *,
    vector: Any,
    options: Mapping[str, Any],
) -> tuple[Key | None, tuple[Any, ...]]:
    """The key of a call's plan, and the arguments that the plan is to be given. None: it has no plan.

    Requests for sparse matrices have none: they change when the pattern is known.
    """
    if options.get("sparse"):
        return None, ()
    if named:
        if operator.vector and vector is MISSING:  # the vector may stand in the middle: among the positional ones
            return None, ()
        args += tuple(named.values())
    if vector is not MISSING:
        args += (vector,)
    kind = kinds(args)
    if kind is None:
        return None, ()
    values = tuple(options.values())
    try:
        hash(values)
    except TypeError:
        values = tuple(tuple(value) if isinstance(value, list) else value for value in values)
    return (operator, function, values, tuple(named), vector is MISSING, kind), args


class Plan(Generic[_R]):
    """How calls of one kind are made.

    Attributes:
        operator: what is asked for.
        function: the reference, `name` or `name@version`.
        field: of the operator in Operation and Answer.
        read: makes the result of a response.
        packable: whether several such calls can be one with `batched` inputs.
        row_bytes: bytes of the arguments of one call.
        sizes: bytes of the data of each tensor, for one point.
        shared: for each tensor, whether all points of a pack share it.
        answer_bytes: bytes of the results of one call, as the first answer shows them; 0 before that.
        points: how many calls to pack into one at most.
    """

    def __init__(
        self, operator: Operator[_R], prepared: Prepared[_R], encoders: Sequence[_Encode], skeleton: Skeleton
    ) -> None:
        self.operator = operator
        self.function = skeleton.function
        self.field = operator.field
        self.read = prepared.read
        self.encoders = tuple(encoders)
        self.packable = not skeleton.batched
        self.row_bytes = sum(skeleton.sizes)
        self.points = pack_points(self.row_bytes) if self.packable else 1
        self.frame = skeleton.frame
        self.sizes = skeleton.sizes
        self.shared = skeleton.shared
        self._request = type(prepared.request)
        self.answer_bytes = 0

    def data(self, arguments: Sequence[Any]) -> list[bytes]:
        """The data of each tensor of a call."""
        return [encode(argument) for encode, argument in zip(self.encoders, arguments)]  # noqa: B905 - the key sees to it

    def request(self, arguments: Sequence[Any]) -> Message:
        """The request of a single call."""
        pieces = self.frame(None).around((item,) for item in self.data(arguments))
        return self._request.FromString(b"".join(pieces))

    def learn(self, response: Message, points: int) -> None:
        """Fits the size of packs to the size of results, as the first answer shows it."""
        if not self.answer_bytes:
            self.answer_bytes = max(1, -(-response.ByteSize() // points))
            self.limit(PACK_BYTES // self.answer_bytes)

    def limit(self, points: int) -> None:
        """Makes packs no larger than `points`."""
        self.points = max(1, min(self.points, points))


class Plans:
    """What a client has learnt: the descriptions of functions, and the plans of calls.

    Attributes:
        patterns: those of sparse matrices.
    """

    def __init__(self) -> None:
        self.patterns = Patterns()
        self._infos: dict[str, FunctionInfo] = {}
        self._plans: dict[Key, Plan[Any]] = {}

    def info(self, function: str) -> FunctionInfo | None:
        """The description of a function, if it is known."""
        return self._infos.get(function)

    def learn(self, function: str, info: FunctionInfo) -> None:
        """Keeps a description, which is the latest."""
        self.forget(function)
        self._infos[function] = info

    def forget(self, function: str) -> None:
        """Drops what is known of a function: perhaps the server has a newer version since."""
        self._infos.pop(function, None)
        for key in [key for key, plan in list(self._plans.items()) if plan.function == function]:
            self._plans.pop(key, None)

    def find(self, key: Key | None) -> Plan[Any] | None:
        """The plan of that kind of call, if there is one."""
        return self._plans.get(key) if key is not None else None

    def make(
        self, key: Key | None, operator: Operator[_R], prepared: Prepared[_R], arguments: Sequence[Any]
    ) -> Plan[_R] | None:
        """The plan that a request made in full leads to; None if its tensors are not simply the arguments."""
        if key is None:
            return None
        plan = make(operator, prepared, arguments)
        if plan is not None:
            if len(self._plans) >= MAX_PLANS:
                self._plans.clear()
            self._plans[key] = plan
        return plan


def make(
    operator: Operator[_R],
    prepared: Prepared[_R],
    arguments: Sequence[Any],
    shared: Sequence[bool] = (),
) -> Plan[_R] | None:
    """The plan of calls like the one prepared; None if its tensors are not simply the arguments, one after the other.

    `shared`: for each argument, whether it is the same for all points of a pack.
    """
    skeleton = Skeleton(prepared.request, shared)
    tensors = tensors_of(prepared.request)
    if [tuple(tensor.shape) for tensor in tensors] != [np.shape(argument) for argument in arguments]:
        return None
    encoders = [_encoder(argument, dtype) for argument, dtype in zip(arguments, skeleton.dtypes, strict=True)]
    plan = Plan(operator, prepared, encoders, skeleton)
    return plan if plan.data(arguments) == [tensor.data for tensor in tensors] else None


def _encoder(argument: Any, dtype: np.dtype[Any]) -> _Encode:
    if isinstance(argument, np.ndarray) and argument.dtype == dtype:
        return np.ndarray.tobytes
    if isinstance(argument, np.generic) and argument.dtype == dtype:
        return operators.methodcaller("tobytes")
    if type(argument) is float and dtype == np.float64:
        return struct.Struct("<d").pack
    return lambda value: np.asarray(value).astype(dtype).tobytes()


def rows(result: _R, points: int) -> Iterator[_R]:
    """The results of the single points of a batched result. Their arrays are parts of its arrays."""
    kind = type(result)
    others = [field.name for field in dataclasses.fields(result)][3:]
    trees = {name: getattr(result, name) for name in ("value", *others)}
    columns: dict[str, Iterable[Any]] = {name: _CUTS.get(name, _cut)(tree, points) for name, tree in trees.items()}
    columns |= {"non_finite": repeat(False), "execution": repeat(result.execution)}
    if result.non_finite:
        found = [tree for name, tree in trees.items() if name != "first_non_finite"]
        columns["non_finite"] = _non_finite(found, points)
    # Attribute by attribute for all points: the constructor of a frozen class takes twice as long for each.
    made = list(map(object.__new__, repeat(kind, points)))
    for name, column in columns.items():
        deque(map(getattr(kind, name).__set__, made, column), maxlen=0)
    return iter(made)


def _cut(tree: Any, points: int, numbers: bool = False) -> list[Any]:
    """The parts of a tree; `numbers`: those of its arrays of one axis are Python's, as they are in an answer alone."""
    if tree is None:
        return [None] * points
    if isinstance(tree, dict):
        cut = [_cut(child, points, numbers) for child in tree.values()]
        return [dict(zip(tree, row, strict=True)) for row in zip(*cut, strict=True)] if cut else [{}] * points
    if isinstance(tree, list):
        return [list(row) for row in zip(*(_cut(child, points, numbers) for child in tree), strict=True)]
    if numbers:
        return cast("list[float]", tree.tolist())
    return [tree[index, ...] for index in range(points)] if tree.ndim == 1 else list(tree)


_CUTS: dict[str, Callable[[Any, int], Iterable[Any]]] = {
    "norm": partial(_cut, numbers=True),
    "norms": partial(_cut, numbers=True),
    "first_non_finite": of_each_point,
}
"""How the attributes of results are cut that are no arrays in the result for one point."""


def _non_finite(trees: Sequence[Any], points: int) -> list[bool]:
    found = np.zeros(points, bool)
    for array in _arrays(trees):
        found |= ~np.isfinite(array.reshape(points, -1)).all(axis=1)
    return cast("list[bool]", found.tolist())


def _arrays(tree: Any) -> Iterator[Array]:
    if isinstance(tree, dict | list):
        for child in tree.values() if isinstance(tree, dict) else tree:
            yield from _arrays(child)
    elif tree is not None:
        yield tree
