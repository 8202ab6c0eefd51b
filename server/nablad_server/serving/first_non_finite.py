"""Where to look first, in a response with NaN or infinities: the message NonFinite, written by hand."""

from collections.abc import Iterable, Sequence

import numpy as np

from nablad.framing import delimited, prefix, varint
from nablad.tensors import Array
from nablad.v1 import differentiation_pb2 as pb

FIELD = pb.GradientResponse.FIRST_NON_FINITE_FIELD_NUMBER

Places = Iterable[tuple[str, str, Sequence[Array]]]
"""Of each tensor the field, its name, and its pieces, [points, ...] each."""


def first_non_finite(places: Places, batched: bool) -> bytes:
    """The field with the first element that is not finite, tensors in order and each in row-major order.

    Nothing if all are finite. Without `batched` there is one point, and the index leaves it out.
    """
    for field, name, pieces in places:
        start = 0
        for piece in pieces:
            finite = np.isfinite(piece)
            if not finite.all():
                point, *rest = np.unravel_index(int(np.argmin(finite)), finite.shape)
                index = [start + int(point), *map(int, rest)] if batched else list(map(int, rest))
                axes = b"".join(map(varint, index))
                found = delimited(1, field.encode()) + delimited(2, name.encode())
                found += delimited(3, axes) if axes else b""
                return prefix(FIELD, len(found)) + found
            start += len(piece)
    return b""
