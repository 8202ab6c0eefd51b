"""What the comparisons of a check come to, as a response."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from nablad.tensors import Array
from nablad.v1 import diagnostics_pb2 as pb
from nablad.v1 import differentiation_pb2, tensor_pb2
from nablad_server.diagnosis.check import Compared, largest_of
from nablad_server.diagnosis.comparison import Verdict
from nablad_server.functions.function import Function

WORST = 10
"""So many comparisons are listed by themselves."""

WORDS = {
    Verdict.NOISY: "differences cannot tell",
    Verdict.KINK: "there is no derivative",
    Verdict.WRONG: "it is wrong",
}


class Side(NamedTuple):
    """An input that moves, or what is differentiated.

    Attributes:
        name: of the input, or the output.
        shape: for one point.
    """

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Checked:
    """The derivatives of one order in one mode, compared.

    Attributes:
        order: 1 or 2.
        mode: how automatic differentiation accumulated.
        steps: those of the first look, largest first.
        moved: the inputs that moved.
        differentiated: what was differentiated: outputs, or the gradient with respect to the inputs.
        compared: the number of a point, and what was found along a line through it.
    """

    order: int
    mode: differentiation_pb2.Mode.ValueType
    steps: Array
    moved: tuple[Side, ...]
    differentiated: tuple[Side, ...]
    compared: tuple[tuple[int, Compared], ...]


def response(
    function: Function,
    checked: Sequence[Checked],
    narrow: Sequence[str],
    inputs: Sequence[tensor_pb2.NamedTensor],
    evaluations: int,
) -> pb.CheckGradientResponse:
    """The response; `narrow` are the places where numbers are rounded to fewer digits than the inputs have."""
    checks = [_check(one) for one in checked]
    worst = max(checks, key=lambda check: check.verdict)
    verdict = max(Verdict(worst.verdict), Verdict.NOISY if narrow else Verdict.PASS)
    reasons = [_reason(worst, checks, checked)]
    if narrow:
        more = f" and {len(narrow) - 3} other places" if len(narrow) > 3 else ""
        reasons.append(f"numbers are rounded to {', '.join(narrow[:3])}{more}, where the inputs have more digits")
    return pb.CheckGradientResponse(
        function=function.reference,
        verdict=pb.Verdict.ValueType(verdict),
        reason="; ".join(reasons),
        checks=checks,
        inputs=inputs,
        evaluations=evaluations,
    )


def _check(checked: Checked) -> pb.DerivativeCheck:
    by_input: dict[int | None, list[Compared]] = {index: [] for index in range(len(checked.moved))}
    by_input[None] = []
    for _, compared in checked.compared:
        by_input[compared.line.name].append(compared)
    points = 1 + max((point for point, _ in checked.compared), default=0)
    inputs = [_input(side.name, by_input[index], checked.steps, points) for index, side in enumerate(checked.moved)]
    directions = _input("", by_input[None], checked.steps, points)
    return pb.DerivativeCheck(
        order=checked.order,
        mode=checked.mode,
        verdict=max(part.verdict for part in (*inputs, directions)),
        inputs=inputs,
        directions=directions,
        worst=_worst(checked),
    )


def _input(name: str, compared: Sequence[Compared], steps: Array, points: int) -> pb.InputCheck:
    verdict = max((int(one.verdicts.max(initial=1)) for one in compared), default=1)
    largest = max((float(largest_of(one.errors)) for one in compared), default=0.0)
    curve = np.fmax.reduce([one.curve for one in compared]) if compared else np.full(len(steps), np.nan)
    return pb.InputCheck(
        name=name,
        verdict=pb.Verdict.ValueType(verdict),
        moved=len(compared) // points,
        relative_error=largest,
        curve=pb.StepCurve(steps=steps.tolist(), errors=curve.tolist()),
    )


def _worst(checked: Checked) -> list[pb.Comparison]:
    """The elements that agree least: by verdict, then by error."""
    candidates = []
    for point, compared in checked.compared:
        errors = np.where(np.isnan(compared.errors), np.inf, compared.errors)
        order = np.lexsort((-errors, -compared.verdicts))[:WORST]
        candidates += [(compared.verdicts[i], errors[i], point, compared, int(i)) for i in order]
    candidates.sort(key=lambda found: (-found[0], -found[1]))
    return [_comparison(checked, *found[2:]) for found in candidates[:WORST]]


def _comparison(checked: Checked, point: int, compared: Compared, index: int) -> pb.Comparison:
    line = compared.line
    # Along an element the derivative is by that element itself, not in proportion to its size.
    reach = 1.0 if line.name is None else line.reach
    output, element = _place(index, checked.differentiated)
    return pb.Comparison(
        input="" if line.name is None else checked.moved[line.name].name,
        element=line.element,
        output=output.name,
        output_element=element,
        point=point,
        automatic=compared.automatic[index] / reach,
        numerical=compared.numerical[index] / reach,
        uncertainty=compared.uncertainty[index] / reach,
        relative_error=compared.errors[index],
        verdict=pb.Verdict.ValueType(int(compared.verdicts[index])),
    )


def _place(index: int, sides: Sequence[Side]) -> tuple[Side, int]:
    """Which of the arrays, laid end to end, holds an element, and which of its elements that is."""
    for side in sides[:-1]:
        size = int(np.prod(side.shape, dtype=np.int64))
        if index < size:
            return side, index
        index -= size
    return sides[-1], index


def _reason(worst: pb.DerivativeCheck, checks: Sequence[pb.DerivativeCheck], checked: Sequence[Checked]) -> str:
    parts = [part for check in checks for part in (*check.inputs, check.directions)]
    if worst.verdict == pb.VERDICT_PASS:
        largest = max((part.relative_error for part in parts), default=0.0)
        elements = sum(part.moved for part in checks[0].inputs)
        return (
            f"automatic differentiation and differences agree to {largest:.1e} along {elements} elements and "
            f"{checks[0].directions.moved} directions at each point"
        )
    (found,) = worst.worst[:1]
    of = checked[list(checks).index(worst)]
    known = {side.name: side.shape for side in (*of.moved, *of.differentiated)}
    what = f"∂{_element('∂f/∂' * (of.order - 1) + found.output, known[found.output], found.output_element)}"
    along = f"/∂{_element(found.input, known[found.input], found.element)}" if found.input else ""
    how = "along an element" if found.input else f"along the random direction {found.element}"
    mode = differentiation_pb2.Mode.Name(of.mode).removeprefix("MODE_").lower()
    return (
        f"{WORDS[Verdict(worst.verdict)]}: {what}{along} {how} at point {found.point} is {found.automatic:.10g} by "
        f"automatic differentiation ({mode} mode) and {found.numerical:.10g} ± {found.uncertainty:.1g} by differences"
    )


def _element(name: str, shape: Sequence[int], element: int) -> str:
    if not shape:
        return name
    return f"{name}[{', '.join(str(int(index)) for index in np.unravel_index(element, shape))}]"
