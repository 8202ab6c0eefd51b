"""InspectLayers through both clients: what becomes of gradients whose sizes are known at every layer."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nablad
from expectations import Case
from nablad.errors import InvalidBatch, NotDifferentiable, NotScalar, ResultTooLarge, UnknownInput, UnknownOutput
from nablad.tensors import Array
from scenarios import SCENARIOS
from servers import ServerProcess

FUNCTIONS = Path(__file__).with_name("layered_functions.py")
random = np.random.default_rng(11)


@pytest.fixture(scope="module")
def layered() -> Iterator[nablad.Client]:
    with ServerProcess(FUNCTIONS) as process, nablad.Client(process.address, timeout=120) as client:
        yield client
        assert process.errors() == []


def back_through(weights: Array, x: Array) -> tuple[list[Array], list[Array]]:
    """What each layer of `tanh_layers` gives, and the gradient with respect to it: the chain rule, by hand."""
    outputs = []
    for weight in weights:
        x = np.tanh(weight @ x)
        outputs.append(x)
    gradients = [np.ones_like(x)]
    for weight, output in zip(weights[:0:-1], outputs[:0:-1], strict=True):
        gradients.insert(0, weight.T @ (gradients[0] * (1 - output**2)))
    return outputs, gradients


def rms(*arrays: Array) -> float:
    return float(np.sqrt(np.mean(np.square(arrays))))


def test_a_chain_of_sigmoids_has_the_gradients_of_the_chain_rule(client: nablad.Client) -> None:
    found = client.layers("deep_sigmoid", 0.3)

    values = [0.3]
    for _ in range(10):
        values.append(1 / (1 + np.exp(-values[-1])))
    outputs = np.array(values[1:])
    slopes = outputs * (1 - outputs)
    gradients = np.append(np.cumprod(slopes[:0:-1])[::-1], 1.0)
    assert found.function == "deep_sigmoid@1"
    assert found.flow == "vanishing"
    assert [layer.activation for layer in found.layers] == ["sigmoid"] * 10
    assert {layer.location.partition(":")[0] for layer in found.layers} == {"models.py"}
    np.testing.assert_allclose([layer.output_norm for layer in found.layers], outputs, rtol=1e-14)
    np.testing.assert_allclose([layer.gradient_norm for layer in found.layers], gradients, rtol=1e-13)
    np.testing.assert_allclose([layer.ratio for layer in found.layers[:-1]], slopes[1:], rtol=1e-13)
    assert found.layers[-1].ratio == 1
    assert found.ratio == pytest.approx(gradients[0], rel=1e-13)
    assert found.factor_per_layer == pytest.approx(gradients[0] ** (1 / 9), rel=1e-13)
    assert found.inputs == {"x": pytest.approx(float(np.prod(slopes)), rel=1e-13)}
    assert found.reason.startswith("the gradient shrinks from 1 at the last of 10 layers to 1.51e-06 at the first")


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_layers_of_a_network_agree_with_the_chain_rule_by_hand(layered: nablad.Client, dtype: Any) -> None:
    weights, points = random.normal(size=(6, 5, 5)).astype(dtype), random.normal(size=(7, 5)).astype(dtype)
    expected = [back_through(weights, x) for x in points]

    found = layered.layers("tanh_layers", weights, points, batched="x", wrt="x")

    tolerance = 1e-12 if dtype is np.float64 else 1e-4
    for number, layer in enumerate(found.layers):
        outputs, gradients = ([case[part][number] for case in expected] for part in (0, 1))
        assert layer.shape == (5,)
        assert layer.output_norm == pytest.approx(rms(*outputs), rel=tolerance)
        assert layer.gradient_norm == pytest.approx(rms(*gradients), rel=tolerance)
        assert layer.saturated_share == pytest.approx(np.mean(1 - np.square(outputs) < 0.01), abs=1e-6)
    by_x = [weights[0].T @ (gradients[0] * (1 - outputs[0] ** 2)) for outputs, gradients in expected]
    assert found.inputs == {"x": pytest.approx(rms(*by_x), rel=tolerance)}


def test_large_weights_saturate_and_the_gradient_vanishes(layered: nablad.Client) -> None:
    weights = random.normal(size=(20, 16, 16)) * 10

    found = layered.layers("tanh_layers", weights, random.normal(size=16))

    assert found.flow == "vanishing"
    assert found.ratio < 1e-3
    assert len(found.layers) == 20
    assert max(layer.saturated_share for layer in found.layers) > 0.9
    assert "units of layer" in found.reason
    assert "(tanh, layered_functions.py:" in found.reason
    assert set(found.inputs) == {"weights", "x"}


def test_weights_that_stretch_make_it_explode(layered: nablad.Client) -> None:
    weights = np.tile(3 * np.eye(4), (12, 1, 1))

    found = layered.layers("tanh_layers", weights, np.zeros(4))  # where the slope of tanh is 1

    assert found.flow == "exploding"
    assert found.ratio == pytest.approx(3.0**11, rel=1e-12)
    assert found.factor_per_layer == pytest.approx(3, rel=1e-12)
    assert "grows from 1 at the last of 12 layers to 1.77e+05" in found.reason


def test_a_residual_network_is_steady(layered: nablad.Client) -> None:
    found = layered.layers("residual_layers", random.normal(size=(20, 8, 8)) * 0.05, random.normal(size=8))

    assert found.flow == "steady"
    assert 0.1 < found.ratio < 10


def test_turns_of_a_scan_are_layers(layered: nablad.Client) -> None:
    weight, xs = 0.5 * np.eye(3), np.zeros((14, 3))

    found = layered.layers("recurrent", weight, xs)

    assert [layer.gradient_norm for layer in found.layers] == pytest.approx([0.5 ** (13 - k) for k in range(14)])
    assert found.flow == "vanishing"
    assert found.inputs["xs"] == pytest.approx(rms(np.repeat(0.5 ** np.arange(14), 3)))


@pytest.mark.parametrize("alive", [0, 1, 3, 8])
def test_dead_units_are_counted_exactly(layered: nablad.Client, alive: int) -> None:
    bias = np.where(np.arange(8) < alive, 1.0, -1.0)

    (layer,) = (found := layered.layers("rectified", bias, 0.0)).layers

    assert layer.activation == "relu"
    assert layer.saturated_share == 1 - alive / 8
    assert layer.gradient_norm == pytest.approx(2 * np.sqrt(alive / 8))
    assert (found.flow, found.ratio, found.factor_per_layer) == ("steady", 1, 1)
    assert ("% of the units" in found.reason) == (alive < 5)


def test_only_what_the_output_comes_from_counts(layered: nablad.Client) -> None:
    for output in ("tanh", "sigmoid"):
        found = layered.layers("two_outputs", np.ones(3), output=output)
        assert [layer.activation for layer in found.layers] == [output]


def test_an_infinite_gradient_is_told(layered: nablad.Client) -> None:
    found = layered.layers("root_of_tanh", 0.0)

    assert found.flow == "non_finite"
    assert found.layers[0].gradient_norm == np.inf
    assert "NaN or infinite at 1 of 1 layers" in found.reason


def test_a_gradient_of_zero_is_told(client: nablad.Client) -> None:
    hidden, output = {"w": np.ones((2, 3)), "b": np.ones(3)}, {"w": np.ones((3, 2)), "b": np.zeros(2)}

    found = client.layers(
        "mlp_loss", {"hidden": hidden, "output": output}, np.zeros((4, 2)), [0, 1, 0, 1], wrt="params"
    )

    assert found.layers[0].gradient_norm == 0
    assert set(found.inputs) == {"params.hidden.w", "params.hidden.b", "params.output.w", "params.output.b"}


def test_what_is_computed_is_small_and_remembered(layered: nablad.Client) -> None:
    weights = random.normal(size=(3, 4, 4))
    first = layered.layers("tanh_layers", weights, np.ones(4))
    second = layered.layers("tanh_layers", weights, np.ones(4))

    assert first == second


@pytest.mark.parametrize(
    ("function", "arguments", "error", "says"),
    [
        ("doubling_chain", {"x": 1.0}, NotDifferentiable, "comes from no activation that is known: celu, elu"),
        ("rosenbrock", {"x": [1.0, 2.0]}, NotDifferentiable, "comes from no activation"),
        ("opaque", {"x": [1.0, 2.0]}, NotDifferentiable, "is a black box"),
        ("softmax", {"x": [1.0, 2.0]}, NotScalar, "not a scalar"),
        ("two_outputs", {"x": [1.0]}, UnknownOutput, "name one of"),
        ("two_outputs", {"x": [1.0], "output": "tanh", "wrt": "y"}, UnknownInput, "has no input 'y'"),
        ("long_chain", {"xs": np.zeros(513)}, ResultTooLarge, "computes 513 activations"),
        ("rectified", {"bias": np.zeros((2, 3)), "x": np.zeros(3), "batched": True}, InvalidBatch, "must agree"),
    ],
)
def test_what_cannot_be_asked(
    layered: nablad.Client, function: str, arguments: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        layered.layers(function, **arguments)


def test_every_function_of_the_catalogue_has_layers_or_is_told_why_not(client: nablad.Client) -> None:
    found = {}
    for scenario in SCENARIOS:
        arguments = Case(scenario, "float64").arguments(scenario.points)
        try:
            report = client.layers(scenario.function, **arguments, batched=True)
        except (NotDifferentiable, NotScalar, UnknownOutput):
            continue
        found[scenario.function] = {layer.activation for layer in report.layers}
    assert {kind for kinds in found.values() for kind in kinds} >= {"sigmoid", "tanh", "relu", "gelu", "softplus"}
    assert found["mlp_loss"] == {"tanh"}
    assert found["leaky_relu"] == {"leaky_relu"}


def test_the_asyncio_client_and_handles_are_told_the_same(client: nablad.Client, server_address: str) -> None:
    async def ask() -> nablad.LayerReport:
        async with nablad.aio.Client(server_address) as twin:
            return await twin.function("deep_sigmoid").layers(0.3)

    assert asyncio.run(ask()) == client.function("deep_sigmoid").layers(0.3)
