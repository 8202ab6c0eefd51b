"""Explain: what the server says of a call is what the call is like."""

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

import nablad
from nablad.errors import InvalidOption, NotDifferentiable, NotScalar, ResourceExhausted, UnknownInput
from nablad.v1 import catalog_pb2 as pb
from nablad.v1 import catalog_pb2_grpc
from nablad_server.serving.catalog import COMPUTING, WAITING_FOR_COMPUTING
from servers import ServerProcess

X = np.linspace(-1, 1, 6)

SLOW = """
import pathlib
import jax.numpy as jnp
from jaxtyping import Array, Float

def slow(x: Float[Array, "n"]) -> Float[Array, ""]:
    gate = pathlib.Path(__file__).parent / "gate"
    if x.shape == (2,) and gate.exists():  # not when it is registered
        gate.read_text()
    return jnp.sum(x**2)
"""


@pytest.mark.parametrize(
    ("operator", "function", "arguments", "expected"),
    [
        ("evaluate", "rosenbrock", ((X,), {}), ("none", "the function itself")),
        ("gradient", "rosenbrock", ((X,), {}), ("reverse", "however many inputs")),
        ("gradient", "rosenbrock", ((X,), {"mode": "forward"}), ("forward", "the request asks for it")),
        ("jacobian", "softmax", ((X,), {}), ("forward", "6 elements of inputs are no more than 6 of outputs")),
        ("jacobian", "rosenbrock", ((X,), {}), ("reverse", "6 elements of inputs are more than 1 of outputs")),
        ("hessian", "rosenbrock", ((X,), {}), ("forward over reverse", "a product for each of 6 elements")),
        ("hessian", "rosenbrock", ((X,), {"mode": "reverse"}), ("reverse over reverse", "the request asks for it")),
        ("hvp", "rosenbrock", ((X, X), {}), ("forward over reverse", "the gradient in reverse")),
        ("hvp", "rosenbrock", ((X, [X, X]), {"stacked": True}), ("forward over reverse", "each of 2 tangents")),
        ("laplacian", "rosenbrock", ((X,), {"samples": 9}), ("forward over reverse", "9 products with random vectors")),
        ("jvp", "softmax", ((X, X), {}), ("forward", "one pass along each tangent")),
        ("vjp", "softmax", ((X, X), {}), ("reverse", "one pass back from each cotangent")),
        ("derivative", "sin", ((0.5,), {"order": 2}), ("forward", "nested")),
        ("derivative", "sin", ((0.5,), {"order": 5}), ("Taylor", "all orders at once")),
        ("directional_derivative", "rosenbrock", ((X, X), {}), ("reverse", "one scalar")),
    ],
)
def test_the_mode_and_the_reason(
    client: nablad.Client, operator: str, function: str, arguments: tuple[Any, Any], expected: tuple[str, str]
) -> None:
    (positional, options), (mode, because) = arguments, expected

    found = client.explain(operator, function, *positional, **options)

    assert (found.function, found.operator, found.mode) == (f"{function}@1", operator, mode)
    assert because in found.reason


def test_a_gradient_costs_a_few_evaluations_and_the_numbers_are_those_of_the_matrices(client: nablad.Client) -> None:
    n = 200
    matrix, x = np.ones((n, n)), np.ones(n)

    found = client.explain("gradient", "quadratic_form", A=matrix, x=x, wrt="x")

    assert found.function_cost.flops == pytest.approx(2 * n * n, rel=0.05)
    assert 1.9 < found.flops_ratio < 3.1
    assert found.seconds_ratio > 0
    assert found.cost.accessed_bytes > matrix.nbytes
    assert found.result_bytes == 8 * (1 + n + 2)  # the value, the gradient and its norms
    assert found.cost.memory_bytes >= matrix.nbytes + x.nbytes + found.result_bytes


def test_the_programs_that_are_ready_are_listed(client: nablad.Client) -> None:
    x = np.linspace(0, 1, 17)
    client.gradient("rosenbrock", np.stack([x, x, x]), batched=True)

    found = client.explain("gradient", "rosenbrock", x)

    assert [program.points for program in found.programs] == [1, 4]
    assert [program.strategy for program in found.programs] == ["single", "vmap"]
    assert all(program.compile_seconds > 0 for program in found.programs)


@pytest.mark.parametrize(
    ("operator", "function", "arguments", "error"),
    [
        ("gradient", "softmax", {"x": X}, NotScalar),
        ("gradient", "rosenbrock", {"x": X, "y": 1.0}, UnknownInput),
        ("gradient", "masked_sum_of_squares", {"x": X, "mask": X > 0, "wrt": "mask"}, NotDifferentiable),
        ("curl", "rosenbrock", {"x": X}, InvalidOption),
    ],
)
def test_what_cannot_be_asked_cannot_be_explained(
    client: nablad.Client, operator: str, function: str, arguments: Any, error: type[Exception]
) -> None:
    with pytest.raises(error):
        client.explain(operator, function, **arguments)


def test_nothing_to_explain_is_refused(server_address: str) -> None:
    with grpc.insecure_channel(server_address) as channel, pytest.raises(grpc.RpcError) as refused:
        catalog_pb2_grpc.CatalogServiceStub(channel).Explain(pb.ExplainRequest())

    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_a_handle_and_the_asyncio_client_explain_the_same(client: nablad.Client, server_address: str) -> None:
    async def ask() -> nablad.Explanation:
        async with nablad.aio.Client(server_address) as twin:
            return await twin.function("rosenbrock").explain("hvp", X, X)

    found, expected = asyncio.run(ask()), client.function("rosenbrock").explain("hvp", X, X)

    assert (found.mode, found.reason, found.cost.flops) == (expected.mode, expected.reason, expected.cost.flops)


def test_those_who_wait_leave_threads_to_others(tmp_path: Path) -> None:
    """A compilation that takes long holds a few callers, and neither the health check nor the catalogue."""
    (tmp_path / "slow.py").write_text(SLOW)
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    with ServerProcess(tmp_path / "slow.py") as process, nablad.Client(process.address, timeout=120) as client:
        callers = COMPUTING + WAITING_FOR_COMPUTING + 10
        with ThreadPoolExecutor(callers) as pool:
            asked = [pool.submit(client.explain, "gradient", "slow", np.ones(2)) for _ in range(callers)]
            ended = as_completed(asked)
            assert isinstance(next(ended).exception(), ResourceExhausted), "there is no room for all of them"
            assert client.healthy()
            assert len(list(client.functions())) > 1
            assert not all(future.done() for future in asked)
            with gate.open("w"):
                gate.unlink()
            refused = [future.exception() for future in asked]
        assert {type(error) for error in refused} == {type(None), ResourceExhausted}
