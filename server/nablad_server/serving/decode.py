"""Requests → queries and bytes. Everything that can be wrong with a request is found here, before any work.

Each method of Decoder reads one kind of request. Errors name the field of the request that is to blame. A message that
differs from an earlier one in nothing but the elements of its tensors is not parsed: see `Decoder.read`.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from google.protobuf.message import DecodeError, Message

from nablad.errors import (
    InvalidBatch,
    InvalidOption,
    InvalidVector,
    MalformedRequest,
    MissingInput,
    ResultTooLarge,
    UnknownInput,
)
from nablad.v1 import differentiation_pb2 as pb
from nablad.v1 import function_pb2
from nablad_server.derivatives.memory import ADVICE
from nablad_server.derivatives.operators import result_bytes
from nablad_server.derivatives.operators.orders import MAX_ORDER
from nablad_server.derivatives.query import SEED, Query
from nablad_server.derivatives.runner import Points
from nablad_server.functions.precision import is_wide
from nablad_server.functions.registry import Registry
from nablad_server.serving.arrays import RequestArray, Tensors, by_name, check_direction, listed, narrowed, near
from nablad_server.serving.layout import Layout
from nablad_server.serving.subject import Subject
from nablad_server.serving.wire import Template, tensor_bytes


class Decoded(NamedTuple):
    """A request, ready to be run.

    Attributes:
        query: what to compute.
        points: the arrays.
        layout: how to write the response.
        fields: for every array the path of its tensor in the request; None if what was concluded from the request
            depends on the elements, too.
    """

    query: Query
    points: Points
    layout: Layout
    fields: tuple[str, ...] | None = None


class Kind(NamedTuple):
    """One kind of request: its message, and the method of Decoder that reads it."""

    request: type[Message]
    decode: "Callable[[Decoder, Any], Decoded]"


MAX_SAMPLES = 65536
MAX_TEMPLATES = 4096
MAX_TEMPLATES_OF_A_LENGTH = 8
MAX_TEMPLATE_BYTES = 4096
COPIED_BYTES = 4096
"""Up to this size a tensor's elements are copied out of the message; those of larger ones are looked at in place."""


class _Known(NamedTuple):
    template: Template
    query: Query
    points: int
    layout: Layout


class Decoder:
    """Reads requests about the functions of a registry."""

    def __init__(self, registry: Registry, max_points: int, max_result_bytes: int) -> None:
        """Sets the limits: points in a request, and bytes of the arrays in a response."""
        self._registry = registry
        self._max_points = max_points
        self._max_result_bytes = max_result_bytes
        self._known: dict[tuple[type[Message], int], list[_Known]] = {}
        self._layouts: dict[tuple[Query, bool], Layout] = {}

    def read(self, kind: Kind, message: bytes, start: int, stop: int) -> Decoded:
        """Reads the request message[start:stop].

        Callers repeat themselves: a request mostly equals an earlier one in all but the elements of its tensors. What
        was concluded from that one then holds for this one too, and all that is left to do is to find the elements.

        Raises:
            MalformedRequest: the bytes are not a message of this kind.
            NabladError: as the kind's own method.
        """
        for known in self._known.get((kind.request, stop - start), ()):
            if known.template.fits(message, start):
                data = []
                for low, high in known.template.holes:
                    first, last = start + low, start + high
                    data.append(
                        message[first:last] if last - first <= COPIED_BYTES else memoryview(message)[first:last]
                    )
                return Decoded(known.query, Points(known.points, tuple(data)), known.layout)
        try:
            request = kind.request.FromString(message[start:stop])
        except DecodeError as error:
            raise MalformedRequest(
                f"{stop - start} bytes are not a well-formed {kind.request.DESCRIPTOR.full_name}: {error}"
            ) from None
        decoded = kind.decode(self, request)
        self._remember(kind, message, start, stop, decoded)
        return decoded

    def _remember(self, kind: Kind, message: bytes, start: int, stop: int, decoded: Decoded) -> None:
        """Keeps what a request came to, if requests that differ in the elements of tensors alone come to the same."""
        query, points, layout, paths = decoded
        if paths is None:
            return
        try:
            found = tensor_bytes(message, start, stop, kind.request.DESCRIPTOR)
            holes = [found[f"{path}.tensor.data"] for path in paths]
        except (ValueError, KeyError):  # framed in a way that the library puts together, or without elements
            return
        template = Template(message, start, stop, holes)
        if template.size > MAX_TEMPLATE_BYTES:
            return
        if len(self._known) >= MAX_TEMPLATES:
            self._known.clear()
        alike = self._known.setdefault((kind.request, stop - start), [])
        if len(alike) >= MAX_TEMPLATES_OF_A_LENGTH:
            alike.pop()
        alike.insert(0, _Known(template, query, points.count, layout))

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
        samples, seed = _estimate(request) if request.HasField("estimate") else (0, b"")
        if samples and not diagonal:
            raise InvalidOption("only a diagonal can be estimated; see structure", field="estimate")
        wrt = subject.select_inputs(request.wrt)
        columns = () if diagonal else subject.select_inputs(request.columns, "columns") if request.columns else wrt
        return self._decoded(
            subject, (), function_pb2.OPERATOR_HESSIAN, outputs, seed,
            wrt=wrt, columns=columns, diagonal=diagonal, mode=_mode(request.mode), samples=samples,
        )  # fmt: skip

    def laplacian(self, request: pb.LaplacianRequest) -> Decoded:
        """Reads a LaplacianRequest; raises as `evaluate` does."""
        subject = self._subject(request.function, request.inputs)
        outputs = subject.select_scalar_output(request.output)
        samples, seed = _estimate(request) if request.HasField("estimate") else (0, b"")
        return self._decoded(
            subject, (), function_pb2.OPERATOR_LAPLACIAN, outputs, seed,
            wrt=subject.select_inputs(request.wrt), mode=_mode(request.mode), samples=samples,
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
        return decoded._replace(fields=None)

    def derivative(self, request: pb.DerivativeRequest) -> Decoded:
        """Reads a DerivativeRequest; raises as `evaluate` does."""
        subject = self._subject(request.function, request.inputs)
        outputs = subject.select_outputs(request.outputs, differentiable=True)
        if not 1 <= request.order <= MAX_ORDER:
            raise InvalidOption(f"order is {request.order}; expected 1 to {MAX_ORDER}", field="order")
        if not request.direction:
            wrt = subject.select_scalar_input(request.wrt)
            return self._decoded(
                subject, (), function_pb2.OPERATOR_DERIVATIVE, outputs, wrt=wrt, order=request.order
            )  # fmt: skip
        if request.wrt:
            raise InvalidOption("a direction says which inputs move; leave wrt empty", field="wrt")
        indices, vectors, _ = subject.tangents(request.direction, stacked=False, field="direction")
        return self._decoded(
            subject, vectors, function_pb2.OPERATOR_DERIVATIVE, outputs,
            wrt=indices, vectors=indices, order=request.order,
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
        extra: bytes = b"",
        **options: object,
    ) -> Decoded:
        """`extra`: the elements of the query's extras, which are the same for every point."""
        arrays = (*subject.inputs, *moving)
        count = self._count(arrays)
        shared = tuple(not array.batched for array in arrays) if count is not None else ()
        if shared and extra:
            shared += (False,)
        query = Query(subject.function, operator, subject.specs, outputs, shared=shared, **options)  # type: ignore[arg-type]  # the callers' keywords are Query's own
        each = result_bytes(query)
        total = each * (count or 1)
        if total > self._max_result_bytes:
            advice = ADVICE.get(operator, "ask for less")
            raise ResultTooLarge(
                f"{query} gives {each} bytes a point, {total} in all; a response holds at most "
                f"{self._max_result_bytes}. To get less, {advice}{', or send fewer points' if count else ''}",
                metadata={"bytes": str(total), "limit": str(self._max_result_bytes)},
            )
        extras = (extra * (count or 1),) if extra else ()
        points = Points(count or 1, tuple(array.data for array in arrays) + extras)
        key = (query, count is not None)
        layout = self._layouts.get(key)
        if layout is None:
            if len(self._layouts) >= MAX_TEMPLATES:
                self._layouts.clear()
            names = tuple(subject.outputs[index][0] for index in outputs)
            layout = self._layouts[key] = Layout(query, count is not None, names)
        # Equal queries become one and the same, so that looking for what is known about it is a matter of identity.
        literal = bool(extras) or any(array.converted or array.spec.dtype.kind == "b" for array in arrays)
        fields = None if literal else tuple(array.field for array in arrays)
        return Decoded(layout.query, points, layout, fields)

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


def _estimate(request: pb.HessianRequest | pb.LaplacianRequest) -> tuple[int, bytes]:
    """How many random vectors, and the elements of their seed."""
    estimate = request.estimate
    if not 2 <= estimate.samples <= MAX_SAMPLES:
        raise InvalidOption(
            f"an estimate from {estimate.samples} samples; expected 2 to {MAX_SAMPLES}", field="estimate.samples"
        )
    return estimate.samples, estimate.seed.to_bytes(SEED.bytes, "little")


def _mode(mode: pb.Mode.ValueType) -> pb.Mode.ValueType:
    if mode not in pb.Mode.values():
        raise InvalidOption(f"mode {mode} is unknown; expected AUTO, FORWARD or REVERSE", field="mode")
    return mode or pb.MODE_AUTO
