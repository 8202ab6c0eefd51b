"""Finite differences through both clients, pipelines and the wire: the derivatives with estimates of their errors."""

import asyncio
from typing import Any

import numpy as np
import pytest

import nablad
from nablad.errors import InvalidArgument, InvalidOption
from nablad.tensors import to_tensor
from nablad.v1 import differentiation_pb2 as pb
from nablad.v1.tensor_pb2 import NamedTensor
from nablad_server.derivatives.patterns import Patterns
from nablad_server.functions.registration import build
from nablad_server.functions.registry import Registry
from nablad_server.functions.sources.builtin.optimisation import rosenbrock
from nablad_server.serving.decode import Decoder

X = np.array([0.5, -1.25, 2.0])
POINTS = np.stack([X, -X, 2 * X, 0 * X])
V = np.array([1.0, -2.0, 0.25])
CALLS: dict[str, tuple[str, str, tuple[Any, ...]]] = {
    "gradient": ("gradient", "rosenbrock", (POINTS,)),
    "jacobian": ("jacobian", "softmax", (POINTS,)),
    "hessian": ("hessian", "rosenbrock", (POINTS,)),
    "hvp": ("hvp", "rosenbrock", (POINTS, np.tile(V, (4, 1)))),
    "jvp": ("jvp", "softmax", (POINTS, np.tile(V, (4, 1)))),
}


def assert_agrees(name: str, exact: Any, found: Any) -> None:
    """The finite differences are as near to the exact result as they say, and that is near."""
    np.testing.assert_allclose(found.value, exact.value, rtol=1e-14)
    wanted, given = getattr(exact, name), getattr(found, name)
    assert np.shape(found.errors) == np.shape(given)
    scale = np.max(np.abs(wanted))
    assert np.all(np.abs(given - wanted) <= found.errors + 1e-13 * scale)
    assert np.max(found.errors) < 1e-3 * scale
    assert exact.errors is None
    assert not found.non_finite


@pytest.mark.parametrize("scheme", ["central", nablad.Differences("ridders", step=0.05)])
@pytest.mark.parametrize("name", CALLS)
def test_agrees_with_automatic_differentiation(
    client: nablad.Client, server_address: str, name: str, scheme: Any
) -> None:
    operator, function, arguments = CALLS[name]
    exact = getattr(client, operator)(function, *arguments, batched=True)

    assert_agrees(name, exact, getattr(client, operator)(function, *arguments, batched=True, differences=scheme))

    async def awaited() -> Any:
        async with nablad.aio.Client(server_address, timeout=120) as twin:
            one = await getattr(twin, operator)(function, *arguments, batched=True, differences=scheme)
            async with twin.pipeline() as pipeline:
                return one, await getattr(pipeline, operator)(function, *arguments, batched=True, differences=scheme)

    for found in asyncio.run(awaited()):
        assert_agrees(name, exact, found)


def test_points_of_a_pipeline_travel_together_and_keep_their_errors(client: nablad.Client) -> None:
    exact = client.gradient("rosenbrock", POINTS, batched=True)

    found = list(client.function("rosenbrock").map("gradient", POINTS, differences="ridders"))

    np.testing.assert_allclose([one.gradient for one in found], exact.gradient, rtol=1e-9, atol=1e-9)
    assert [one.errors.shape for one in found] == [(3,)] * 4
    assert all(np.all(one.errors < 1e-6) for one in found)


def test_arguments_with_names_give_errors_with_names(client: nablad.Client) -> None:
    call: dict[str, Any] = {"x": np.float32(2.0), "y": np.float32(3.0), "differences": "central"}

    gradient = client.gradient("x2y_3xy2", **call)
    hessian = client.hessian("x2y_3xy2", wrt="x", columns="y", **call)

    assert set(gradient.errors) == {"x", "y"}
    assert gradient.errors["x"].dtype == np.float32
    assert abs(gradient.gradient["x"] - 39) <= gradient.errors["x"] < 1
    assert abs(hessian.hessian - 22) <= hessian.errors < 22


@pytest.mark.parametrize(
    ("scheme", "words"),
    [("central", "scheme central, 13 evaluations"), ("forward", "scheme forward, 7 evaluations"),
     ("ridders", "scheme ridders, 61 evaluations")],
)  # fmt: skip
def test_explain_says_which_differences_and_how_many_evaluations(
    client: nablad.Client, scheme: Any, words: str
) -> None:
    found = client.explain("gradient", "rosenbrock", X, differences=scheme)

    assert found.mode == "finite differences"
    assert words in found.reason


@pytest.mark.parametrize(
    ("operator", "options", "field"),
    [
        ("gradient", {"mode": "forward"}, "mode"),
        ("hvp", {"mode": "reverse", "tangent": X}, "mode"),
        ("jacobian", {"sparse": True}, "finite_difference"),
        ("hessian", {"sparse": True}, "finite_difference"),
        ("hessian", {"diagonal": True}, "finite_difference"),
    ],
)
def test_options_that_do_not_go_with_finite_differences(
    client: nablad.Client, operator: str, options: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidOption) as refused:
        getattr(client, operator)("rosenbrock", X, differences="central", **options)
    assert refused.value.field == field


@pytest.mark.parametrize(
    ("differences", "says"),
    [
        ("backward", "expected one of central, forward, ridders"),
        (nablad.Differences(step=-1.0), "expected a positive number"),
        (nablad.Differences(step=float("inf")), "expected a positive number"),
        (nablad.Differences(step=0.0), "expected a positive number"),
    ],
)
def test_clients_refuse_what_is_no_scheme_or_step(client: nablad.Client, differences: Any, says: str) -> None:
    with pytest.raises(InvalidArgument, match=says):
        client.gradient("rosenbrock", X, differences=differences)


UNHEARD_OF: Any = 9


@pytest.mark.parametrize(
    ("asked", "dtype", "field"),
    [
        (pb.FiniteDifference(scheme=UNHEARD_OF), np.float64, "scheme"),
        (pb.FiniteDifference(step_scale=UNHEARD_OF), np.float64, "step_scale"),
        (pb.FiniteDifference(step=-1e-3), np.float64, "step"),
        (pb.FiniteDifference(step=float("nan")), np.float64, "step"),
        (pb.FiniteDifference(step=1e-60), np.float32, "step"),
        (pb.FiniteDifference(step=1e60), np.float32, "step"),
    ],
)
def test_servers_refuse_what_is_no_scheme_or_step(asked: pb.FiniteDifference, dtype: Any, field: str) -> None:
    registry = Registry([build(rosenbrock, "test")])
    decoder = Decoder(registry, Patterns(1 << 30), max_points=100, max_result_bytes=1 << 20)
    inputs = [NamedTensor(name="x", tensor=to_tensor(X.astype(dtype)))]
    with pytest.raises(InvalidOption) as refused:
        decoder.gradient(pb.GradientRequest(function="rosenbrock", inputs=inputs, finite_difference=asked))
    assert refused.value.field == f"finite_difference.{field}"
