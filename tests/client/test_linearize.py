"""Linearizations of both clients: against the real server, and against one that misbehaves when told to."""

import asyncio
import sys
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import pytest

import nablad
from client.linearize_server import LinearizeServer
from nablad import aio, errors
from nablad._linear import MAX_PLANS

X = np.array([1.0, 2.0])
HESSIAN = np.array([[402.0, -400.0], [-400.0, 200.0]])
GRADIENT = np.array([-400.0, 200.0])


@pytest.fixture
def puppet() -> Iterator[LinearizeServer]:
    with LinearizeServer() as server:
        yield server


def test_products_are_those_of_the_operators(client: nablad.Client) -> None:
    with client.linearize("rosenbrock", X) as at:
        assert (at.value, at.non_finite, at.idle_seconds) == (100.0, False, 300.0)
        assert at.execution.function == "rosenbrock@1"
        assert at.hvp([1.0, 0.0]).tolist() == [402.0, -400.0]
        assert at.hvp(np.eye(2), stacked=True).tolist() == HESSIAN.tolist()
        assert at.jvp(np.array([1.0, 1.0])) == -200.0
        assert at.jvp(np.eye(2), stacked=True).tolist() == GRADIENT.tolist()
        assert at.vjp(2.0).tolist() == (2 * GRADIENT).tolist()
        assert at.vjp([2.0, -1.0], stacked=True).tolist() == [[-800.0, 400.0], [400.0, -200.0]]
        assert at.hvp({"x": [0.0, 1.0]}).tolist() == [-400.0, 200.0]
        assert at.hvp(np.array([1.0, 0.0], np.float32)).dtype == np.float64  # that of the input


def test_the_handle_of_a_function_has_it_too(client: nablad.Client) -> None:
    with client.function("rosenbrock").linearize(X) as at:
        assert at.vjp(1.0).tolist() == GRADIENT.tolist()


def test_open_and_close_do_what_the_block_does(client: nablad.Client) -> None:
    at = client.linearize("rosenbrock", X).open()
    assert at.jvp([1.0, 1.0]) == -200.0
    with pytest.raises(RuntimeError, match="open already"):
        at.open()
    at.close()
    at.close()
    with pytest.raises(RuntimeError, match="not open"):
        at.jvp([1.0, 1.0])
    with pytest.raises(RuntimeError, match="not open"):
        at.as_linear_operator()
    with pytest.raises(RuntimeError, match="not open"):
        client.linearize("rosenbrock", X).hvp(X)


PARAMS = {
    "hidden": {"w": np.linspace(-1, 1, 6).reshape(2, 3), "b": np.zeros(3)},
    "output": {"w": np.linspace(1, -1, 6).reshape(3, 2), "b": np.ones(2)},
}
LEAVES = [("hidden", "b"), ("hidden", "w"), ("output", "b"), ("output", "w")]
"""In the order of the function's description."""
BATCH = np.linspace(0, 1, 8).reshape(4, 2), np.array([0, 1, 1, 0])


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_structures_and_carried_inputs(client: nablad.Client, dtype: Any) -> None:
    random = np.random.default_rng(0)
    x = BATCH[0].astype(dtype)
    params = {name: {key: leaf.astype(dtype) for key, leaf in layer.items()} for name, layer in PARAMS.items()}
    tangent = {
        name: {key: random.normal(size=leaf.shape).astype(dtype) for key, leaf in layer.items()}
        for name, layer in params.items()
    }
    expected = client.hvp("mlp_loss", params, x, BATCH[1], tangent={"params": tangent})
    first = client.gradient("mlp_loss", params, x, BATCH[1], wrt="params").gradient

    with client.linearize("mlp_loss", params, x, BATCH[1], wrt="params") as at:
        bare, by_name = at.hvp(tangent), at.hvp({"params": tangent})
        pulled = at.vjp(dtype(1.0))
        operator = at.as_linear_operator()
        flat = operator @ np.concatenate([tangent[name][key].ravel() for name, key in LEAVES])

    assert at.value == expected.value
    tolerance = 64 * np.finfo(dtype).eps
    start = 0
    for name, key in LEAVES:
        wanted = expected.hvp["params"][name][key]
        assert wanted.dtype == dtype
        for found in (bare[name][key], by_name[name][key], flat[start : start + wanted.size].reshape(wanted.shape)):
            np.testing.assert_allclose(found, wanted, rtol=0, atol=tolerance)
        np.testing.assert_allclose(pulled[name][key], first[name][key], rtol=0, atol=tolerance)
        start += wanted.size
    assert operator.shape == (start, start)
    with client.linearize("mlp_loss", params, x, BATCH[1], wrt=["params.hidden.b", "x"]) as at:
        alone = at.hvp({"params.hidden.b": tangent["hidden"]["b"]})
        assert list(alone) == ["params.hidden.b", "x"]
        assert alone["x"].shape == x.shape
    with client.linearize("mlp_loss", params, x, BATCH[1], wrt="params.hidden.b") as at:
        only = at.hvp(tangent["hidden"]["b"])
    np.testing.assert_allclose(only, alone["params.hidden.b"], rtol=0, atol=tolerance)


def test_many_are_under_way_at_once_and_from_many_threads(client: nablad.Client) -> None:
    vectors = np.random.default_rng(0).integers(-9, 9, size=(2000, 2)).astype(float)
    with client.linearize("rosenbrock", X) as at:
        futures = [at.submit("hvp", vector) for vector in vectors]
        with ThreadPoolExecutor(8) as pool:
            direct = list(pool.map(at.hvp, vectors[:400]))
        assert np.array_equal([future.result() for future in futures], vectors @ HESSIAN)
        assert np.array_equal(direct, vectors[:400] @ HESSIAN)
        last = [at.submit("hvp", vector) for vector in vectors]
    assert all(future.done() for future in last)  # leaving the block waits for them
    assert np.array_equal([future.result() for future in last], vectors @ HESSIAN)


def test_a_wrong_product_is_its_own_error(client: nablad.Client) -> None:
    with client.linearize("rosenbrock", X) as at:
        for wrong, kind in (
            (at.submit("hvp", np.ones(3)), errors.WrongShape),
            (at.submit("hvp", "abc"), errors.WrongDtype),
            (at.submit("gradient", X), errors.InvalidOption),
            (at.submit("jvp", {"x": X, "y": X}), errors.NabladError),
        ):
            with pytest.raises(kind):
                wrong.result()
        with pytest.raises(errors.InvalidOption, match="'hessian' or 'jacobian'"):
            at.as_linear_operator("gradient")
        assert at.hvp([1.0, 0.0]).tolist() == [402.0, -400.0]


def test_a_wrong_point_is_told_at_once(client: nablad.Client) -> None:
    with pytest.raises(errors.FunctionNotFound), client.linearize("nope", X):
        pass
    with pytest.raises(errors.WrongShape), client.linearize("rosenbrock", np.ones((2, 2))):
        pass
    with pytest.raises(errors.UnknownInput), client.linearize("rosenbrock", X, wrt="y"):
        pass
    with pytest.raises(errors.MissingInput), client.linearize("rosenbrock"):
        pass


def test_more_shapes_than_are_remembered(client: nablad.Client) -> None:
    with client.linearize("rosenbrock", X) as at:
        for size in range(3, MAX_PLANS + 10):
            with pytest.raises(errors.WrongShape):
                at.jvp(np.ones(size))
        assert at.jvp(np.ones(2)) == -200.0


def test_without_scipy_the_operator_says_what_is_missing(
    client: nablad.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "scipy.sparse.linalg", None)
    with (
        client.linearize("rosenbrock", X) as at,
        pytest.raises(ImportError, match="as_linear_operator needs SciPy: pip install scipy"),
    ):
        at.as_linear_operator()


# What follows happens to both clients alike.


class Synchronous:
    """The synchronous client's linearization, to be awaited like the other."""

    def __init__(self, at: nablad.Linearization) -> None:
        self._at = at

    def submit(self, *args: Any, **options: Any) -> Awaitable[Any]:
        return asyncio.wrap_future(self._at.submit(*args, **options))


Scene = Callable[[Any], Awaitable[None]]


def play(puppet: LinearizeServer, kind: str, scene: Scene, **options: Any) -> None:
    """Plays a scene at a point of bowl; whatever an event loop has to complain about fails the test."""
    complaints: list[Any] = []

    async def run() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        if kind == "aio":
            async with aio.Client(puppet.address, **options) as client, client.linearize("bowl", X) as at:
                assert at.value == 5.0
                await asyncio.wait_for(scene(at), 60)
        else:
            with nablad.Client(puppet.address, **options) as plain, plain.linearize("bowl", X) as here:
                assert here.value == 5.0
                await asyncio.wait_for(scene(Synchronous(here)), 60)

    asyncio.run(run())
    # grpc.aio may still hand on an event of the loop of an earlier test, which is closed: that is no complaint of ours.
    assert [one for one in complaints if "PollerCompletionQueue" not in one["message"]] == []


BOTH = pytest.mark.parametrize("kind", ["sync", "aio"])


async def check(at: Any, count: int = 100) -> None:
    vectors = np.random.default_rng(1).normal(size=(count, 2))
    found = await asyncio.gather(*(at.submit("hvp", vector) for vector in vectors))
    assert np.array_equal(found, 2 * vectors)


@BOTH
def test_answers_to_what_was_not_asked_are_ignored(puppet: LinearizeServer, kind: str) -> None:
    puppet.faults.unknown_ids = True
    play(puppet, kind, check)
    assert puppet.points == ["bowl"]


@BOTH
@pytest.mark.parametrize("after", [0, 1, 40])
def test_a_broken_connection_is_renewed_at_the_same_version(puppet: LinearizeServer, kind: str, after: int) -> None:
    puppet.faults.breaks, puppet.faults.break_after = 2, after
    play(puppet, kind, check)
    assert puppet.points == (["bowl"] * 3 if after == 0 else ["bowl", "bowl@7", "bowl@7"])


@BOTH
def test_without_retries_what_is_open_fails(puppet: LinearizeServer, kind: str) -> None:
    puppet.faults.breaks, puppet.faults.break_after = 1, 3

    async def scene(at: Any) -> None:
        found = await asyncio.gather(*(at.submit("hvp", X) for _ in range(10)), return_exceptions=True)
        assert [type(one) for one in found if isinstance(one, Exception)] == [errors.Unavailable] * 7

    play(puppet, kind, scene, retries=False)


@BOTH
def test_a_refusal_to_serve_is_repeated_elsewhere(puppet: LinearizeServer, kind: str) -> None:
    puppet.faults.refuse, puppet.faults.refusals = errors.to_wire(errors.Draining("later")), 1
    play(puppet, kind, check)
    assert puppet.seen.streams == 2


@BOTH
def test_an_error_of_one_product_is_raised_by_that_one(puppet: LinearizeServer, kind: str) -> None:
    puppet.faults.refuse, puppet.faults.refusals = errors.to_wire(errors.FunctionFailed("no")), 1

    async def scene(at: Any) -> None:
        with pytest.raises(errors.FunctionFailed, match="no"):
            await at.submit("hvp", X)
        await check(at)

    play(puppet, kind, scene)


@BOTH
def test_after_it_expired_products_say_so(puppet: LinearizeServer, kind: str) -> None:
    puppet.expire_after = 2

    async def scene(at: Any) -> None:
        await check(at, 2)
        for _ in range(3):
            with pytest.raises(errors.LinearizationExpired, match="nothing was asked for"):
                await at.submit("hvp", X)

    play(puppet, kind, scene)
    assert puppet.seen.streams == 1


@BOTH
def test_what_is_no_answer_is_an_internal_error(puppet: LinearizeServer, kind: str) -> None:
    puppet.faults.garbled = True
    with pytest.raises(errors.Internal, match="no LinearizeResponse"):
        play(puppet, kind, check)


@BOTH
def test_a_product_that_comes_too_late(puppet: LinearizeServer, kind: str) -> None:
    puppet.faults.silent = True

    async def scene(at: Any) -> None:
        with pytest.raises(errors.DeadlineExceeded):
            await at.submit("hvp", X, timeout=0.1)

    play(puppet, kind, scene)


@BOTH
def test_a_cancelled_product_leaves_the_others_alone(puppet: LinearizeServer, kind: str) -> None:
    puppet.faults.silent = True

    async def scene(at: Any) -> None:
        future = at.submit("hvp", X)
        await asyncio.to_thread(puppet.wait_until, lambda seen: len(seen.operations) == 1)
        assert future.cancel()
        puppet.faults.silent = False
        await check(at)

    play(puppet, kind, scene)
    assert puppet.seen.streams == 1


@BOTH
def test_an_exception_in_the_block_cancels_what_is_open(puppet: LinearizeServer, kind: str) -> None:
    puppet.faults.silent = True
    futures: list[Any] = []

    async def scene(at: Any) -> None:
        futures.extend(at.submit("hvp", X) for _ in range(3))
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        play(puppet, kind, scene)
    assert all(future.cancelled() for future in futures)


def test_the_asyncio_client_at_the_real_server(server_address: str) -> None:
    async def scene() -> None:
        async with aio.Client(server_address, timeout=120) as client:
            async with client.linearize("rosenbrock", X) as at:
                assert (at.value, at.execution.function) == (100.0, "rosenbrock@1")
                assert (await at.hvp(np.eye(2), stacked=True)).tolist() == HESSIAN.tolist()
                assert await at.jvp([1.0, 1.0]) == -200.0
                assert (await at.vjp(2.0)).tolist() == (2 * GRADIENT).tolist()
                with pytest.raises(errors.WrongShape):
                    await at.hvp(np.ones(3))
                with pytest.raises(errors.InvalidOption):
                    await at.submit("gradient", X)
            with pytest.raises(RuntimeError, match="not open"):
                await at.hvp(X)
            at = await client.function("rosenbrock").linearize(X).open()
            assert (await at.vjp(1.0)).tolist() == GRADIENT.tolist()
            await at.close()
            with pytest.raises(errors.FunctionNotFound):
                await client.linearize("nope", X).open()

    asyncio.run(scene())


def test_a_client_that_is_closed_fails_what_is_open(puppet: LinearizeServer) -> None:
    puppet.faults.silent = True
    client = nablad.Client(puppet.address)
    at = client.linearize("bowl", X).open()
    future = at.submit("hvp", X)
    client.close()
    with pytest.raises(errors.Cancelled):
        future.result()
    at.close()


def test_a_lost_server_is_unavailable(puppet: LinearizeServer) -> None:
    puppet.faults.breaks, puppet.faults.break_after = 100, 0
    with nablad.Client(puppet.address) as client, pytest.raises(errors.Unavailable):
        client.linearize("bowl", X).open()
    puppet.faults.break_code = grpc.StatusCode.PERMISSION_DENIED
    with nablad.Client(puppet.address) as client, pytest.raises(errors.PermissionDenied):
        client.linearize("bowl", X).open()
