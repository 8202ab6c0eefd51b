"""Requests → queries and bytes. Everything that can be wrong with a request is found here, before any work.

Each method of Decoder reads one kind of request. Errors name the field of the request that is to blame.
"""

from collections.abc import Sequence
from typing import NamedTuple

from nablad.errors import InvalidBatch, InvalidOption, InvalidVector, MissingInput, ResultTooLarge, UnknownInput
from nablad.v1 import differentiation_pb2 as pb
from nablad.v1 import function_pb2
from nablad_server.derivatives.operators import MAX_ORDER, result_bytes
from nablad_server.derivatives.query import Query
from nablad_server.derivatives.runner import Points
from nablad_server.functions.precision import is_wide
from nablad_server.functions.registry import Registry
from nablad_server.serving.arrays import RequestArray, Tensors, by_name, check_direction, listed, narrowed, near
from nablad_server.serving.subject import Subject

_ADVICE = {
    function_pb2.OPERATOR_JACOBIAN: "ask for fewer outputs or inputs in wrt, or use Jvp or Vjp",
    function_pb2.OPERATOR_HESSIAN: "ask for a block (wrt and columns) or the diagonal, or use Hvp",
    function_pb2.OPERATOR_HVP: "send fewer vectors at once",
    function_pb2.OPERATOR_JVP: "send fewer vectors at once",
    function_pb2.OPERATOR_VJP: "send fewer vectors at once",
    function_pb2.OPERATOR_DERIVATIVE: "ask for a lower order",
}


class Decoded(NamedTuple):
    """A request, ready to be run.

    Attributes:
        query: what to compute.
        points: the arrays.
        batched: whether the response has a points axis.
        outputs: the names of the query's outputs.
    """

    query: Query
    points: Points
    batched: bool
    outputs: tuple[str, ...]


class Decoder:
    """Reads requests about the functions of a registry."""

    def __init__(self, registry: Registry, max_points: int, max_result_bytes: int) -> None:
        """Sets the limits: points in a request, and bytes of the arrays in a response."""
        self._registry = registry
        self._max_points = max_points
        self._max_result_bytes = max_result_bytes

    def evaluate(self, request: pb.EvaluateRequest) -> Decoded:
        """Reads an EvaluateRequest. Raises InvalidArgument, NotFound, FailedPrecondition or OutOfRange."""
        subject = self._subject(request.function, request.inputs)
        outputs = subject.select_outputs(request.outputs, differentiable=False)
        return self._decoded(subject, (), function_pb2.OPERATOR_EVALUATE, outputs)

    def gradient(self, request: pb.GradientRequest) -> Decoded:
        """Reads a GradientRequest; raises as `evaluate` does."""
        subject = self._subject(request.function, request.inputs)
        outputs = subject.select_scalar_output(request.output)
        wrt = subject.select_inputs(request.wrt)
        return self._decoded(
            subject, (), function_pb2.OPERATOR_GRADIENT, outputs, wrt=wrt, mode=_mode(request.mode)
        )  # fmt: skip

    def jacobian(self, request: pb.JacobianRequest) -> Decoded:
        """Reads a JacobianRequest; raises as `evaluate` does."""
        subject = self._subject(request.function, request.inputs)
        outputs = subject.select_outputs(request.outputs, differentiable=True)
        wrt = subject.select_inputs(request.wrt)
        return self._decoded(
            subject, (), function_pb2.OPERATOR_JACOBIAN, outputs, wrt=wrt, mode=_mode(request.mode)
        )  # fmt: skip

    def hessian(self, request: pb.HessianRequest) -> Decoded:
        """Reads a HessianRequest; raises as `evaluate` does."""
        subject = self._subject(request.function, request.inputs)
        outputs = subject.select_scalar_output(request.output)
        if request.structure not in pb.HessianStructure.values():
            raise InvalidOption(f"structure {request.structure} is unknown", field="structure")
        diagonal = request.structure == pb.HESSIAN_STRUCTURE_DIAGONAL
        if diagonal and request.columns:
            raise InvalidOption("a diagonal has no columns of its own; leave columns empty", field="columns")
        wrt = subject.select_inputs(request.wrt)
        columns = () if diagonal else subject.select_inputs(request.columns, "columns") if request.columns else wrt
        return self._decoded(
            subject, (), function_pb2.OPERATOR_HESSIAN, outputs,
            wrt=wrt, columns=columns, diagonal=diagonal, mode=_mode(request.mode),
        )  # fmt: skip

    def hvp(self, request: pb.HvpRequest) -> Decoded:
        """Reads an HvpRequest; raises as `evaluate` does."""
        subject = self._subject(request.function, request.inputs)
        outputs = subject.select_scalar_output(request.output)
        indices, vectors, stack = subject.tangents(request.tangents, request.stacked)
        wrt = subject.select_inputs(request.wrt) if request.wrt else indices
        for index, vector in zip(indices, vectors, strict=True):
            if index not in wrt:
                name = subject.function.signature.inputs[index].name
                raise InvalidVector(f"{name!r} has a tangent but is not in wrt; add it there", field=vector.field)
        return self._decoded(
            subject, vectors, function_pb2.OPERATOR_HVP, outputs,
            wrt=wrt, vectors=indices, stack=stack, mode=_mode(request.mode),
        )  # fmt: skip

    def jvp(self, request: pb.JvpRequest) -> Decoded:
        """Reads a JvpRequest; raises as `evaluate` does."""
        subject = self._subject(request.function, request.inputs)
        outputs = subject.select_outputs(request.outputs, differentiable=True)
        indices, vectors, stack = subject.tangents(request.tangents, request.stacked)
        return self._decoded(
            subject, vectors, function_pb2.OPERATOR_JVP, outputs, wrt=indices, vectors=indices, stack=stack
        )

    def vjp(self, request: pb.VjpRequest) -> Decoded:
        """Reads a VjpRequest; raises as `evaluate` does."""
        subject = self._subject(request.function, request.inputs)
        outputs, vectors, stack = subject.cotangents(request.cotangents, request.stacked)
        wrt = subject.select_inputs(request.wrt)
        return self._decoded(
            subject, vectors, function_pb2.OPERATOR_VJP, outputs, wrt=wrt, vectors=outputs, stack=stack
        )

    def directional_derivative(self, request: pb.DirectionalDerivativeRequest) -> Decoded:
        """Reads a DirectionalDerivativeRequest; raises as `evaluate` does."""
        subject = self._subject(request.function, request.inputs)
        outputs = subject.select_scalar_output(request.output)
        indices, vectors, _ = subject.tangents(request.direction, stacked=False, field="direction")
        decoded = self._decoded(
            subject, vectors, function_pb2.OPERATOR_DIRECTIONAL_DERIVATIVE, outputs, wrt=indices, vectors=indices
        )
        check_direction(vectors, decoded.points.count)
        return decoded

    def derivative(self, request: pb.DerivativeRequest) -> Decoded:
        """Reads a DerivativeRequest; raises as `evaluate` does."""
        subject = self._subject(request.function, request.inputs)
        outputs = subject.select_outputs(request.outputs, differentiable=True)
        if not 1 <= request.order <= MAX_ORDER:
            raise InvalidOption(f"order is {request.order}; expected 1 to {MAX_ORDER}", field="order")
        wrt = subject.select_scalar_input(request.wrt)
        return self._decoded(
            subject, (), function_pb2.OPERATOR_DERIVATIVE, outputs, wrt=wrt, order=request.order
        )  # fmt: skip

    def _subject(self, reference: str, tensors: Tensors) -> Subject:
        function = self._registry.get(reference)
        signature = function.signature
        names = [spec.name for spec in signature.inputs]

        def unknown(name: str, field: str) -> UnknownInput:
            return UnknownInput(
                f"{function.reference} has no input {name[:100]!r}; {near(name, names)}",
                field=field,
                metadata={"input": name},
            )

        given = by_name(tensors, "inputs", names, unknown)
        missing = [name for index, name in enumerate(names) if index not in given]
        if missing:
            raise MissingInput(
                f"{function.reference} needs the inputs {listed(names)}; missing: {listed(missing)}",
                field="inputs",
                metadata={"missing": ", ".join(missing)},
            )
        inputs = tuple(given[index] for index in range(len(names)))
        specs = tuple(array.spec for array in inputs)
        signature.check(specs, [array.field for array in inputs], function.reference)
        if not is_wide(specs):
            inputs = tuple(narrowed(array) for array in inputs)
            specs = tuple(array.spec for array in inputs)
        return Subject(function, inputs, specs, function.outputs_at(specs))

    def _decoded(
        self,
        subject: Subject,
        moving: Sequence[RequestArray],
        operator: function_pb2.Operator.ValueType,
        outputs: tuple[int, ...],
        **options: object,
    ) -> Decoded:
        arrays = (*subject.inputs, *moving)
        count = self._count(arrays)
        shared = tuple(not array.batched for array in arrays) if count is not None else ()
        query = Query(subject.function, operator, subject.specs, outputs, shared=shared, **options)  # type: ignore[arg-type]  # the callers' keywords are Query's own
        each = result_bytes(query)
        total = each * (count or 1)
        if total > self._max_result_bytes:
            advice = _ADVICE.get(operator, "ask for less")
            raise ResultTooLarge(
                f"{query} gives {each} bytes a point, {total} in all; a response holds at most "
                f"{self._max_result_bytes}. To get less, {advice}{', or send fewer points' if count else ''}",
                metadata={"bytes": str(total), "limit": str(self._max_result_bytes)},
            )
        points = Points(count or 1, tuple(array.data for array in arrays))
        return Decoded(query, points, count is not None, tuple(subject.outputs[index][0] for index in outputs))

    def _count(self, arrays: Sequence[RequestArray]) -> int | None:
        """The number of points; None if nothing is batched."""
        batched = [array for array in arrays if array.batched]
        if not batched:
            return None
        count = batched[0].points
        for array in batched:
            if array.points != count:
                raise InvalidBatch(
                    f"{array.field} holds {array.points} points and {batched[0].field} holds {count}; "
                    "batched tensors must agree",
                    field=f"{array.field}.tensor.shape",
                )
        if not 1 <= count <= self._max_points:
            raise InvalidBatch(
                f"{count} points; expected 1 to {self._max_points} in one request",
                field=f"{batched[0].field}.tensor.shape",
            )
        return count


def _mode(mode: pb.Mode.ValueType) -> pb.Mode.ValueType:
    if mode not in pb.Mode.values():
        raise InvalidOption(f"mode {mode} is unknown; expected AUTO, FORWARD or REVERSE", field="mode")
    return mode or pb.MODE_AUTO
