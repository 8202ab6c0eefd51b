"""What computes a function, as the catalogue says it: of servers older and newer than this client, too."""

import pytest

from nablad._calls import describe
from nablad.v1 import function_pb2


@pytest.mark.parametrize(
    ("number", "name"),
    [
        (function_pb2.ENGINE_UNSPECIFIED, "jax"),
        (function_pb2.ENGINE_JAX, "jax"),
        (function_pb2.ENGINE_TORCH, "torch"),
        (function_pb2.ENGINE_PYTHON, "python"),
    ],
)
def test_engines_have_names(number: function_pb2.Engine.ValueType, name: str) -> None:
    assert describe(function_pb2.Function(name="f", version=1, engine=number)).engine == name


def test_an_engine_of_a_newer_server_is_a_number() -> None:
    wire = b"\x40\x63"  # field 8, a varint: 99
    assert describe(function_pb2.Function.FromString(wire)).engine == "engine_99"
