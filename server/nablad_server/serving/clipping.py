"""The clipping that a request for a gradient asks for."""

import numpy as np

from nablad.errors import InvalidOption
from nablad.v1 import differentiation_pb2 as pb
from nablad_server.derivatives.query import BOUND, NARROW_BOUND, Clip
from nablad_server.functions.precision import is_wide
from nablad_server.serving.subject import Subject

_KINDS = {"global_norm": Clip.GLOBAL_NORM, "value": Clip.VALUE}


def clipping_of(request: pb.GradientRequest, subject: Subject) -> tuple[Clip | None, bytes]:
    """What is kept within a bound, and the elements of the bound; None and nothing if nothing is.

    Raises:
        InvalidOption: there is no bound, or it is not a positive number in the program's precision.
    """
    if not request.HasField("clipping"):
        return None, b""
    kind = request.clipping.WhichOneof("bound")
    if kind is None:
        raise InvalidOption(
            "clipping has no bound; expected global_norm or value, or leave clipping out", field="clipping"
        )
    asked = getattr(request.clipping, kind)
    dtype = (BOUND if is_wide(subject.specs) else NARROW_BOUND).dtype
    with np.errstate(over="ignore", under="ignore"):  # a bound above all numbers of the dtype is as good as infinite
        bound = np.asarray(asked, dtype)
    if not bound > 0:
        raise InvalidOption(
            f"{kind} {asked!r} is no bound in {dtype.name}; expected a positive number, or infinity for no bound",
            field=f"clipping.{kind}",
        )
    return _KINDS[kind], bound.tobytes()
