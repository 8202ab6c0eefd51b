"""The tensors of a request as checked bytes, found by name."""

import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from nablad.errors import DuplicateName, InvalidVector, WrongDtype, WrongShape
from nablad.tensors import Data, read
from nablad.v1 import tensor_pb2
from nablad_server.functions.signature import ArraySpec

Tensors = Sequence[tensor_pb2.NamedTensor]


class RequestArray(NamedTuple):
    """One tensor of a request.

    Attributes:
        spec: its shape and dtype, for one point.
        data: its elements.
        batched: whether they run over points.
        points: over how many.
        field: its path in the request.
        converted: whether the elements are not those of the request any more.
    """

    spec: ArraySpec
    data: bytes
    batched: bool
    points: int
    field: str
    converted: bool = False

    @property
    def literal(self) -> bool:
        """Whether a request with other elements may come to something else: these are not simply taken as they are."""
        return self.converted or self.spec.dtype.kind == "b"


def by_name(
    tensors: Tensors, field: str, names: Sequence[str], unknown: Callable[[str, str], Exception]
) -> dict[int, RequestArray]:
    """The tensors of a request by the index of their name, in the order of the names."""
    found: dict[int, RequestArray] = {}
    for position, named in enumerate(tensors):
        path = f"{field}[{position}]"
        try:
            index = names.index(named.name)
        except ValueError:
            raise unknown(named.name, f"{path}.name") from None
        if index in found:
            raise DuplicateName(f"{named.name!r} is given twice", field=f"{path}.name")
        found[index] = _array(read(named.tensor, f"{path}.tensor"), named, path)
    return dict(sorted(found.items()))


def _array(given: Data, named: tensor_pb2.NamedTensor, field: str) -> RequestArray:
    if not named.batched:
        return RequestArray(ArraySpec(given.shape, given.dtype), given.data, False, 1, field)
    if not given.shape:
        raise WrongShape(
            f"{named.name!r} is marked as batched but is a scalar: it has no first axis to run over points",
            field=f"{field}.tensor.shape",
        )
    return RequestArray(ArraySpec(given.shape[1:], given.dtype), given.data, True, given.shape[0], field)


def narrowed(array: RequestArray) -> RequestArray:
    """A 64-bit integer array as a 32-bit one, for a program in 32-bit mode; others unchanged."""
    dtype = array.spec.dtype
    if dtype.kind not in "iu" or dtype.itemsize < 8:
        return array
    narrow = np.dtype(np.int32 if dtype.kind == "i" else np.uint32)
    values = np.frombuffer(array.data, dtype)
    limits = np.iinfo(narrow)
    if values.size and (values.min() < limits.min or values.max() > limits.max):
        raise WrongDtype(
            f"values from {values.min()} to {values.max()} do not fit into {narrow.name}, which is how {dtype.name} is "
            "carried when no floating-point input is float64; send a float64 input, or smaller integers",
            field=f"{array.field}.tensor.data",
        )
    return array._replace(
        spec=ArraySpec(array.spec.shape, narrow), data=values.astype(narrow).tobytes(), converted=True
    )


def vectors_like(
    given: Mapping[int, RequestArray], specs: Sequence[ArraySpec], names: Sequence[str], stacked: bool
) -> tuple[tuple[RequestArray, ...], int | None]:
    """Vectors checked against what they are vectors of, and converted to its dtype; the length of the stack."""
    stack: int | None = None
    vectors = []
    for index, array in given.items():
        wanted = specs[index]
        shape = array.spec.shape
        if stacked:
            if not shape or shape[0] < 1:
                raise WrongShape(
                    f"the stack for {names[index]!r} has the shape {list(shape)}; expected k vectors, k at least 1",
                    field=f"{array.field}.tensor.shape",
                )
            if stack is not None and shape[0] != stack:
                raise WrongShape(
                    f"the stack for {names[index]!r} holds {shape[0]} vectors, another one {stack}; they must agree",
                    field=f"{array.field}.tensor.shape",
                )
            stack, shape = shape[0], shape[1:]
        if shape != wanted.shape:
            raise WrongShape(
                f"the vector for {names[index]!r} has the shape {list(shape)}; it must be {list(wanted.shape)}. "
                "Mark stacks as stacked, and tensors that run over points as batched",
                field=f"{array.field}.tensor.shape",
            )
        if not array.spec.differentiable:
            raise WrongDtype(
                f"the vector for {names[index]!r} is {array.spec.dtype.name}; expected a floating-point dtype",
                field=f"{array.field}.tensor.dtype",
            )
        if array.spec.dtype != wanted.dtype:
            data = np.frombuffer(array.data, array.spec.dtype).astype(wanted.dtype).tobytes()
            array = array._replace(spec=ArraySpec(array.spec.shape, wanted.dtype), data=data, converted=True)  # noqa: PLW2901 - it stands for the same tensor
        vectors.append(array)
    return tuple(vectors), stack


def check_direction(vectors: Sequence[RequestArray], count: int) -> None:
    """Raises InvalidVector for a direction of length zero, or one that is not finite, at any point."""
    lengths = np.zeros(count)
    for array in vectors:
        rows = np.frombuffer(array.data, array.spec.dtype).reshape(array.points, -1).astype(np.float64)
        lengths = lengths + np.abs(rows).sum(axis=1)  # of one point, broadcast, if the direction is shared
    if not np.isfinite(lengths).all():
        raise InvalidVector("the direction has an element that is not finite", field="direction")
    if not lengths.all():
        where = f" at point {int(np.argmin(lengths))}" if count > 1 else ""
        raise InvalidVector(f"the direction is zero{where}: it points nowhere", field="direction")


def near(name: str, known: Sequence[str]) -> str:
    """Advice on a name that is not among those known."""
    matches = difflib.get_close_matches(name[:100], known, n=3)
    return f"did you mean {' or '.join(map(repr, matches))}?" if matches else f"it has {listed(known)}"


def listed(names: Sequence[str], limit: int = 12) -> str:
    """The names in quotes, the first few if they are many."""
    shown = ", ".join(repr(name) for name in names[:limit])
    return shown + (f" and {len(names) - limit} more" if len(names) > limit else "")
