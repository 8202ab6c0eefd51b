"""Where the first element of a gradient's answer is that is NaN or infinite."""

from collections.abc import Iterator, Mapping

import numpy as np

from nablad._arguments import arrays
from nablad.results import NonFinite
from nablad.tensors import Array
from nablad.v1 import differentiation_pb2 as pb


def first_non_finite(response: pb.GradientResponse, gradients: Mapping[str, Array]) -> NonFinite | None:
    """Where the response says that it is; None if all is finite. `gradients` are the response's, by name."""
    if not response.HasField("first_non_finite"):
        return None
    found = response.first_non_finite
    among: list[tuple[str, str, Array]] = []
    if response.norms.batched:
        for field, tensors in (("values", arrays(response.values)), ("gradients", gradients)):
            among += [(f"{field}[{index}]", name, array) for index, (name, array) in enumerate(tensors.items())]
    return NonFinite(found.field, found.name, tuple(found.index), tuple(among))


def of_each_point(first: NonFinite | None, points: int) -> Iterator[NonFinite | None]:
    """Of an answer about so many points the first of each point; `first` is that of all of them."""
    found: list[NonFinite | None] = [None] * points
    for field, name, array in first.among if first is not None else ():
        finite = np.isfinite(array).reshape(points, -1)
        for point in np.flatnonzero(~finite.all(axis=1)).tolist():
            if found[point] is None:
                index = np.unravel_index(int(np.argmin(finite[point])), array.shape[1:])
                found[point] = NonFinite(field, name, tuple(map(int, index)))
    return iter(found)
