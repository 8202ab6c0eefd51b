"""CheckGradient: a request → points, derivatives and values there → what comes of comparing them."""

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from nablad.errors import InvalidOption, NotDifferentiable, ResultTooLarge
from nablad.tensors import Array
from nablad.v1 import diagnostics_pb2 as pb
from nablad.v1 import differentiation_pb2 as wire
from nablad.v1 import function_pb2
from nablad.v1.tensor_pb2 import NamedTensor
from nablad_server.derivatives.narrowing import narrowings
from nablad_server.derivatives.operators.extrapolation import epsilon_of
from nablad_server.derivatives.query import Query
from nablad_server.derivatives.runner import Points
from nablad_server.diagnosis.check import Compared, Point, Sampled, evaluations, lines_through
from nablad_server.diagnosis.matrices import assembled
from nablad_server.functions.registry import Registry
from nablad_server.serving.check_points import chosen_inputs
from nablad_server.serving.check_report import Checked, Side, response
from nablad_server.serving.decode import Decoder, mode_of
from nablad_server.serving.waiting import computed
from nablad_server.serving.work import Desk

MAX_COORDINATES, COORDINATES = 4096, 32
MAX_DIRECTIONS, DIRECTIONS = 64, 4

MAX_SWEEPS = 1024
"""With MODE_AUTO, the other mode is checked too unless it takes more sweeps than this."""

MAX_EVALUATIONS = 4_000_000
"""Of one call."""

MAX_VALUES = 1 << 24
"""Values that are compared at one point: the elements of the outputs, along all lines, at all steps."""

RPC = "CheckGradient"


class _Subject(NamedTuple):
    """What is checked: derivatives of one order, at all points.

    Attributes:
        values: gives what is differentiated, at one point's inputs; its points are those of the check.
        group: which group of its results that is.
        points: the inputs.
        modes: how automatic differentiation may accumulate, and what asks for its result.
    """

    values: Query
    group: int
    points: Points
    modes: list[tuple[wire.Mode.ValueType, Query]]


class GradientChecker:
    """Checks derivatives. Blocks; use it from any thread."""

    def __init__(self, registry: Registry, decoder: Decoder, desk: Desk) -> None:
        self._registry = registry
        self._decoder = decoder
        self._desk = desk

    def check(self, request: pb.CheckGradientRequest, seconds: float) -> pb.CheckGradientResponse:
        """The comparison of automatic differentiation with differences.

        Raises:
            InvalidOption: an option is out of its bounds or contradicts another.
            ResultTooLarge: it would take too many evaluations, or a Jacobian is too large.
            DeadlineExceeded: it is not done after so many seconds.
            NabladError: what evaluating or differentiating the function there would be answered with.
        """
        finish_by = time.monotonic() + seconds
        coordinates = _bounded(request, "coordinates", COORDINATES, MAX_COORDINATES)
        directions = _bounded(request, "directions", DIRECTIONS, MAX_DIRECTIONS)
        if request.order > 2:
            raise InvalidOption(f"order is {request.order}; expected 1 or 2", field="order")
        random = np.random.default_rng(request.seed)
        function = self._registry.get(request.function)
        inputs = chosen_inputs(request, function, random)
        subjects = [(1, self._first(request, inputs))]
        if request.order == 2:
            subjects.append((2, self._second(request, inputs)))
        found: list[Checked] = []
        counted = 0
        narrow: list[str] = []
        for order, subject in subjects:
            check = _Check(self._desk, subject, finish_by)
            found += check.run(order, coordinates, directions, random)
            counted += check.evaluations
            narrow = narrow or narrowings(check.differentiated)
        return response(function, found, narrow, inputs, counted)

    def _first(self, request: pb.CheckGradientRequest, inputs: Sequence[NamedTensor]) -> _Subject:
        mode = mode_of(request.mode)
        asked = [mode] if mode != wire.MODE_AUTO else [wire.MODE_REVERSE, wire.MODE_FORWARD]
        modes = []
        for one in asked:
            query, points, _, _ = self._decoder.jacobian(
                wire.JacobianRequest(
                    function=request.function, inputs=inputs, wrt=request.wrt, outputs=request.outputs, mode=one
                )
            )
            rows, columns = query.matrix_shape
            sweeps = rows if one == wire.MODE_REVERSE else columns
            if len(asked) == 1 or sweeps <= MAX_SWEEPS or sweeps == min(rows, columns):
                modes.append((one, query))
        values = Query(query.function, function_pb2.OPERATOR_EVALUATE, query.inputs, query.outputs)
        return _Subject(values, 0, points, modes)

    def _second(self, request: pb.CheckGradientRequest, inputs: Sequence[NamedTensor]) -> _Subject:
        if len(request.outputs) > 1:
            raise InvalidOption(
                f"second derivatives of {len(request.outputs)} outputs; name one of them, a scalar", field="outputs"
            )
        output = request.outputs[0] if request.outputs else ""
        query, points, _, _ = self._decoder.hessian(
            wire.HessianRequest(
                function=request.function, inputs=inputs, wrt=request.wrt, output=output, mode=request.mode
            )
        )
        values = Query(
            query.function, function_pb2.OPERATOR_GRADIENT, query.inputs, query.outputs, wrt=query.wrt, mode=query.mode
        )
        return _Subject(values, 1, points, [(query.mode, query)])


class _Check:
    """The check of derivatives of one order.

    Attributes:
        evaluations: how many have been asked for.
        differentiated: what asked for a derivative that the function allows.
    """

    def __init__(self, desk: Desk, subject: _Subject, finish_by: float) -> None:
        self._desk = desk
        self._subject = subject
        self._finish_by = finish_by
        self.evaluations = 0
        self.differentiated = subject.modes[0][1]

    def run(self, order: int, coordinates: int, directions: int, random: np.random.Generator) -> list[Checked]:
        """What each mode comes to."""
        subject = self._subject
        query, count = subject.modes[0][1], subject.points.count
        epsilon = epsilon_of(query)
        sizes = [query.inputs[index].size for index in query.wrt]
        lines = sum(min(size, coordinates) for size in sizes) + directions
        _refuse_excess(count, lines, query, epsilon)
        jacobians = self._jacobians()
        middle = self._values(subject.points, [not common for common in query.shared[: len(query.inputs)]])
        compared: list[list[tuple[int, Compared]]] = [[] for _ in jacobians]
        steps = np.zeros(0)
        for number in range(count):
            leaves = self._leaves(number)
            point = Point([leaves[index] for index in query.wrt], middle[number], epsilon)
            steps = point.steps
            along = lines_through(point.leaves, coordinates, directions, random)
            sampled = self._sampled(leaves)
            for into, (_, jacobian) in zip(compared, jacobians, strict=True):
                into += [(number, one) for one in point.compare(along, jacobian[number], sampled)]
        names = query.function.signature.inputs
        moved = tuple(Side(names[index].name, query.inputs[index].shape) for index in query.wrt)
        outputs = query.function.outputs_at(query.inputs)
        given = moved if order == 2 else tuple(Side(outputs[i][0], outputs[i][1].shape) for i in query.outputs)
        return [
            Checked(order, mode, steps, moved, given, tuple(some))
            for some, (mode, _) in zip(compared, jacobians, strict=True)
        ]

    def _jacobians(self) -> list[tuple[wire.Mode.ValueType, Array]]:
        """By each mode that the function allows the matrix at each point, [points, outputs, elements that move]."""
        found = []
        refused: NotDifferentiable | None = None
        for mode, query in self._subject.modes:
            try:
                groups = self._computed(query, self._subject.points)
            except NotDifferentiable as error:  # in this mode
                refused = refused or error
                continue
            self.differentiated = query
            columns = [query.inputs[index].size for index in query.wrt]
            found.append((mode, assembled(groups[-1], _rows(query), columns)))
        if refused is not None and not found:
            raise refused
        return found

    def _leaves(self, number: int) -> list[Array]:
        """The inputs at one point."""
        query, points = self._subject.modes[0][1], self._subject.points
        leaves = []
        for spec, data, common in zip(query.inputs, points.data, query.shared, strict=False):
            array = np.frombuffer(data, spec.dtype)
            leaves.append((array if common else array.reshape(points.count, spec.size)[number]).reshape(spec.shape))
        return leaves

    def _sampled(self, leaves: Sequence[Array]) -> Sampled:
        """The values where some inputs move, and the others are as they are at a point."""
        query = self._subject.modes[0][1]
        moving = [index in query.wrt for index in range(len(leaves))]

        def values(moved: Sequence[Array]) -> Array:
            at = dict(zip(query.wrt, moved, strict=True))
            data = tuple(at.get(index, leaf).tobytes() for index, leaf in enumerate(leaves))
            return self._values(Points(len(moved[0]), data), moving)

        return values

    def _values(self, points: Points, batched: Sequence[bool]) -> Array:
        """What is differentiated, [points, elements] in float64."""
        values = self._subject.values
        shared = tuple(not each for each in batched)
        query = replace(values, shared=shared if any(batched) else ())
        self.evaluations += points.count
        group = self._computed(query, points)[self._subject.group]
        with np.errstate(all="ignore"):
            sizes = _rows(self._subject.modes[0][1])
            parts = zip(group, sizes, strict=True)
            return np.concatenate([part.reshape(points.count, size).astype(np.float64) for part, size in parts], axis=1)

    def _computed(self, query: Query, points: Points) -> list[list[Array]]:
        return computed(self._desk, RPC, query, points, self._finish_by - time.monotonic())


def _refuse_excess(count: int, lines: int, query: Query, epsilon: float) -> None:
    """Raises ResultTooLarge if a check would take too many evaluations, or too much memory."""
    each = evaluations(lines, epsilon)
    advice = "Ask for fewer coordinates or directions, at fewer points, or of fewer outputs"
    if 2 * count * each > MAX_EVALUATIONS:
        raise ResultTooLarge(
            f"{count} points with {lines} lines through each take up to {2 * count * each} evaluations; a call may "
            f"take {MAX_EVALUATIONS}. {advice}",
            field="coordinates",
        )
    values = each * query.matrix_shape[0]
    if values > MAX_VALUES:
        raise ResultTooLarge(
            f"{lines} lines through a point, with {query.matrix_shape[0]} elements of outputs each, are {values} "
            f"numbers to compare; a call may compare {MAX_VALUES} at each point. {advice}",
            field="outputs",
        )


def _rows(query: Query) -> list[int]:
    """How many rows each output has in a Jacobian, or each input in a Hessian."""
    if query.operator == function_pb2.OPERATOR_JACOBIAN:
        return [query.output_specs[index].size for index in query.outputs]
    return [query.inputs[index].size for index in query.wrt]


def _bounded(request: pb.CheckGradientRequest, name: str, default: int, most: int) -> int:
    given: int = getattr(request, name)
    if given > most:
        raise InvalidOption(f"{name} is {given}; expected at most {most}", field=name)
    return given or default
