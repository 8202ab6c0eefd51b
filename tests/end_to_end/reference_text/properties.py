"""How the properties of this package are drawn.

Numbers below 2.3·10⁻³⁰⁸, which IEEE 754 calls subnormal, are left out: XLA takes them for 0.
"""

import math
from typing import Any

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

property_test = settings(deadline=None, max_examples=25)
"""Without a deadline: the first example may wait for a compilation."""

REALS = st.floats(-3, 3, allow_subnormal=False)
ANGLES = st.floats(0, 2 * math.pi, allow_subnormal=False)


def tensors(*shape: int) -> st.SearchStrategy[NDArray[Any]]:
    """Arrays of REALS."""
    return hnp.arrays(np.float64, shape, elements=REALS)


def class_labels(count: int, classes: int) -> st.SearchStrategy[NDArray[Any]]:
    """Numbers of classes, from 0."""
    return hnp.arrays(np.int64, count, elements=st.integers(0, classes - 1))
