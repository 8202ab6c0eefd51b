"""A function linearised at one point: what to ask for, and what the answers mean. Pure."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from nablad import _calls, results
from nablad._arguments import Arguments, arrange_outputs, arrays, output_tensors
from nablad._calls import Names, Prepared, common, output_names
from nablad._packing import Dialect, Operation, Settable
from nablad._plans import Key, Plan, kinds, make
from nablad._wire import number
from nablad.errors import Internal, InvalidOption, NabladError, from_wire
from nablad.framing import prefix
from nablad.tensors import Array, to_array, to_tensor
from nablad.v1 import differentiation_pb2 as pb
from nablad.v1 import error_pb2, function_pb2, tensor_pb2

OPEN = "the linearization is open already"
NOT_OPEN = "the linearization is not open; use it within its `with` block, or after `open`"

MAX_PLANS = 64
"""Ways of sending vectors that are remembered for one point; beyond that all are made anew."""

_PRODUCTS = pb.LinearizeRequest.PRODUCTS_FIELD_NUMBER
_OPENING = 1
"""The id of the first operation of a stream, which is the opening: products come after it."""

OPERATORS = {operator.name: operator for operator in (_calls.JVP, _calls.VJP, _calls.HVP)}
"""The products that there are, by name."""
_NUMBERS = {
    "jvp": function_pb2.OPERATOR_JVP, "vjp": function_pb2.OPERATOR_VJP, "hvp": function_pb2.OPERATOR_HVP,
}  # fmt: skip


@dataclass(frozen=True)
class Question:
    """What a caller asks for, before the function's description is known."""

    function: str
    positional: Sequence[Any]
    named: Mapping[str, Any]
    wrt: Names
    outputs: Names

    def point(self, info: results.FunctionInfo) -> "Point":
        """The point. Raises InvalidArgument if the arguments do not fit the function."""
        return Point(self, info)


class _Answer(NamedTuple):
    """The answer to the point, made like that to a product."""

    id: int
    error: error_pb2.Error
    opened: pb.LinearizeOpened


class _Response(NamedTuple):
    answers: Sequence[Any]


class Point(Dialect):
    """A function at a point: what is sent there, and what it means."""

    method = "/nablad.v1.DifferentiationService/Linearize"
    closed = NOT_OPEN
    malformed = "the server sent something that is no LinearizeResponse"
    cancels = False
    renewed = False

    def __init__(self, question: Question, info: results.FunctionInfo) -> None:
        self.function = question.function
        self._info = info
        self._arguments = Arguments.bind(info, question.positional, question.named)
        self._chosen = self._arguments.choose(question.wrt)
        self._request = pb.LinearizePoint(
            function=question.function, inputs=self._arguments.tensors(False), wrt=self._chosen.leaves,
            outputs=output_names(info, question.outputs),
        )  # fmt: skip
        self._plans: dict[tuple[str, bool, Key], Plan[Any]] = {}
        self.opened: pb.LinearizeOpened | None = None

    @property
    def idle_seconds(self) -> float:
        """After so many seconds without a product the server lets the point go; 0 before it is there."""
        return 0.0 if self.opened is None else self.opened.idle_seconds

    def first(self) -> bytes:
        """The point: once it is known which version of the function answers, that very one."""
        if self.opened is not None:
            self._request.function = self.opened.execution.function
        return pb.LinearizeRequest(point=self._request).SerializeToString()

    def read(self, data: bytes) -> _Response:
        """A message with `answers`, that to the point among them."""
        response = pb.LinearizeResponse.FromString(data)
        if not response.HasField("opened"):
            return _Response(response.answers)
        return _Response([_Answer(_OPENING, error_pb2.Error(), response.opened), *response.answers])

    def product(self, operator: str, vector: Any, stacked: bool) -> tuple[Sequence[bytes], Callable[[Any], Any]]:
        """A Product without its id, in pieces, and what makes the result of its answer.

        Raises:
            InvalidOption: there is no such operator.
            InvalidArgument: the vector does not fit the function.
        """
        if operator not in OPERATORS:
            raise InvalidOption(f"operator is {operator!r}; expected one of {', '.join(map(repr, OPERATORS))}")
        kind = kinds((vector,))
        plan = self._plans.get((operator, stacked, kind)) if kind is not None else None
        if plan is None:
            if operator == "vjp":
                tensors = output_tensors(self._info, vector, False)
            else:
                tensors, _ = self._arguments.vectors(vector, False, "tangent", self._chosen.names)
            prepared = self._prepared(operator, tensors, stacked)
            plan = make(OPERATORS[operator], prepared, (vector,)) if kind is not None else None
            if plan is None:
                return [prepared.request.SerializeToString()], prepared.read
            if len(self._plans) >= MAX_PLANS:
                self._plans.clear()
            self._plans[operator, stacked, kind] = plan  # type: ignore[index]  # without a kind there is no plan
        return plan.frame(None).around((item,) for item in plan.data((vector,))), plan.read

    def _prepared(self, operator: str, vectors: Sequence[tensor_pb2.NamedTensor], stacked: bool) -> Prepared[Any]:
        request = pb.Product(operator=_NUMBERS[operator], vectors=vectors, stacked=stacked)
        if operator == "jvp":
            return Prepared(request, lambda answer: arrange_outputs(arrays(answer.products)))
        return Prepared(request, lambda answer: self._chosen.arrange(arrays(answer.products)))

    def flat(self, kind: str) -> "Flat":
        """The Hessian or the Jacobian as a matrix over flat vectors. Raises InvalidOption for another kind."""
        if kind not in ("hessian", "jacobian"):
            raise InvalidOption(f"kind is {kind!r}; expected 'hessian' or 'jacobian'")
        if self.opened is None:
            raise RuntimeError(NOT_OPEN)
        inputs = {named.name: named.tensor for named in self._request.inputs}
        # As the server chooses, if not told: every floating-point input, in the order of the signature.
        names = self._request.wrt or [spec.name for spec in self._info.inputs if _floating(inputs[spec.name])]
        columns = [_Leaf(name, to_array(inputs[name])) for name in names]
        if kind == "hessian":
            return Flat(self, columns, columns, "hvp", "hvp")
        rows = [_Leaf(named.name, to_array(named.tensor)) for named in self.opened.values]
        return Flat(self, rows, columns, "jvp", "vjp")

    def flat_product(self, operator: str, vectors: Sequence[tensor_pb2.NamedTensor], stacked: bool) -> Sequence[bytes]:
        """A Product without its id, in pieces."""
        return [self._prepared(operator, vectors, stacked).request.SerializeToString()]


def _floating(tensor: tensor_pb2.Tensor) -> bool:
    return to_array(tensor).dtype.kind in "fV"


class _Leaf:
    """An input or an output of a matrix: its part of a flat vector."""

    def __init__(self, name: str, example: Array) -> None:
        self.name = name
        self.shape = example.shape
        self.size = example.size
        self.dtype = example.dtype


class Flat:
    """A matrix at a point whose rows and columns are the elements of inputs and outputs, one after the other.

    Attributes:
        shape: rows and columns.
        dtype: what products have.
    """

    def __init__(
        self, point: Point, rows: Sequence[_Leaf], columns: Sequence[_Leaf], forward: str, backward: str
    ) -> None:
        """`forward` is the product with the matrix, `backward` that with its transpose."""
        self._point = point
        self._sides = {forward: columns, backward: columns if forward == backward else rows}
        self.forward = forward
        self.backward = backward
        self.shape = (sum(leaf.size for leaf in rows), sum(leaf.size for leaf in columns))
        self.dtype = np.result_type(*(leaf.dtype for leaf in (*rows, *columns)))

    def product(self, operator: str, vectors: Array) -> Sequence[bytes]:
        """The Product, in pieces, for a vector [n], or for the columns of a matrix [n, k]."""
        stacked = vectors.ndim == 2 and vectors.shape[1] != 1
        rows = np.ascontiguousarray(vectors.T if stacked else vectors.reshape(1, -1))
        tensors, start = [], 0
        for leaf in self._sides[operator]:
            part = rows[:, start : start + leaf.size].astype(leaf.dtype, copy=False)
            shape = (len(rows), *leaf.shape) if stacked else leaf.shape
            tensors.append(tensor_pb2.NamedTensor(name=leaf.name, tensor=to_tensor(part.reshape(shape))))
            start += leaf.size
        return self._point.flat_product(operator, tensors, stacked)

    def result(self, answer: Any, vectors: Array) -> Array:
        """The products in the form of the vectors: [m], [m, 1] or [m, k]."""
        count = vectors.shape[1] if vectors.ndim == 2 else 1
        parts = [to_array(named.tensor).reshape(count, -1) for named in answer.products]
        rows = np.concatenate(parts, axis=1) if len(parts) > 1 else parts[0]
        return rows.T if vectors.ndim == 2 else rows[0]


class Opening(Operation):
    """The point as an operation: it is sent first over every gRPC stream, and answered by `opened`."""

    def __init__(self, point: Point, future: Settable) -> None:
        super().__init__(point.function, 0, _opened)
        self.futures.append(future)
        self.wanted = self.points = 1
        self._point = point
        future.operation = self

    def encode(self, now: float) -> tuple[list[bytes], int]:  # noqa: ARG002 - an operation's is told the time
        """Nothing more: see `Point.first`."""
        return [], 0

    def settle(self, answer: Any, retries: bool) -> list[Operation]:  # noqa: ARG002 - it is not refused, but its stream ended
        """Settles the future with value, non_finite and execution."""
        self._point.opened = answer.opened
        self.deliver(answer.opened)
        return []


def _opened(opened: pb.LinearizeOpened) -> Any:
    return common(opened, opened.values)


class ProductCall(Operation):
    """One product."""

    def __init__(
        self, function: str, body: Sequence[bytes], read: Callable[[Any], Any], future: Settable, deadline: float
    ) -> None:
        """`body`: the Product without its id, in pieces."""
        super().__init__(function, 0, read)
        self.futures.append(future)
        self.wanted = self.points = 1
        self.size = sum(map(len, body))
        self.deadline = deadline
        self._body = body
        future.operation = self

    def encode(self, now: float) -> tuple[list[bytes], int]:  # noqa: ARG002 - products have no deadline on the wire
        """The field of a LinearizeRequest, in pieces, and their size."""
        opening = number(pb.Product.ID_FIELD_NUMBER, self.id)
        opening = prefix(_PRODUCTS, len(opening) + self.size) + opening
        return [opening, *self._body], len(opening) + self.size

    def settle(self, answer: Any, retries: bool) -> list[Operation]:
        """Settles the future with an answer; gives itself if it is to be sent again."""
        if answer.HasField("error"):
            return self._refused(from_wire(answer.error), retries)
        try:
            self.deliver(answer)
        except Exception as error:  # whatever reading an answer leads to is the future's to raise
            self.fail(error if isinstance(error, NabladError) else Internal(f"an answer could not be read: {error}"))
        return []
