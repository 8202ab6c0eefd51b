"""Requests → queries and bytes. Everything that can be wrong with a request is found here, before any work.

Each method of Decoder reads one kind of request. Errors name the field of the request that is to blame. A message that
differs from an earlier one in nothing but the elements of its tensors is not parsed: see `Decoder.read`.
"""

import functools
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

from google.protobuf.message import Message

from nablad.errors import (
    InvalidBatch,
    InvalidOption,
    InvalidVector,
    MissingInput,
    ResultTooLarge,
    UnknownInput,
)
from nablad.v1 import differentiation_pb2 as pb
from nablad.v1 import function_pb2
from nablad_server.derivatives.memory import ADVICE, SPARSE_ADVICE
from nablad_server.derivatives.operators import result_bytes
from nablad_server.derivatives.operators.orders import MAX_ORDER
from nablad_server.derivatives.patterns import Patterns
from nablad_server.derivatives.query import SEED, Query
from nablad_server.derivatives.runner import Points
from nablad_server.functions.function import Function
from nablad_server.functions.precision import is_wide
from nablad_server.functions.registry import Registry
from nablad_server.serving.arrays import RequestArray, Tensors, by_name, check_direction, listed, narrowed, near
from nablad_server.serving.caller import Allowed
from nablad_server.serving.clipping import clipping_of
from nablad_server.serving.differences import differences_of
from nablad_server.serving.endpoint import parsed
from nablad_server.serving.layout import Layout
from nablad_server.serving.sparsity import pattern_bytes, with_pattern
from nablad_server.serving.subject import Subject
from nablad_server.serving.templates import Templates


class Decoded(NamedTuple):
    """A request, ready to be run.

    Attributes:
        query: what to compute.
        points: the arrays.
        layout: how to write the response.
        fields: for every array but the extras the path of its tensor in the request; None if what was concluded from
            the request depends on the elements, too.
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
MAX_LAYOUTS = 4096


class _Known(NamedTuple):
    query: Query
    points: int
    layout: Layout
    extras: tuple[bytes | memoryview, ...]
    reference: str


class Decoder:
    """Reads requests about the functions of a registry.

    Attributes:
        max_result_bytes: the most bytes of the arrays in a response.
    """

    def __init__(self, registry: Registry, patterns: Patterns, max_points: int, max_result_bytes: int) -> None:
        """Sets the limits: points in a request, and bytes of the arrays in a response."""
        self._registry = registry
        self._patterns = patterns
        self._max_points = max_points
        self.max_result_bytes = max_result_bytes
        self._known: Templates[_Known] = Templates()
        self._layouts: dict[tuple[Query, bool, bool], Layout] = {}

    def read(
        self, kind: Kind, message: bytes, start: int, stop: int, allowed: Allowed | None = None
    ) -> Decoded:  # fmt: skip
        """Reads the request message[start:stop].

        One like an earlier one is not parsed: see `Templates`. `allowed` are the functions that it may be about; None
        for all.

        Raises:
            MalformedRequest: the bytes are not a message of this kind.
            PermissionDenied: it is about a function that is not allowed.
            NabladError: as the kind's own method.
            Pending: a sparsity pattern has to be found first.
        """
        templates = self._known  # before the function is looked up: see `renew`
        found = templates.find(kind.request, message, start, stop)
        if found is not None:
            known = found.known
            if allowed is not None:
                allowed.check(known.reference)
            return Decoded(known.query, Points(known.points, found.data + known.extras), known.layout)
        request: Any = parsed(kind.request, message[start:stop])
        work = functools.partial(kind.decode, self, request)
        decoded = work() if allowed is None else allowed.only(request, work)
        query, points, layout, paths = decoded
        if paths is not None:  # requests that differ in the elements of tensors alone come to the same
            known = _Known(query, points.count, layout, points.data[len(paths) :], request.function)
            templates.add(kind.request, message, start, stop, paths=paths, known=known)
        return decoded

    def of(self, registry: Registry) -> "Decoder":
        """One with the same limits for another registry."""
        return Decoder(registry, self._patterns, self._max_points, self.max_result_bytes)

    def renew(self) -> None:
        """Forgets what requests came to, once the registry has other functions. From any thread.

        A request that is being read meanwhile may have found the old function. What it comes to is then added to the
        templates that it began with, which nobody looks into any more.
        """
        self._known = Templates()

    def forget(self, functions: Collection[Function]) -> None:
        """Lets go of functions that have left the registry. From any thread."""
        # What is added meanwhile may be lost, and is made anew.
        self._layouts = {key: layout for key, layout in list(self._layouts.items()) if key[0].function not in functions}

    def evaluate(self, request: pb.EvaluateRequest) -> Decoded:
        """Reads an EvaluateRequest. Raises InvalidArgument, NotFound, FailedPrecondition or OutOfRange."""
        subject = self.subject(request.function, request.inputs)
        outputs = subject.select_outputs(request.outputs, differentiable=False)
        return self.decoded(subject, (), function_pb2.OPERATOR_EVALUATE, outputs)

    def gradient(self, request: pb.GradientRequest) -> Decoded:
        """Reads a GradientRequest; raises as `evaluate` does."""
        subject = self.subject(request.function, request.inputs)
        outputs = subject.select_scalar_output(request.output)
        wrt = subject.select_inputs(request.wrt)
        differences, step = differences_of(request, subject)
        clipping, bound = clipping_of(request, subject)
        return self.decoded(
            subject, (), function_pb2.OPERATOR_GRADIENT, outputs, bound, step,
            wrt=wrt, mode=mode_of(request.mode), differences=differences, clipping=clipping,
        )  # fmt: skip

    def jacobian(self, request: pb.JacobianRequest) -> Decoded:
        """Reads a JacobianRequest; raises as `evaluate` does."""
        subject = self.subject(request.function, request.inputs)
        outputs = subject.select_outputs(request.outputs, differentiable=True)
        if request.structure not in pb.JacobianStructure.values():
            raise InvalidOption(f"structure {request.structure} is unknown", field="structure")
        sparse = request.structure == pb.JACOBIAN_STRUCTURE_SPARSE
        _check_known(request, sparse)
        wrt = subject.select_inputs(request.wrt)
        differences, step = differences_of(request, subject)
        return self.decoded(
            subject, (), function_pb2.OPERATOR_JACOBIAN, outputs, step, known_pattern=request.known_pattern,
            wrt=wrt, mode=mode_of(request.mode), sparse=sparse, differences=differences,
        )  # fmt: skip

    def hessian(self, request: pb.HessianRequest) -> Decoded:
        """Reads a HessianRequest; raises as `evaluate` does."""
        subject = self.subject(request.function, request.inputs)
        outputs = subject.select_scalar_output(request.output)
        if request.structure not in pb.HessianStructure.values():
            raise InvalidOption(f"structure {request.structure} is unknown", field="structure")
        diagonal = request.structure == pb.HESSIAN_STRUCTURE_DIAGONAL
        sparse = request.structure == pb.HESSIAN_STRUCTURE_SPARSE
        if (diagonal or sparse) and request.columns:
            what = "a diagonal" if diagonal else "a sparse matrix"
            raise InvalidOption(f"{what} has no columns of its own; leave columns empty", field="columns")
        _check_known(request, sparse)
        samples, seed = _estimate(request) if request.HasField("estimate") else (0, b"")
        if samples and not diagonal:
            raise InvalidOption("only a diagonal can be estimated; see structure", field="estimate")
        wrt = subject.select_inputs(request.wrt)
        columns = subject.select_inputs(request.columns, "columns") if request.columns else wrt
        differences, step = differences_of(request, subject)
        return self.decoded(
            subject, (), function_pb2.OPERATOR_HESSIAN, outputs, seed or step, known_pattern=request.known_pattern,
            wrt=wrt, columns=() if diagonal or sparse else columns, diagonal=diagonal, sparse=sparse,
            mode=mode_of(request.mode), samples=samples, differences=differences,
        )  # fmt: skip

    def laplacian(self, request: pb.LaplacianRequest) -> Decoded:
        """Reads a LaplacianRequest; raises as `evaluate` does."""
        subject = self.subject(request.function, request.inputs)
        outputs = subject.select_scalar_output(request.output)
        samples, seed = _estimate(request) if request.HasField("estimate") else (0, b"")
        return self.decoded(
            subject, (), function_pb2.OPERATOR_LAPLACIAN, outputs, seed,
            wrt=subject.select_inputs(request.wrt), mode=mode_of(request.mode), samples=samples,
        )  # fmt: skip

    def hvp(self, request: pb.HvpRequest) -> Decoded:
        """Reads an HvpRequest; raises as `evaluate` does."""
        subject = self.subject(request.function, request.inputs)
        outputs = subject.select_scalar_output(request.output)
        indices, vectors, stack = subject.tangents(request.tangents, request.stacked)
        wrt = subject.select_inputs(request.wrt) if request.wrt else indices
        for index, vector in zip(indices, vectors, strict=True):
            if index not in wrt:
                name = subject.function.signature.inputs[index].name
                raise InvalidVector(f"{name!r} has a tangent but is not in wrt; add it there", field=vector.field)
        differences, step = differences_of(request, subject)
        return self.decoded(
            subject, vectors, function_pb2.OPERATOR_HVP, outputs, step,
            wrt=wrt, vectors=indices, stack=stack, mode=mode_of(request.mode), differences=differences,
        )  # fmt: skip

    def jvp(self, request: pb.JvpRequest) -> Decoded:
        """Reads a JvpRequest; raises as `evaluate` does."""
        subject = self.subject(request.function, request.inputs)
        outputs = subject.select_outputs(request.outputs, differentiable=True)
        indices, vectors, stack = subject.tangents(request.tangents, request.stacked)
        differences, step = differences_of(request, subject)
        return self.decoded(
            subject, vectors, function_pb2.OPERATOR_JVP, outputs, step,
            wrt=indices, vectors=indices, stack=stack, differences=differences,
        )  # fmt: skip

    def vjp(self, request: pb.VjpRequest) -> Decoded:
        """Reads a VjpRequest; raises as `evaluate` does."""
        subject = self.subject(request.function, request.inputs)
        outputs, vectors, stack = subject.cotangents(request.cotangents, request.stacked)
        wrt = subject.select_inputs(request.wrt)
        return self.decoded(subject, vectors, function_pb2.OPERATOR_VJP, outputs, wrt=wrt, vectors=outputs, stack=stack)

    def directional_derivative(self, request: pb.DirectionalDerivativeRequest) -> Decoded:
        """Reads a DirectionalDerivativeRequest; raises as `evaluate` does."""
        subject = self.subject(request.function, request.inputs)
        outputs = subject.select_scalar_output(request.output)
        indices, vectors, _ = subject.tangents(request.direction, stacked=False, field="direction")
        decoded = self.decoded(
            subject, vectors, function_pb2.OPERATOR_DIRECTIONAL_DERIVATIVE, outputs, wrt=indices, vectors=indices
        )
        check_direction(vectors, decoded.points.count)
        return decoded._replace(fields=None)

    def derivative(self, request: pb.DerivativeRequest) -> Decoded:
        """Reads a DerivativeRequest; raises as `evaluate` does."""
        subject = self.subject(request.function, request.inputs)
        outputs = subject.select_outputs(request.outputs, differentiable=True)
        if not 1 <= request.order <= MAX_ORDER:
            raise InvalidOption(f"order is {request.order}; expected 1 to {MAX_ORDER}", field="order")
        if not request.direction:
            wrt = subject.select_scalar_input(request.wrt)
            return self.decoded(
                subject, (), function_pb2.OPERATOR_DERIVATIVE, outputs, wrt=wrt, order=request.order
            )  # fmt: skip
        if request.wrt:
            raise InvalidOption("a direction says which inputs move; leave wrt empty", field="wrt")
        indices, vectors, _ = subject.tangents(request.direction, stacked=False, field="direction")
        return self.decoded(
            subject, vectors, function_pb2.OPERATOR_DERIVATIVE, outputs,
            wrt=indices, vectors=indices, order=request.order,
        )  # fmt: skip

    def subject(self, reference: str, tensors: Tensors) -> Subject:
        """The function and its inputs. Raises InvalidArgument or NotFound."""
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

    def decoded(
        self,
        subject: Subject,
        moving: Sequence[RequestArray],
        operator: function_pb2.Operator.ValueType,
        outputs: tuple[int, ...],
        *extras: bytes,
        known_pattern: bytes = b"",
        **options: object,
    ) -> Decoded:
        """The query of these options, and what else it takes to answer it.

        `moving` are the vectors; `extras` are the elements of the query's extras in their order, the same for every
        point, and nothing in place of those that it has not; `known_pattern` is the fingerprint of the one that the
        response need not hold.

        Raises:
            InvalidBatch: the batched arrays disagree.
            ResultTooLarge: the response would be.
            Pending: the query's sparsity pattern has to be found first.
        """
        if operator != function_pb2.OPERATOR_EVALUATE and options.get("differences") is None:
            subject.check_traced()
        arrays = (*subject.inputs, *moving)
        count = self._count(arrays)
        shared = tuple(not array.batched for array in arrays) if count is not None else ()
        extras = tuple(extra for extra in extras if extra)
        if shared:
            shared += (False,) * len(extras)
        query = Query(subject.function, operator, subject.specs, outputs, shared=shared, **options)  # type: ignore[arg-type]  # the callers' keywords are Query's own
        query = with_pattern(query, self._patterns)
        known = query.pattern is not None and query.pattern.fingerprint == known_pattern
        each = result_bytes(query)
        total = each * (count or 1) + (0 if known or not query.sparse else pattern_bytes(query))
        if total > self.max_result_bytes:
            advice = SPARSE_ADVICE if query.sparse else ADVICE.get(operator, "ask for less")
            raise ResultTooLarge(
                f"{query} gives {each} bytes a point, {total} in all; a response holds at most "
                f"{self.max_result_bytes}. To get less, {advice}{', or send fewer points' if count else ''}",
                metadata={"bytes": str(total), "limit": str(self.max_result_bytes)},
            )
        repeated = tuple(extra * (count or 1) for extra in extras)
        points = Points(count or 1, tuple(array.data for array in arrays) + repeated)
        key = (query, count is not None, known)
        layout = self._layouts.get(key)
        if layout is None:
            if len(self._layouts) >= MAX_LAYOUTS:
                self._layouts.clear()
            names = tuple(subject.outputs[index][0] for index in outputs)
            layout = self._layouts[key] = Layout(query, count is not None, names, known_pattern=known)
        # Equal queries become one and the same, so that looking for what is known about it is a matter of identity.
        fields = None if any(array.literal for array in arrays) else tuple(array.field for array in arrays)
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


def _check_known(request: pb.JacobianRequest | pb.HessianRequest, sparse: bool) -> None:
    if request.known_pattern and not sparse:
        raise InvalidOption("only a sparse matrix has a pattern to be known; see structure", field="known_pattern")


def mode_of(mode: pb.Mode.ValueType) -> pb.Mode.ValueType:
    """The mode that a request asks for. Raises InvalidOption for one that there is not."""
    if mode not in pb.Mode.values():
        raise InvalidOption(f"mode {mode} is unknown; expected AUTO, FORWARD or REVERSE", field="mode")
    return mode or pb.MODE_AUTO
