"""What a server and the process of a black box say to each other: frames of a header in JSON and arrays.

A frame is the bytes of its length, of the length of its header (eight bytes each), the header and the arrays' elements.
Nothing is unpickled: neither side can make the other run anything.
"""

import json
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

from nablad.tensors import NUMBERS, Array

LENGTHS = struct.Struct("<QQ")
_DTYPES = {dtype.name: dtype for dtype in NUMBERS}


def packed(header: dict[str, Any], arrays: Sequence[Array] = ()) -> bytes:
    """A frame of a header, to which the arrays' dtypes and shapes are added, and of the arrays."""
    described = header | {"arrays": [[array.dtype.name, list(array.shape)] for array in arrays]}
    text = json.dumps(described).encode()
    data = b"".join(array.tobytes() for array in arrays)
    return LENGTHS.pack(len(text) + len(data), len(text)) + text + data


def unpacked(header_bytes: int, body: bytes) -> tuple[dict[str, Any], list[Array]]:
    """The header and the arrays of a frame without its lengths. Raises ValueError or KeyError if it is none."""
    header: dict[str, Any] = json.loads(body[:header_bytes])
    arrays, start = [], header_bytes
    for name, shape in header["arrays"]:
        dtype = _DTYPES[name]
        count = int(np.prod(shape, dtype=np.int64))
        arrays.append(np.frombuffer(body, dtype, count, start).reshape(shape))
        start += count * dtype.itemsize
    return header, arrays
