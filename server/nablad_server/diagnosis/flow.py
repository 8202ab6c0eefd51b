"""What becomes of a gradient on its way back through layers: whether it vanishes, explodes, or keeps its size."""

import enum
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nablad.tensors import Array

CHANGED = 1e3
"""A gradient vanishes, or explodes, if it changes by more than this factor from the last layer to the first."""

CROWDED = 0.5
"""A share of saturated units worth naming."""


class Flow(enum.Enum):
    """What becomes of a gradient."""

    STEADY = enum.auto()
    VANISHING = enum.auto()
    EXPLODING = enum.auto()
    NON_FINITE = enum.auto()


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of a gradient, and why.

    Attributes:
        flow: what.
        reason: why, in words.
        ratio: the norm at the first layer over that at the last; 1 if they are one, NaN if both are 0.
        factor: what the norm is multiplied by from a layer to the one before, on average: the geometric mean.
    """

    flow: Flow
    reason: str
    ratio: float
    factor: float


def verdict_on(
    gradients: Sequence[float], inputs: Sequence[float], saturated: Sequence[float], names: Sequence[str]
) -> Verdict:
    """What becomes of the gradient whose norms at the layers, in the order of computation, and inputs these are.

    `saturated` are the shares of units that are, and `names` what the layers are called.
    """
    alone = len(gradients) == 1
    ratio = 1.0 if alone else ratio_of(gradients[0], gradients[-1])
    factor = 1.0 if alone else ratio ** (1 / (len(gradients) - 1))
    if not all(map(math.isfinite, (*gradients, *inputs))):
        flow = Flow.NON_FINITE
    elif ratio < 1 / CHANGED:
        flow = Flow.VANISHING
    elif ratio > CHANGED:
        flow = Flow.EXPLODING
    else:
        flow = Flow.STEADY
    return Verdict(flow, _reason(flow, gradients, factor, names) + _crowded(saturated, names), ratio, factor)


def ratio_of(norm: float, later: float) -> float:
    """One norm over another: infinite over 0, and NaN if both are 0."""
    if later:
        return norm / later
    return math.inf if norm > 0 else math.nan


def over_points(norms: Array) -> list[float]:
    """Root mean squares, [points, …], over the points, in float64; scaled first, so that no square vanishes."""
    norms = np.asarray(norms, np.float64)
    largest = norms.max(axis=0)
    scale = np.where((largest > 0) & np.isfinite(largest), largest, 1.0)
    with np.errstate(invalid="ignore"):
        means: list[float] = (scale * np.sqrt(np.mean((norms / scale) ** 2, axis=0))).tolist()
    return means


def _reason(flow: Flow, gradients: Sequence[float], factor: float, names: Sequence[str]) -> str:
    first, last, count = gradients[0], gradients[-1], len(gradients)
    if flow is Flow.NON_FINITE:
        broken = [index for index, norm in enumerate(gradients) if not math.isfinite(norm)]
        if not broken:
            return "the gradient is NaN or infinite at an input, and finite at all layers"
        return (
            f"the gradient is NaN or infinite at {len(broken)} of {count} layers, the last of them {names[broken[-1]]}"
        )
    if count == 1:
        return f"there is one layer, {names[0]}, where the gradient is {last:.3g}"
    if not first and not last:
        return f"the gradient is 0 at the first and at the last of {count} layers"
    way = {Flow.VANISHING: "shrinks", Flow.EXPLODING: "grows", Flow.STEADY: "goes"}[flow]
    return (
        f"the gradient {way} from {last:.3g} at the last of {count} layers to {first:.3g} at the first, by a factor of "
        f"{factor:.3g} a layer"
    )


def _crowded(saturated: Sequence[float], names: Sequence[str]) -> str:
    worst = max(range(len(saturated)), key=lambda index: saturated[index])
    if not saturated[worst] >= CROWDED:
        return ""
    return f"; {saturated[worst]:.0%} of the units of {names[worst]} are saturated"
