"""The process that a black box runs in: `python -m … REQUESTS ANSWERS TARGET NAME`.

REQUESTS and ANSWERS are file descriptors, TARGET is a file or a module, NAME the function's name there.
"""

import importlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from nablad.tensors import Array
from nablad_server.functions.frames import LENGTHS, packed, unpacked
from nablad_server.functions.registration import signature_for
from nablad_server.functions.signature import Signature, flatten_outputs
from nablad_server.functions.sources.python import imported_file


def main(requests: int, answers: int, target: str, name: str) -> None:
    """Answers frames of points with frames of values, or of what went wrong, until there are no more."""
    with os.fdopen(requests, "rb") as incoming, os.fdopen(answers, "wb") as outgoing:
        try:
            module = imported_file(target) if target.endswith(".py") else importlib.import_module(target)
            call = getattr(module, name)
            signature = signature_for(call)
        except Exception as error:  # whatever the file's own code raises
            outgoing.write(packed({"exception": type(error).__name__, "error": str(error)}))
            return
        outgoing.write(packed({"ready": True}))
        outgoing.flush()
        own = os.getpid()
        while lengths := incoming.read(LENGTHS.size):
            size, header_bytes = LENGTHS.unpack(lengths)
            header, arrays = unpacked(header_bytes, incoming.read(size))
            try:
                answer = packed({}, _values(call, signature, header, arrays))
            except Exception as error:  # whatever the function raises
                answer = packed({"exception": type(error).__name__, "error": str(error)})
            if os.getpid() != own:  # a child that the function forked and forgot
                os._exit(0)
            outgoing.write(answer)
            outgoing.flush()


def _values(
    call: Callable[..., Any], signature: Signature, header: dict[str, Any], arrays: Sequence[Array]
) -> list[Array]:
    """The outputs at every point, the points axis first."""
    wanted = [(name, np.dtype(dtype), tuple(shape)) for name, dtype, shape in header["outputs"]]
    results = [np.empty((header["points"], *shape), dtype) for _, dtype, shape in wanted]
    for point in range(header["points"]):
        # Copies: a function may change what it is given.
        found = flatten_outputs(call(*signature.unflatten([array[point, ...].copy() for array in arrays])))
        names = [name for name, _ in found]
        if names != [name for name, _, _ in wanted]:
            raise ValueError(f"it returned {names}; it is declared to return {[name for name, _, _ in wanted]}")
        for (name, dtype, shape), (_, leaf), result in zip(wanted, found, results, strict=True):
            array = np.asarray(leaf)
            if array.shape != shape:
                raise ValueError(f"output {name!r} has the shape {list(array.shape)}; it is declared as {list(shape)}")
            if not np.can_cast(array.dtype, dtype, "same_kind"):
                raise ValueError(f"output {name!r} is {array.dtype.name}; it is declared as {dtype.name}")
            result[point] = array
    return results


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4])
