"""Results → responses. A Layout knows all of a response but the elements of its tensors and how it came about.

A response is put together from parts that are copied once, when they are joined: the bytes around the tensors, which
are the same for every response of one query and number of points, and the arrays as they lie in memory.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from google.protobuf.message import Message

from nablad.framing import VARINT, delimited, prefix, tag, varint
from nablad.tensors import NUMBERS, Array
from nablad.v1 import differentiation_pb2 as pb
from nablad.v1 import function_pb2
from nablad_server.batching.ticket import Outcome
from nablad_server.derivatives.operators import result_specs
from nablad_server.derivatives.query import Query
from nablad_server.derivatives.runner import Results
from nablad_server.functions.signature import ArraySpec
from nablad_server.serving.first_non_finite import first_non_finite
from nablad_server.serving.sparsity import encoded

Part = bytes | memoryview
Names = tuple[str, ...]
"""What a tensor of a response is named by: an output or an input; or a row and a column; a sparse matrix by nothing."""

Group = tuple[int, list[Names], Sequence[ArraySpec]]
"""Some tensors of a response: the number of their field, their names, and what they are for one point."""

SPARSE_NAMES: Names = ("",)

EXECUTION = pb.GradientResponse.DESCRIPTOR.fields_by_name["execution"].number
"""The number of the field `execution`, in every response."""

DOT_ELEMENTS = 4096
COPIED_BYTES = 4096

MAX_COUNTS = 64
"""For so many numbers of points a layout remembers the bytes around the tensors."""


class _Frame(NamedTuple):
    """The bytes around one tensor's elements, and how many bytes it is in all; with the flag non_finite or without."""

    before: tuple[bytes, ...]
    after: bytes
    length: int


class Layout:
    """How the responses to one query are written.

    Attributes:
        query: what is answered.
        batched: whether the responses have a points axis.
    """

    def __init__(self, query: Query, batched: bool, outputs: Sequence[str], *, known_pattern: bool = False) -> None:
        """`outputs` are the names of the query's outputs; `known_pattern`: a sparse matrix goes without its pattern."""
        self.query = query
        self.batched = batched
        self._pattern = encoded(query.pattern) if query.sparse and query.pattern and not known_pattern else b""
        self._groups = self._fields(query, outputs)
        self._executed = delimited(1, query.function.reference.encode())
        self._frames: dict[int, list[list[tuple[_Frame, _Frame]]]] = {}
        self._places = _places(query, outputs)
        self._looks: tuple[Callable[[Array], bool], ...] = (non_finite,) * len(self._groups)
        self._vouched = _vouched(query, self._groups)

    def _fields(self, query: Query, outputs: Sequence[str]) -> list[Group]:
        message, groups = RESPONSES[query.operator]
        groups = DIAGONAL if query.diagonal else SPARSE[query.operator] if query.sparse else groups
        if query.differences is not None:
            *_, named = (named for field, named in groups.items() if field != "norms")
            groups = groups | {"errors": named}  # named as what they are the errors of
        fields = {message.DESCRIPTOR.fields_by_name[field].number: named for field, named in groups.items()}
        return [
            (number, named(query, outputs), specs)
            # Results are in the order of the numbers. The standard errors come last, and only with an estimate.
            for (number, named), specs in zip(sorted(fields.items()), result_specs(query), strict=False)
        ]

    def write(self, outcome: Outcome) -> tuple[list[Part], int]:
        """The response's parts, and how many bytes they are together."""
        results: Results = outcome.result
        return self._written(outcome, results.groups, sum([len(piece) for piece in results.groups[0][0]]))

    def _written(
        self, outcome: Outcome, groups: Sequence[Sequence[Sequence[Array]]], count: int
    ) -> tuple[list[Part], int]:
        """The parts of a response with these groups, each array in pieces, about so many points; and their length."""
        frames = self._frames.get(count)
        if frames is None:
            if len(self._frames) >= MAX_COUNTS:
                self._frames.clear()
            frames = self._frames[count] = self._framed(count)
        parts: list[Part] = []
        length, found = 0, False
        looks = self._looks
        if self._vouched and not any(map(non_finite, groups[-1][0])):
            looks = self._vouched
        for tensors, group, look in zip(frames, groups, looks, strict=True):
            for (finite, flagged), pieces in zip(tensors, group, strict=True):
                before, after, size = finite
                if any(map(look, pieces)):
                    before, after, size = flagged
                    found = True
                parts.extend(before)
                parts.extend(map(elements, pieces))
                parts.append(after)
                length += size
        if found and self._places:
            parts.append(self._first_non_finite(groups))
            length += len(parts[-1])
        execution = self._executed
        for number, value in enumerate((
            outcome.batch_points,
            int(outcome.queue_seconds * 1e9),
            int(outcome.compile_seconds * 1e9),
            int(outcome.compute_seconds * 1e9),
        ), 2):  # fmt: skip
            if value:
                execution += bytes((number << 3,)) + varint(value)
        parts.append(prefix(EXECUTION, len(execution)) + execution)
        return parts, length + len(parts[-1])

    def _first_non_finite(self, groups: Sequence[Sequence[Sequence[Array]]]) -> bytes:
        """Where the first of the values and the gradients is that is not finite; nothing if only others are."""
        return first_non_finite(
            (
                (field, name, pieces)
                for places, group in zip(self._places, groups, strict=False)
                for (field, name), pieces in zip(places, group, strict=True)
            ),
            self.batched,
        )

    def _framed(self, count: int) -> list[list[tuple[_Frame, _Frame]]]:
        return [
            [
                (self._frame(number, label, spec, count, False), self._frame(number, label, spec, count, True))
                for label, spec in zip(names, specs, strict=True)
            ]
            for number, names, specs in self._groups
        ]

    def _frame(self, number: int, names: Names, spec: ArraySpec, count: int, flagged: bool) -> _Frame:
        """The bytes around the elements of a NamedTensor (one name), a Block (two) or a SparseMatrix (an empty one)."""
        shape = (count, *spec.shape) if self.batched else spec.shape
        size = spec.bytes * count
        head = b"".join(delimited(field, name.encode()) for field, name in enumerate(names, 1) if name)
        sizes = b"".join(varint(axis) for axis in shape)
        tensor = tag(1, VARINT) + varint(NUMBERS[spec.dtype])
        tensor += delimited(2, sizes) if sizes else b""
        tensor += prefix(3, size) if size else b""
        after = tag(len(names) + 2, VARINT) + b"\1" if self.batched else b""
        after += tag(len(names) + 3, VARINT) + b"\1" if flagged else b""
        before = head + prefix(len(names) + 1, len(tensor) + size) + tensor
        pattern = self._pattern if names == SPARSE_NAMES else b""  # stands in the place of a name
        length = len(pattern) + len(before) + size + len(after)
        framed = prefix(number, length)
        return _Frame((framed, pattern, before) if pattern else (framed + before,), after, len(framed) + length)


def elements(array: Array) -> Part:
    """The elements as they travel; where that is worth it, as they lie in memory."""
    if array.nbytes <= COPIED_BYTES:  # a copy costs less than a view
        return array.tobytes()
    if array.dtype.kind == "V":  # bfloat16, which numpy does not know and will not lend as a buffer
        array = array.view(np.uint16)
    return array.data if array.flags.c_contiguous else array.tobytes()


def non_finite(array: Array) -> bool:
    """Whether an element is NaN or infinite."""
    dtype = array.dtype
    # Of the dtypes on the wire only bfloat16, which numpy does not know, has the kind "V".
    if dtype.kind not in "fcV":
        return False
    # The sum of squares is finite only if all elements are, and takes a third of the time for a few of them.
    if array.size <= DOT_ELEMENTS and dtype.itemsize >= 4 and math.isfinite(abs(np.vdot(array, array))):
        return False
    return not np.isfinite(array).all()


def _places(query: Query, outputs: Sequence[str]) -> list[list[tuple[str, str]]]:
    """The fields and the names of the tensors that the first one which is not finite is looked for among."""
    if query.operator != function_pb2.OPERATOR_GRADIENT:
        return []
    named = {"values": _outputs(query, outputs), "gradients": _wrt(query, outputs)}
    return [[(f"{field}[{index}]", name) for index, (name,) in enumerate(names)] for field, names in named.items()]


def _known_finite(_: Array) -> bool:
    """In place of `non_finite` where it is known that nothing is."""
    return False


def _vouched(query: Query, groups: Sequence[Group]) -> tuple[Callable[[Array], bool], ...]:
    """How to look at each group if all norms of a gradient are finite; nothing if they say nothing of its elements.

    A finite norm is one of finite elements, and much shorter to look at. A gradient of another dtype may be infinite
    where its norm is not: the compiler may have computed that from what was there before it was narrowed.
    """
    if query.operator != function_pb2.OPERATOR_GRADIENT or len(groups) <= 2:
        return ()
    _, gradients, *errors, (_, _, (norms,)) = groups
    if any(spec.dtype != norms.dtype for spec in gradients[2]):
        return ()
    return (non_finite, _known_finite, *(non_finite for _ in errors), _known_finite)


_Named = Callable[[Query, Sequence[str]], list[Names]]


def _outputs(_: Query, outputs: Sequence[str]) -> list[Names]:
    return [(name,) for name in outputs]


def _wrt(query: Query, _: Sequence[str]) -> list[Names]:
    return [(name,) for name in _inputs(query, query.wrt)]


def _norms(_: Query, __: Sequence[str]) -> list[Names]:
    return [("norms",)]


def _jacobian(query: Query, outputs: Sequence[str]) -> list[Names]:
    return [(row, column) for row in outputs for column in _inputs(query, query.wrt)]


def _hessian(query: Query, _: Sequence[str]) -> list[Names]:
    return [(row, column) for row in _inputs(query, query.wrt) for column in _inputs(query, query.columns)]


def _inputs(query: Query, indices: Sequence[int]) -> list[str]:
    return [query.function.signature.inputs[index].name for index in indices]


RESPONSES: dict[int, tuple[type[Message], dict[str, _Named]]] = {
    function_pb2.OPERATOR_EVALUATE: (pb.EvaluateResponse, {"values": _outputs}),
    function_pb2.OPERATOR_GRADIENT: (
        pb.GradientResponse,
        {"values": _outputs, "gradients": _wrt, "norms": _norms},
    ),
    function_pb2.OPERATOR_JACOBIAN: (pb.JacobianResponse, {"values": _outputs, "blocks": _jacobian}),
    function_pb2.OPERATOR_HESSIAN: (
        pb.HessianResponse,
        {"values": _outputs, "gradients": _wrt, "blocks": _hessian},
    ),
    function_pb2.OPERATOR_HVP: (pb.HvpResponse, {"values": _outputs, "gradients": _wrt, "products": _wrt}),
    function_pb2.OPERATOR_JVP: (pb.JvpResponse, {"values": _outputs, "products": _outputs}),
    function_pb2.OPERATOR_VJP: (pb.VjpResponse, {"values": _outputs, "products": _wrt}),
    function_pb2.OPERATOR_DIRECTIONAL_DERIVATIVE: (
        pb.DirectionalDerivativeResponse,
        {"values": _outputs, "derivative": _outputs, "steepest_ascent": _wrt, "max_rate": _outputs},
    ),
    function_pb2.OPERATOR_DERIVATIVE: (pb.DerivativeResponse, {"values": _outputs, "derivatives": _outputs}),
    function_pb2.OPERATOR_LAPLACIAN: (
        pb.LaplacianResponse,
        {"values": _outputs, "gradients": _wrt, "laplacian": _outputs, "standard_error": _outputs},
    ),
}
"""For each operator its response, and for each group of the result the field that it goes into and what names it."""

SPARSE: dict[int, dict[str, _Named]] = {
    function_pb2.OPERATOR_JACOBIAN: {"values": _outputs, "sparse": lambda _, __: [SPARSE_NAMES]},
    function_pb2.OPERATOR_HESSIAN: {"values": _outputs, "gradients": _wrt, "sparse": lambda _, __: [SPARSE_NAMES]},
}
"""The groups of sparse matrices."""

DIAGONAL: dict[str, _Named] = {"values": _outputs, "gradients": _wrt, "diagonals": _wrt, "standard_errors": _wrt}
"""The groups of a Hessian of which only the diagonal was asked for."""
