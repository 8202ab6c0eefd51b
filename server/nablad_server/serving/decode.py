"""Requests → queries and bytes. Everything that can be wrong with a request is found here, before any work.

Each method of Decoder reads one kind of request. Errors name the field of the request that is to blame.
"""

import difflib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from nablad.errors import (
    DuplicateName,
    InvalidBatch,
    InvalidOption,
    InvalidVector,
    MissingInput,
    NotDifferentiable,
    NotScalar,
    ResultTooLarge,
    UnknownInput,
    UnknownOutput,
    WrongDtype,
    WrongShape,
)
from nablad.tensors import Data, read
from nablad.v1 import differentiation_pb2 as pb
from nablad.v1 import function_pb2, tensor_pb2
from nablad_server.derivatives.operators import MAX_ORDER, result_bytes
from nablad_server.derivatives.query import Query
from nablad_server.derivatives.runner import Points
from nablad_server.functions.function import Function
from nablad_server.functions.precision import is_wide
from nablad_server.functions.registry import Registry
from nablad_server.functions.signature import ArraySpec

Tensors = Sequence[tensor_pb2.NamedTensor]

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


class _Array(NamedTuple):
    """One tensor of a request: its spec for one point, its bytes, and whether it is batched."""

    spec: ArraySpec
    data: bytes
    batched: bool
    points: int
    field: str


class _Subject(NamedTuple):
    """The function that a request is about, at the inputs that it gives."""

    function: Function
    inputs: tuple[_Array, ...]
    specs: tuple[ArraySpec, ...]
    outputs: tuple[tuple[str, ArraySpec], ...]


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
        outputs = _outputs(subject, request.outputs, differentiable=False)
        return self._decoded(subject, (), function_pb2.OPERATOR_EVALUATE, outputs)

    def gradient(self, request: pb.GradientRequest) -> Decoded:
        """Reads a GradientRequest; raises as `evaluate` does."""
        subject = self._subject(request.function, request.inputs)
        outputs = _scalar_output(subject, request.output)
        wrt = _wrt(subject, request.wrt)
        return self._decoded(
            subject, (), function_pb2.OPERATOR_GRADIENT, outputs, wrt=wrt, mode=_mode(request.mode)
        )  # fmt: skip

    def jacobian(self, request: pb.JacobianRequest) -> Decoded:
        """Reads a JacobianRequest; raises as `evaluate` does."""
        subject = self._subject(request.function, request.inputs)
        outputs = _outputs(subject, request.outputs, differentiable=True)
        wrt = _wrt(subject, request.wrt)
        return self._decoded(
            subject, (), function_pb2.OPERATOR_JACOBIAN, outputs, wrt=wrt, mode=_mode(request.mode)
        )  # fmt: skip

    def hessian(self, request: pb.HessianRequest) -> Decoded:
        """Reads a HessianRequest; raises as `evaluate` does."""
        subject = self._subject(request.function, request.inputs)
        outputs = _scalar_output(subject, request.output)
        if request.structure not in pb.HessianStructure.values():
            raise InvalidOption(f"structure {request.structure} is unknown", field="structure")
        diagonal = request.structure == pb.HESSIAN_STRUCTURE_DIAGONAL
        if diagonal and request.columns:
            raise InvalidOption("a diagonal has no columns of its own; leave columns empty", field="columns")
        wrt = _wrt(subject, request.wrt)
        columns = () if diagonal else _wrt(subject, request.columns, "columns") if request.columns else wrt
        return self._decoded(
            subject, (), function_pb2.OPERATOR_HESSIAN, outputs,
            wrt=wrt, columns=columns, diagonal=diagonal, mode=_mode(request.mode),
        )  # fmt: skip

    def hvp(self, request: pb.HvpRequest) -> Decoded:
        """Reads an HvpRequest; raises as `evaluate` does."""
        subject = self._subject(request.function, request.inputs)
        outputs = _scalar_output(subject, request.output)
        indices, vectors, stack = _tangents(subject, request.tangents, request.stacked)
        wrt = _wrt(subject, request.wrt) if request.wrt else indices
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
        outputs = _outputs(subject, request.outputs, differentiable=True)
        indices, vectors, stack = _tangents(subject, request.tangents, request.stacked)
        return self._decoded(
            subject, vectors, function_pb2.OPERATOR_JVP, outputs, wrt=indices, vectors=indices, stack=stack
        )

    def vjp(self, request: pb.VjpRequest) -> Decoded:
        """Reads a VjpRequest; raises as `evaluate` does."""
        subject = self._subject(request.function, request.inputs)
        names = [name for name, _ in subject.outputs]
        given = _by_name(request.cotangents, "cotangents", names, _unknown_output(subject))
        if not given:
            raise InvalidVector("no cotangent was given; give one for each output that counts", field="cotangents")
        specs = [spec for _, spec in subject.outputs]
        for index, array in given.items():
            if not specs[index].differentiable:
                raise _not_differentiable(subject, f"output {names[index]!r}", specs[index], f"{array.field}.name")
        vectors, stack = _vectors(given, specs, names, request.stacked)
        wrt = _wrt(subject, request.wrt)
        outputs = tuple(given)
        return self._decoded(
            subject, vectors, function_pb2.OPERATOR_VJP, outputs, wrt=wrt, vectors=outputs, stack=stack
        )

    def directional_derivative(self, request: pb.DirectionalDerivativeRequest) -> Decoded:
        """Reads a DirectionalDerivativeRequest; raises as `evaluate` does."""
        subject = self._subject(request.function, request.inputs)
        outputs = _scalar_output(subject, request.output)
        indices, vectors, _ = _tangents(subject, request.direction, stacked=False, field="direction")
        decoded = self._decoded(
            subject, vectors, function_pb2.OPERATOR_DIRECTIONAL_DERIVATIVE, outputs, wrt=indices, vectors=indices
        )
        _check_direction(vectors, decoded.points.count)
        return decoded

    def derivative(self, request: pb.DerivativeRequest) -> Decoded:
        """Reads a DerivativeRequest; raises as `evaluate` does."""
        subject = self._subject(request.function, request.inputs)
        outputs = _outputs(subject, request.outputs, differentiable=True)
        if not 1 <= request.order <= MAX_ORDER:
            raise InvalidOption(f"order is {request.order}; expected 1 to {MAX_ORDER}", field="order")
        wrt = _scalar_input(subject, request.wrt)
        return self._decoded(
            subject, (), function_pb2.OPERATOR_DERIVATIVE, outputs, wrt=wrt, order=request.order
        )  # fmt: skip

    def _subject(self, reference: str, tensors: Tensors) -> _Subject:
        function = self._registry.get(reference)
        signature = function.signature
        names = [spec.name for spec in signature.inputs]

        def unknown(name: str, field: str) -> UnknownInput:
            return UnknownInput(
                f"{function.reference} has no input {name[:100]!r}; {_near(name, names)}",
                field=field,
                metadata={"input": name},
            )

        given = _by_name(tensors, "inputs", names, unknown)
        missing = [name for index, name in enumerate(names) if index not in given]
        if missing:
            raise MissingInput(
                f"{function.reference} needs the inputs {_listed(names)}; missing: {_listed(missing)}",
                field="inputs",
                metadata={"missing": ", ".join(missing)},
            )
        inputs = tuple(given[index] for index in range(len(names)))
        specs = tuple(array.spec for array in inputs)
        signature.check(specs, [array.field for array in inputs], function.reference)
        if not is_wide(specs):
            inputs = tuple(_narrowed(array) for array in inputs)
            specs = tuple(array.spec for array in inputs)
        return _Subject(function, inputs, specs, function.outputs_at(specs))

    def _decoded(
        self,
        subject: _Subject,
        vectors: Sequence[_Array],
        operator: function_pb2.Operator.ValueType,
        outputs: tuple[int, ...],
        **options: object,
    ) -> Decoded:
        arrays = (*subject.inputs, *vectors)
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

    def _count(self, arrays: Sequence[_Array]) -> int | None:
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


def _by_name(
    tensors: Tensors, field: str, names: Sequence[str], unknown: Callable[[str, str], Exception]
) -> dict[int, _Array]:
    """The tensors of a request by the index of their name, in the order of the names."""
    found: dict[int, _Array] = {}
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


def _array(given: Data, named: tensor_pb2.NamedTensor, field: str) -> _Array:
    if not named.batched:
        return _Array(ArraySpec(given.shape, given.dtype), given.data, False, 1, field)
    if not given.shape:
        raise WrongShape(
            f"{named.name!r} is marked as batched but is a scalar: it has no first axis to run over points",
            field=f"{field}.tensor.shape",
        )
    return _Array(ArraySpec(given.shape[1:], given.dtype), given.data, True, given.shape[0], field)


def _narrowed(array: _Array) -> _Array:
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
    return array._replace(spec=ArraySpec(array.spec.shape, narrow), data=values.astype(narrow).tobytes())


def _tangents(
    subject: _Subject, tensors: Tensors, stacked: bool, field: str = "tangents"
) -> tuple[tuple[int, ...], tuple[_Array, ...], int | None]:
    """The inputs that have a tangent, the tangents, and how many are stacked."""
    names = [spec.name for spec in subject.function.signature.inputs]

    def unknown(name: str, path: str) -> UnknownInput:
        reference = subject.function.reference
        return UnknownInput(f"{reference} has no input {name[:100]!r} to move; {_near(name, names)}", field=path)

    given = _by_name(tensors, field, names, unknown)
    if not given:
        raise InvalidVector(f"no {field} given; give one for each input that moves", field=field)
    for index, array in given.items():
        if not subject.specs[index].differentiable:
            raise _not_differentiable(subject, f"input {names[index]!r}", subject.specs[index], f"{array.field}.name")
    vectors, stack = _vectors(given, subject.specs, names, stacked)
    return tuple(given), vectors, stack


def _vectors(
    given: dict[int, _Array], specs: Sequence[ArraySpec], names: Sequence[str], stacked: bool
) -> tuple[tuple[_Array, ...], int | None]:
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
                f"the vector for {names[index]!r} has the shape {list(shape)}; {names[index]!r} has {list(wanted.shape)}. "
                "Mark stacks as stacked, and tensors that run over points as batched",
                field=f"{array.field}.tensor.shape",
            )
        if not array.spec.differentiable:
            raise WrongDtype(
                f"the vector for {names[index]!r} is {array.spec.dtype.name}; expected a floating-point dtype",
                field=f"{array.field}.tensor.dtype",
            )
        data = array.data
        if array.spec.dtype != wanted.dtype:
            data = np.frombuffer(data, array.spec.dtype).astype(wanted.dtype).tobytes()
        vectors.append(array._replace(spec=ArraySpec(array.spec.shape, wanted.dtype), data=data))
    return tuple(vectors), stack


def _check_direction(vectors: Sequence[_Array], count: int) -> None:
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


def _wrt(subject: _Subject, names: Sequence[str], field: str = "wrt") -> tuple[int, ...]:
    """The inputs to differentiate with respect to; all that can be if none are named."""
    if not names:
        found = tuple(index for index, spec in enumerate(subject.specs) if spec.differentiable)
        if not found:
            raise NotDifferentiable(
                f"{subject.function.reference} was given no floating-point input to differentiate with respect to",
                field=field,
            )
        return found
    known = [spec.name for spec in subject.function.signature.inputs]
    indices: list[int] = []
    for position, name in enumerate(names):
        path = f"{field}[{position}]"
        if name not in known:
            raise UnknownInput(
                f"{subject.function.reference} has no input {name[:100]!r}; {_near(name, known)}", field=path
            )
        index = known.index(name)
        if index in indices:
            raise DuplicateName(f"{name!r} is given twice", field=path)
        if not subject.specs[index].differentiable:
            raise _not_differentiable(subject, f"input {name!r}", subject.specs[index], path)
        indices.append(index)
    return tuple(indices)


def _scalar_input(subject: _Subject, name: str) -> tuple[int]:
    """The one scalar floating-point input, or the one named."""
    known = [spec.name for spec in subject.function.signature.inputs]
    scalars = [index for index, spec in enumerate(subject.specs) if spec.differentiable and not spec.shape]
    if name:
        (index,) = _wrt(subject, [name])
    elif len(scalars) == 1:
        index = scalars[0]
    elif scalars:
        raise InvalidOption(
            f"{subject.function.reference} has several scalar inputs; name one of "
            f"{_listed([known[i] for i in scalars])}",
            field="wrt",
        )
    else:
        index = next((i for i, spec in enumerate(subject.specs) if spec.differentiable), 0)
    if index not in scalars:
        raise NotScalar(
            f"input {known[index]!r} of {subject.function.reference} is {subject.specs[index]}; Derivative needs a "
            "scalar floating-point input. For functions of several variables use Gradient, Jacobian or Hessian",
            field="wrt",
        )
    return (index,)


def _outputs(subject: _Subject, names: Sequence[str], differentiable: bool) -> tuple[int, ...]:
    """The outputs named, or all; those that are to be differentiated must be floating-point."""
    if not names:
        found = tuple(i for i, (_, spec) in enumerate(subject.outputs) if spec.differentiable or not differentiable)
        if not found:
            raise NotDifferentiable(f"{subject.function.reference} has no floating-point output", field="outputs")
        return found
    indices: list[int] = []
    for position, name in enumerate(names):
        index = _output(subject, name, f"outputs[{position}]")
        if index in indices:
            raise DuplicateName(f"{name!r} is given twice", field=f"outputs[{position}]")
        if differentiable and not subject.outputs[index][1].differentiable:
            raise _not_differentiable(subject, f"output {name!r}", subject.outputs[index][1], f"outputs[{position}]")
        indices.append(index)
    return tuple(indices)


def _scalar_output(subject: _Subject, name: str) -> tuple[int]:
    """The one scalar floating-point output, or the one named."""
    scalars = [i for i, (_, spec) in enumerate(subject.outputs) if spec.differentiable and not spec.shape]
    if name:
        index = _output(subject, name, "output")
        spec = subject.outputs[index][1]
        if not spec.differentiable:
            raise _not_differentiable(subject, f"output {name!r}", spec, "output")
        if index not in scalars:
            raise _not_scalar(subject, [index])
        return (index,)
    if len(scalars) == 1:
        return (scalars[0],)
    if scalars:
        raise UnknownOutput(
            f"{subject.function.reference} has several scalar outputs; name one of "
            f"{_listed([subject.outputs[i][0] for i in scalars])}",
            field="output",
        )
    smooth = [i for i, (_, spec) in enumerate(subject.outputs) if spec.differentiable]
    if not smooth:
        raise NotDifferentiable(f"{subject.function.reference} has no floating-point output", field="output")
    raise _not_scalar(subject, smooth)


def _output(subject: _Subject, name: str, field: str) -> int:
    names = [known for known, _ in subject.outputs]
    if name not in names:
        raise _unknown_output(subject)(name, field)
    return names.index(name)


def _unknown_output(subject: _Subject) -> Callable[[str, str], UnknownOutput]:
    names = [name for name, _ in subject.outputs]
    return lambda name, field: UnknownOutput(
        f"{subject.function.reference} has no output {name[:100]!r}; {_near(name, names)}", field=field
    )


def _not_scalar(subject: _Subject, indices: Sequence[int]) -> NotScalar:
    shapes = ", ".join(f"{subject.outputs[i][0]!r} of shape {list(subject.outputs[i][1].shape)}" for i in indices)
    return NotScalar(
        f"{subject.function.reference} gives {shapes}, not a scalar; use Jacobian or Vjp for outputs that are not scalar",
        field="output",
        metadata={"function": subject.function.reference},
    )


def _not_differentiable(subject: _Subject, what: str, spec: ArraySpec, field: str) -> NotDifferentiable:
    return NotDifferentiable(
        f"{what} of {subject.function.reference} is {spec.dtype.name}; only floating-point ones can be differentiated, "
        "integers, booleans and complex numbers are carried",
        field=field,
        metadata={"function": subject.function.reference},
    )


def _mode(mode: pb.Mode.ValueType) -> pb.Mode.ValueType:
    if mode not in pb.Mode.values():
        raise InvalidOption(f"mode {mode} is unknown; expected AUTO, FORWARD or REVERSE", field="mode")
    return mode or pb.MODE_AUTO


def _near(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name[:100], known, n=3)
    return f"did you mean {' or '.join(map(repr, near))}?" if near else f"it has {_listed(known)}"


def _listed(names: Sequence[str], limit: int = 12) -> str:
    shown = ", ".join(repr(name) for name in names[:limit])
    return shown + (f" and {len(names) - limit} more" if len(names) > limit else "")

