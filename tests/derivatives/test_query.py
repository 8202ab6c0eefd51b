# jaxtyping writes shapes as strings, which are not forward references:
# ruff: noqa: F722, F821

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float

from nablad.v1 import differentiation_pb2, function_pb2
from nablad_server.derivatives.query import Query
from nablad_server.functions.registration import build
from queries import spec


def scaled(x: Float[Array, "n"], by: Float[Array, ""]) -> Any:
    return {"sum": jnp.sum(x) * by, "all": x * by}


FUNCTION = build(scaled, "test")
INPUTS = (spec((3,)), spec())


def jacobian(**changes: Any) -> Query:
    options: dict[str, Any] = {"function": FUNCTION, "operator": function_pb2.OPERATOR_JACOBIAN, "inputs": INPUTS}
    return Query(**options | {"outputs": (0,), "wrt": (0,)} | changes)


def test_queries_that_say_the_same_are_one_key() -> None:
    assert {jacobian(): "found"}[jacobian()] == "found"


CHANGES: list[dict[str, Any]] = [
    {"function": build(scaled, "test")},  # another load of the same file
    {"operator": function_pb2.OPERATOR_VJP},
    {"inputs": (spec((4,)), spec())},
    {"inputs": (spec((3,), np.float32), spec())},
    {"outputs": (1,)},
    {"wrt": (0, 1)},
    {"columns": (1,)},
    {"vectors": (0,)},
    {"stack": 1},
    {"mode": differentiation_pb2.MODE_FORWARD},
    {"diagonal": True},
    {"order": 2},
    {"shared": (True, False)},
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: next(iter(change)))
def test_whatever_changes_the_program_changes_the_key(change: dict[str, Any]) -> None:
    assert jacobian(**change) != jacobian()


def test_one_vector_is_not_a_stack_of_one() -> None:
    assert jacobian(vectors=(0,), stack=None) != jacobian(vectors=(0,), stack=1)


def test_nothing_is_shared_unless_told() -> None:
    assert jacobian(vectors=(1,)).shared == (False, False, False)


def test_outputs_are_known_without_running() -> None:
    assert jacobian().output_specs == (spec((3,)), spec())  # by name: all, sum


@pytest.mark.parametrize(("stack", "axes"), [(None, ()), (5, (5,))])
def test_cotangents_are_shaped_like_outputs_and_tangents_like_inputs(stack: int | None, axes: tuple[int, ...]) -> None:
    vjp = jacobian(operator=function_pb2.OPERATOR_VJP, outputs=(1,), vectors=(1,), stack=stack)
    jvp = jacobian(operator=function_pb2.OPERATOR_JVP, outputs=(1,), vectors=(0,), stack=stack)

    assert vjp.arrays == (*INPUTS, spec(axes))
    assert jvp.arrays == (*INPUTS, spec((*axes, 3)))


def test_what_is_shared_is_not_counted_for_each_point() -> None:
    assert jacobian().argument_bytes == 8 * (3 + 1)
    assert jacobian(shared=(False, True)).argument_bytes == 8 * 3


@pytest.mark.parametrize(("dtype", "wide"), [(np.float64, True), (np.float32, False)])
def test_a_program_is_as_wide_as_its_inputs(dtype: Any, wide: bool) -> None:
    assert jacobian(inputs=(spec((3,), dtype), spec((), dtype))).wide is wide


def test_a_query_reads_as_what_was_asked() -> None:
    assert str(jacobian()) == "jacobian of scaled@1(float64[3], float64[])"
