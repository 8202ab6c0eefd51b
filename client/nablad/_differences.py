"""Finite differences, as callers ask for them."""

import math
from dataclasses import dataclass
from typing import Literal

from nablad.errors import InvalidArgument
from nablad.v1 import differentiation_pb2 as pb

Scheme = Literal["central", "forward", "ridders"]

_SCHEMES = {
    "central": pb.DIFFERENCE_SCHEME_CENTRAL,
    "forward": pb.DIFFERENCE_SCHEME_FORWARD,
    "ridders": pb.DIFFERENCE_SCHEME_RIDDERS,
}


@dataclass(frozen=True)
class Differences:
    """Finite differences of a function's values, in place of automatic differentiation.

    Attributes:
        scheme: `"central"`; `"forward"`, which takes half the evaluations and is less exact; `"ridders"`, which
            extrapolates to step zero from about twenty evaluations for each element, and is the most exact.
        step: the step, a positive number; None for the one that suits the scheme and the precision.
        absolute: whether the step is a distance. If not, it is multiplied by max(|x|, 1) of each element.
    """

    scheme: Scheme = "central"
    step: float | None = None
    absolute: bool = False


Differencing = Differences | Scheme | None
"""A scheme, a scheme with a step of one's own, or None for automatic differentiation."""


def finite_difference(differences: Differencing) -> pb.FiniteDifference | None:
    """Finite differences on the wire. Raises InvalidArgument for a scheme or a step that there is not."""
    if differences is None:
        return None
    asked = differences if isinstance(differences, Differences) else Differences(differences)
    if asked.scheme not in _SCHEMES:
        raise InvalidArgument(f"differences is {asked.scheme!r}; expected one of {', '.join(_SCHEMES)}")
    if asked.step is not None and not 0 < asked.step < math.inf:
        raise InvalidArgument(f"step is {asked.step!r}; expected a positive number, or None for one that suits")
    return pb.FiniteDifference(
        scheme=_SCHEMES[asked.scheme],
        step=asked.step or 0.0,
        step_scale=pb.STEP_SCALE_ABSOLUTE if asked.absolute else pb.STEP_SCALE_RELATIVE,
    )
