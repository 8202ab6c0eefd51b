from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from nablad_server.functions.precision import is_wide, precision_of
from nablad_server.functions.signature import ArraySpec


def specs(*dtypes: Any) -> list[ArraySpec]:
    return [ArraySpec((2,), np.dtype(dtype)) for dtype in dtypes]


@pytest.mark.parametrize(
    ("dtypes", "wide"),
    [
        (["float64"], True),
        (["float32"], False),
        (["float16", "float32"], False),
        ([ml_dtypes.bfloat16], False),
        (["float32", "float64"], True),
        (["float32", "int64"], False),
        (["float64", "int32"], True),
        (["complex64"], False),
        (["complex128"], True),
        (["complex64", "float64"], True),
        (["int64", "bool"], True),  # no floating-point input at all
        (["int32"], True),
        ([], True),
    ],
)
def test_a_program_is_wide_if_a_float_is_or_there_is_none(dtypes: list[Any], wide: bool) -> None:
    assert is_wide(specs(*dtypes)) is wide
    with precision_of(specs(*dtypes)):
        assert (jnp.zeros(1).dtype == np.float64) is wide


def test_the_specs_may_come_one_by_one() -> None:
    assert is_wide(spec for spec in specs("int32", "float64"))
    assert not is_wide(spec for spec in specs("int32", "float32"))


def test_outside_of_any_program_the_process_computes_in_64_bits() -> None:
    with precision_of(specs("float32")):
        pass

    assert (np.float64(2) * jnp.ones(3)).dtype == np.float64
