"""The questions of DiagnosticsService as data: what to send and how to read the answer. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nablad import reports, results
from nablad._arguments import Arguments, Batched, arrays
from nablad._calls import Mode, Names, execution_of, mode_number
from nablad.errors import InvalidOption
from nablad.tensors import NUMBERS
from nablad.v1 import diagnostics_pb2 as pb
from nablad.v1 import differentiation_pb2, tensor_pb2


def curvature_request(
    info: results.FunctionInfo, function: str, positional: Sequence[Any], named: Mapping[str, Any],
    *, wrt: Names, output: str | None, batched: Batched,
) -> pb.SummarizeCurvatureRequest:  # fmt: skip
    """The request that asks what a Hessian is like."""
    arguments = Arguments.bind(info, positional, named)
    return pb.SummarizeCurvatureRequest(
        function=function, inputs=arguments.tensors(batched), wrt=arguments.choose(wrt).leaves, output=output or ""
    )


def curvatures(
    request: pb.SummarizeCurvatureRequest, response: pb.SummarizeCurvatureResponse
) -> reports.Curvature | tuple[reports.Curvature, ...]:
    """A response about Hessians, read: one if the request has no points, else one for each."""
    execution = execution_of(response.execution)
    found = tuple(
        reports.Curvature(
            function=response.function,
            size=point.size,
            asymmetry=point.asymmetry,
            symmetric=point.symmetric,
            definiteness=_word(pb.Definiteness.DESCRIPTOR, point.definiteness),
            smallest_eigenvalue=point.smallest_eigenvalue,
            largest_eigenvalue=point.largest_eigenvalue,
            condition_number=point.condition_number,
            negative=point.negative,
            zero=point.zero,
            positive=point.positive,
            gradient_norm=point.gradient_norm,
            execution=execution,
        )
        for point in response.points
    )
    return found if any(tensor.batched for tensor in request.inputs) else found[0]


def layers_request(
    info: results.FunctionInfo, function: str, positional: Sequence[Any], named: Mapping[str, Any],
    *, wrt: Names, output: str | None, batched: Batched,
) -> pb.InspectLayersRequest:  # fmt: skip
    """The request that asks what becomes of a gradient."""
    arguments = Arguments.bind(info, positional, named)
    return pb.InspectLayersRequest(
        function=function, inputs=arguments.tensors(batched), wrt=arguments.choose(wrt).leaves, output=output or ""
    )


def layer_report(response: pb.InspectLayersResponse) -> reports.LayerReport:
    """A response about layers, read."""
    return reports.LayerReport(
        function=response.function,
        flow=_word(pb.GradientFlow.DESCRIPTOR, response.flow),
        reason=response.reason,
        ratio=response.ratio,
        factor_per_layer=response.factor_per_layer,
        layers=tuple(
            reports.Layer(
                activation=layer.activation,
                location=layer.location,
                shape=tuple(layer.shape),
                output_norm=layer.output_norm,
                gradient_norm=layer.gradient_norm,
                ratio=layer.ratio,
                saturated_share=layer.saturated_share,
            )
            for layer in response.layers
        ),
        inputs={each.name: each.gradient_norm for each in response.inputs},
    )


def check_request(
    info: results.FunctionInfo, function: str, positional: Sequence[Any], named: Mapping[str, Any],
    *, wrt: Names, outputs: Names, mode: Mode, order: int, points: int, coordinates: int, directions: int, seed: int,
    sizes: Mapping[str, int] | None, dtype: str | None, batched: Batched,
) -> pb.CheckGradientRequest:  # fmt: skip
    """The request that asks whether derivatives are right."""
    arguments = Arguments.bind(info, positional, named, partly=True)
    for name, value in (("order", order), ("points", points), ("coordinates", coordinates), ("directions", directions)):
        if value < 0:
            raise InvalidOption(f"{name} is {value}; expected 0, for the default, or more", field=name)
    return pb.CheckGradientRequest(
        function=function,
        inputs=arguments.tensors(batched),
        wrt=arguments.choose(wrt).leaves,
        outputs=[outputs] if isinstance(outputs, str) else list(outputs or ()),
        mode=mode_number(mode),
        order=order,
        points=points,
        coordinates=coordinates,
        directions=directions,
        seed=seed,
        sizes=dict(sizes or {}),
        dtype=_dtype(dtype),
    )


def gradient_check(response: pb.CheckGradientResponse) -> reports.GradientCheck:
    """A response about derivatives compared with differences, read."""
    return reports.GradientCheck(
        function=response.function,
        verdict=_word(pb.Verdict.DESCRIPTOR, response.verdict),
        reason=response.reason,
        checks=tuple(
            reports.DerivativeCheck(
                order=check.order,
                mode=_word(differentiation_pb2.Mode.DESCRIPTOR, check.mode),
                verdict=_word(pb.Verdict.DESCRIPTOR, check.verdict),
                inputs=tuple(_input_check(each) for each in check.inputs),
                directions=_input_check(check.directions),
                worst=tuple(_comparison(each) for each in check.worst),
            )
            for check in response.checks
        ),
        inputs=arrays(response.inputs),
        evaluations=response.evaluations,
    )


def _input_check(check: pb.InputCheck) -> reports.InputCheck:
    return reports.InputCheck(
        check.name,
        _word(pb.Verdict.DESCRIPTOR, check.verdict),
        check.moved,
        check.relative_error,
        np.asarray(check.curve.steps),
        np.asarray(check.curve.errors),
    )


def _comparison(comparison: pb.Comparison) -> reports.Comparison:
    return reports.Comparison(
        comparison.input,
        comparison.element,
        comparison.output,
        comparison.output_element,
        comparison.point,
        comparison.automatic,
        comparison.numerical,
        comparison.uncertainty,
        comparison.relative_error,
        _word(pb.Verdict.DESCRIPTOR, comparison.verdict),
    )


def _dtype(name: str | None) -> tensor_pb2.Dtype.ValueType:
    if name is None:
        return tensor_pb2.DTYPE_UNSPECIFIED
    for dtype, number in NUMBERS.items():
        if dtype.name == name:
            return number
    raise InvalidOption(f"dtype is {name!r}; expected one of {', '.join(d.name for d in NUMBERS)}", field="dtype")


def _word(enum: Any, number: int) -> str:
    """The name of an enum's value in lower case, without what all its names begin with."""
    value = enum.values_by_number.get(number)
    if value is None:  # of a server newer than this client
        return f"unknown_{number}"
    prefix = enum.values_by_number[0].name.removesuffix("UNSPECIFIED")
    return str(value.name).removeprefix(prefix).lower()
