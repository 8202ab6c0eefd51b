"""What comes with every gradient, norms and where it is not finite, and clipping; through all that a call can take."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import nablad
from nablad import NonFinite, errors
from nablad.tensors import to_array, to_tensor
from nablad.v1 import differentiation_pb2 as pb
from nablad.v1 import tensor_pb2
from nablad.v1.differentiation_pb2_grpc import DifferentiationServiceStub
from servers import ServerProcess

FUNCTIONS = Path(__file__).with_name("rooted_functions.py")
INF, NAN = np.inf, np.nan
POINTS = np.random.default_rng(3).normal(size=(40, 4))


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Where a server with the catalogue and this test's functions listens."""
    with ServerProcess(FUNCTIONS) as process:
        yield process.address
        assert process.errors() == []


@pytest.fixture(scope="module")
def rooted(address: str) -> Iterator[nablad.Client]:
    with nablad.Client(address, timeout=120) as client:
        yield client


def by_twin(address: str, *args: Any, **options: Any) -> Any:
    async def call() -> Any:
        async with nablad.aio.Client(address, timeout=120) as twin:
            return await twin.gradient(*args, **options)

    return asyncio.run(call())


# Norms


def test_one_point_has_numbers_and_many_have_arrays(client: nablad.Client) -> None:
    alone = client.gradient("sum_of_squares", np.array([1.5, 2.0]))
    assert (alone.norm, alone.norms) == (5.0, 5.0)
    assert isinstance(alone.norm, float)

    many = client.gradient("sum_of_squares", POINTS, batched=True)
    assert_allclose(many.norm, 2 * np.linalg.norm(POINTS, axis=1), rtol=1e-15)
    assert_array_equal(many.norms, many.norm)


def test_several_inputs_have_norms_by_name(client: nablad.Client) -> None:
    found = client.gradient("x2y_3xy2", x=1.0, y=2.0)  # ∇ = (2xy + 3y², x² + 6xy)
    assert found.norms == {"x": 16.0, "y": 13.0}
    assert found.norm == pytest.approx(np.hypot(16, 13), rel=1e-15)
    assert client.gradient("x2y_3xy2", x=1.0, y=2.0, wrt="y").norms == 13.0
    assert client.gradient("x2y_3xy2", x=1.0, y=2.0, wrt=["y", "x"]).norms == {"y": 13.0, "x": 16.0}


def test_structures_have_norms_in_their_form(client: nablad.Client) -> None:
    random = np.random.default_rng(0)
    layer = lambda i, o: {"w": random.normal(size=(i, o)), "b": random.normal(size=o)}
    params = {"hidden": layer(2, 3), "output": layer(3, 2)}
    call = ("mlp_loss", params, random.normal(size=(5, 2)), np.array([0, 1, 1, 0, 1]))
    found = client.gradient(*call, wrt="params")
    clipped = client.gradient(*call, wrt="params", clip_norm=0.125)

    squares = 0.0
    for name in ("hidden", "output"):
        for part in ("w", "b"):
            gradient = found.gradient[name][part]
            assert found.norms[name][part] == pytest.approx(np.linalg.norm(np.ravel(gradient)), rel=1e-14)
            assert_allclose(clipped.gradient[name][part], gradient * (0.125 / found.norm), rtol=1e-14)
            squares += np.sum(gradient**2)
    assert found.norm == pytest.approx(np.sqrt(squares), rel=1e-14)
    assert clipped.norms == found.norms


@pytest.mark.parametrize("size", [1e200, 1e-200])
def test_norms_of_very_large_and_very_small_gradients(rooted: nablad.Client, size: float) -> None:
    slopes = np.array([3.0, 0.0, -4.0]) * size
    found = rooted.gradient("ramp", np.ones(3), slopes, wrt="x", clip_norm=1e-100)
    assert found.norm == pytest.approx(5 * size, rel=1e-15)
    assert_allclose(np.max(np.abs(found.gradient)) * 1e100, min(0.8, 4 * size * 1e100), rtol=1e-14)
    assert not found.non_finite


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_norms_of_narrow_gradients_are_of_single_precision(rooted: nablad.Client, dtype: Any) -> None:
    slopes = np.full(4, 65504, dtype)
    found = rooted.gradient("ramp", np.zeros((2, 4), dtype), np.stack([slopes, slopes]), wrt="x", batched=True)
    assert found.gradient.dtype == dtype
    assert found.norm.dtype == np.float32
    assert_array_equal(found.norm, 131008)
    assert not found.non_finite


def test_a_norm_too_large_for_its_dtype_is_infinite_and_no_element_is_to_blame(rooted: nablad.Client) -> None:
    found = rooted.gradient("ramp", np.zeros(2), np.full(2, np.finfo(np.float64).max), wrt="x")
    assert found.norm == INF
    assert found.non_finite
    assert found.first_non_finite is None


# The first element that is not finite


CASES: list[tuple[float, list[float], NonFinite | None]] = [
    (1.0, [1.0, 4.0], None),
    (1.0, [1.0, -4.0], NonFinite("values[0]", "value", ())),
    (1.0, [4.0, 0.0], NonFinite("gradients[1]", "x", (1,))),
    (0.0, [0.0, 4.0], NonFinite("gradients[1]", "x", (0,))),
    (INF, [1.0, 1.0], NonFinite("values[0]", "value", ())),
]


@pytest.mark.parametrize(("scale", "x", "first"), CASES)
def test_the_first_element_of_one_point(
    rooted: nablad.Client, address: str, scale: float, x: list[float], first: NonFinite | None
) -> None:
    for found in (rooted.gradient("roots", scale, x), by_twin(address, "roots", scale, x)):
        assert found.first_non_finite == first
        assert found.non_finite == (first is not None)


def test_the_first_element_of_many_points_says_which(rooted: nablad.Client) -> None:
    x = np.ones((5, 2))
    x[3, 1] = NAN
    found = rooted.gradient("roots", np.ones(5), x, batched=True)
    assert found.first_non_finite == NonFinite("values[0]", "value", (3,))

    x[3, 1], x[2, 1] = 1.0, 0.0
    assert rooted.gradient("roots", np.ones(5), x, batched=True).first_non_finite == NonFinite(
        "gradients[1]", "x", (2, 1)
    )
    assert rooted.gradient("roots", np.ones(5), x, batched=True, wrt="x").first_non_finite == NonFinite(
        "gradients[0]", "x", (2, 1)
    )


def test_points_computed_in_pieces_are_counted_together(rooted: nablad.Client) -> None:
    x = np.ones((1500, 2))  # more than one execution takes
    x[1234, 0] = -1.0
    found = rooted.gradient("roots", np.ones(1500), x, batched=True)
    assert found.first_non_finite == NonFinite("values[0]", "value", (1234,))


# Clipping


def clipped(gradient: Any, bound: float) -> Any:
    """Rows scaled to the bound where they are longer, by NumPy."""
    norms = np.linalg.norm(gradient, axis=-1, keepdims=True)
    return gradient * np.minimum(1, bound / norms)


def test_each_point_is_clipped_for_itself(client: nablad.Client, server_address: str) -> None:
    found = client.gradient("sum_of_squares", POINTS, batched=True, clip_norm=3.0)
    assert_allclose(found.gradient, clipped(2 * POINTS, 3.0), rtol=1e-14)
    assert_allclose(found.norm, 2 * np.linalg.norm(POINTS, axis=1), rtol=1e-15)
    values = by_twin(server_address, "sum_of_squares", POINTS, batched=True, clip_value=0.5)
    assert_array_equal(values.gradient, np.clip(2 * POINTS, -0.5, 0.5))


def test_several_inputs_are_scaled_by_one_factor(client: nablad.Client) -> None:
    found = client.gradient("x2y_3xy2", x=1.0, y=2.0, clip_norm=1.0)
    length = np.hypot(16, 13)
    assert_allclose([found.gradient["x"], found.gradient["y"]], [16 / length, 13 / length], rtol=1e-15)
    handle = client.function("x2y_3xy2").gradient(x=1.0, y=2.0, clip_value=14.0)
    assert (handle.gradient["x"], handle.gradient["y"]) == (14.0, 13.0)


@pytest.mark.parametrize("option", ["clip_norm", "clip_value"])
def test_an_infinite_bound_changes_nothing(client: nablad.Client, option: str) -> None:
    bound: dict[str, Any] = {option: INF}
    assert_array_equal(
        client.gradient("sum_of_squares", POINTS, batched=True, **bound).gradient,
        client.gradient("sum_of_squares", POINTS, batched=True).gradient,
    )


def test_what_is_not_finite_is_found_in_the_clipped_gradient(rooted: nablad.Client) -> None:
    found = rooted.gradient("roots", 1.0, [4.0, 0.0], clip_value=1.0, wrt="x")
    assert found.gradient.tolist() == [0.25, 1.0]
    assert (found.norm, found.first_non_finite) == (INF, None)
    scaled = rooted.gradient("roots", 1.0, [4.0, 0.0], clip_norm=1.0, wrt="x")
    assert_array_equal(scaled.gradient, [0, NAN])
    assert scaled.first_non_finite == NonFinite("gradients[0]", "x", (1,))


def test_finite_differences_are_clipped_and_their_errors_are_not(client: nablad.Client) -> None:
    x = np.array([3.0, -4.0])
    whole = client.gradient("sum_of_squares", x, differences="ridders")
    found = client.gradient("sum_of_squares", x, differences="ridders", clip_norm=1.0)
    assert_allclose(found.gradient, [0.6, -0.8], rtol=1e-9)
    assert_array_equal(found.errors, whole.errors)
    assert found.norm == whole.norm == pytest.approx(10, rel=1e-9)


def test_all_bounds_share_a_program(rooted: nablad.Client) -> None:
    def programs(**options: Any) -> int:
        return len(rooted.explain("gradient", "ramp", [1.0, 2.0, 3.0], np.ones(3), **options).programs)

    assert programs(clip_norm=1.0) == 1
    compiled = rooted.gradient("ramp", [1.0, 2.0, 3.0], np.ones(3), clip_norm=1.0)
    again = [rooted.gradient("ramp", [1.0, 2.0, 3.0], np.ones(3), clip_norm=bound) for bound in (0.5, 2.0, 1e9, INF)]
    assert compiled.execution.compile_seconds == 0
    assert [found.execution.compile_seconds for found in again] == [0] * 4
    assert programs(clip_norm=7.0) == 1


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"clip_norm": 1.0, "clip_value": 1.0}, "give one of them"),
        ({"clip_norm": 0.0}, "clip_norm is 0.0; expected a positive number"),
        ({"clip_value": -1.0}, "clip_value is -1.0"),
        ({"clip_norm": NAN}, "clip_norm is nan"),
    ],
)
def test_clients_refuse_what_is_no_bound(
    client: nablad.Client, server_address: str, options: dict[str, Any], says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        client.gradient("sum_of_squares", [1.0], **options)
    with pytest.raises(ValueError, match=says):
        by_twin(server_address, "sum_of_squares", [1.0], **options)
    with client.pipeline() as pipeline, pytest.raises(ValueError, match=says):
        pipeline.gradient("sum_of_squares", [1.0], **options).result()


@pytest.mark.parametrize(
    ("clipping", "dtype", "field"),
    [
        (pb.Clipping(), np.float64, "clipping"),
        (pb.Clipping(global_norm=0.0), np.float64, "clipping.global_norm"),
        (pb.Clipping(global_norm=-1.0), np.float64, "clipping.global_norm"),
        (pb.Clipping(value=NAN), np.float64, "clipping.value"),
        (pb.Clipping(value=-INF), np.float64, "clipping.value"),
        (pb.Clipping(value=1e-60), np.float32, "clipping.value"),
    ],
)
def test_the_server_refuses_what_is_no_bound(
    server_address: str, clipping: pb.Clipping, dtype: Any, field: str
) -> None:
    inputs = [tensor_pb2.NamedTensor(name="x", tensor=to_tensor(np.ones(2, dtype)))]
    request = pb.GradientRequest(function="sum_of_squares", inputs=inputs, clipping=clipping)
    with grpc.insecure_channel(server_address) as channel, pytest.raises(grpc.RpcError) as refused:
        DifferentiationServiceStub(channel).Gradient(request)
    error = errors.from_rpc_error(refused.value)
    assert isinstance(error, errors.InvalidOption)
    assert error.field == field


def test_a_bound_above_all_numbers_of_the_precision_bounds_nothing(server_address: str) -> None:
    inputs = [tensor_pb2.NamedTensor(name="x", tensor=to_tensor(np.full(2, 1e30, np.float32)))]
    request = pb.GradientRequest(function="sum_of_squares", inputs=inputs, clipping=pb.Clipping(value=1e60))
    with grpc.insecure_channel(server_address) as channel:
        response = DifferentiationServiceStub(channel).Gradient(request)
    assert_array_equal(to_array(response.gradients[0].tensor), np.full(2, 2e30, np.float32))
    assert response.norms.name == "norms"
    assert to_array(response.norms.tensor).shape == (2,)


# Pipelines and map


Rows = list[tuple[Any, ...]]


def by_pipeline(address: str, function: str, rows: Rows, **options: Any) -> list[Any]:
    with nablad.Client(address, timeout=120) as client, client.pipeline() as pipeline:
        futures = [pipeline.gradient(function, *row, **options) for row in rows]
        return [future.result() for future in futures]


def by_aio_pipeline(address: str, function: str, rows: Rows, **options: Any) -> list[Any]:
    async def all_of() -> list[Any]:
        async with nablad.aio.Client(address, timeout=120) as twin, twin.pipeline() as pipeline:
            return list(await asyncio.gather(*[pipeline.gradient(function, *row, **options) for row in rows]))

    return asyncio.run(all_of())


def by_map(address: str, function: str, rows: Rows, **options: Any) -> list[Any]:
    with nablad.Client(address, timeout=120) as client:
        return list(client.map("gradient", function, *zip(*rows, strict=True), **options))


WAYS = pytest.mark.parametrize("way", [by_pipeline, by_aio_pipeline, by_map])
Way = Callable[..., list[Any]]


@WAYS
def test_points_that_travel_together_have_norms_and_bounds_of_their_own(server_address: str, way: Way) -> None:
    found = way(server_address, "sum_of_squares", [(x,) for x in POINTS], clip_norm=3.0)
    assert_allclose([one.gradient for one in found], clipped(2 * POINTS, 3.0), rtol=1e-14)
    assert_allclose([one.norm for one in found], 2 * np.linalg.norm(POINTS, axis=1), rtol=1e-15)
    assert {type(one.norm) for one in found} == {type(one.norms) for one in found} == {float}
    assert {one.first_non_finite for one in found} == {None}


@WAYS
def test_points_that_travel_together_say_each_where_they_are_not_finite(
    rooted: nablad.Client, address: str, way: Way
) -> None:
    rows = [(np.float64(scale), np.array(x)) for scale, x, _ in CASES] * 3
    found = way(address, "roots", rows)
    assert [one.first_non_finite for one in found] == [first for *_, first in CASES] * 3
    assert [one.non_finite for one in found] == [first is not None for *_, first in CASES] * 3
    for one, (scale, x) in zip(found, rows, strict=True):
        alone = rooted.gradient("roots", scale, x)
        assert one.norms.keys() == {"scale", "x"}
        assert_allclose([one.norm, *one.norms.values()], [alone.norm, *alone.norms.values()], rtol=1e-15)
