"""The finite differences that a request asks for."""

import math

import numpy as np

from nablad.errors import InvalidOption
from nablad.v1 import differentiation_pb2 as pb
from nablad_server.derivatives.query import NARROW_STEP, STEP, Differences
from nablad_server.functions.precision import is_wide
from nablad_server.serving.subject import Subject

Request = pb.GradientRequest | pb.JacobianRequest | pb.HessianRequest | pb.HvpRequest | pb.JvpRequest


def differences_of(request: Request, subject: Subject) -> tuple[Differences | None, bytes]:
    """The finite differences asked for, and the elements of their step; None and nothing if none are.

    Raises:
        InvalidOption: they contradict another option, or the scheme, the scale or the step is none that there is.
    """
    if not request.HasField("finite_difference"):
        return None, b""
    asked = request.finite_difference
    if not isinstance(request, pb.JvpRequest) and request.mode not in (pb.MODE_UNSPECIFIED, pb.MODE_AUTO):
        raise InvalidOption("finite differences are not accumulated in a mode; leave one of the two out", field="mode")
    dense = (
        (pb.HESSIAN_STRUCTURE_UNSPECIFIED, pb.HESSIAN_STRUCTURE_DENSE) if isinstance(request, pb.HessianRequest)
        else (pb.JACOBIAN_STRUCTURE_UNSPECIFIED, pb.JACOBIAN_STRUCTURE_DENSE)
    )  # fmt: skip
    if isinstance(request, pb.HessianRequest | pb.JacobianRequest) and request.structure not in dense:
        raise InvalidOption(
            "only a dense matrix is computed by finite differences; see structure", field="finite_difference"
        )
    if asked.scheme not in pb.DifferenceScheme.values():
        raise InvalidOption(
            f"scheme {asked.scheme} is unknown; expected CENTRAL, FORWARD or RIDDERS", field="finite_difference.scheme"
        )
    if asked.step_scale not in pb.StepScale.values():
        raise InvalidOption(
            f"step_scale {asked.step_scale} is unknown; expected RELATIVE or ABSOLUTE",
            field="finite_difference.step_scale",
        )
    dtype = (STEP if is_wide(subject.specs) else NARROW_STEP).dtype
    with np.errstate(over="ignore", under="ignore"):
        step = np.asarray(asked.step, dtype)
    if not (math.isfinite(step) and step >= 0 and (step > 0 or asked.step == 0)):
        raise InvalidOption(
            f"step {asked.step!r} is no step in {dtype.name}; expected a positive number, or 0 for the one that suits",
            field="finite_difference.step",
        )
    scheme = asked.scheme or pb.DIFFERENCE_SCHEME_CENTRAL
    return Differences(scheme, asked.step_scale == pb.STEP_SCALE_ABSOLUTE), step.tobytes()
