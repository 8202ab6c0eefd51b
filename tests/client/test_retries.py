"""Calls that no server answered are repeated: between client and server stands a proxy that fails on purpose."""

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest

import nablad
from nablad import errors


class Proxy(grpc.GenericRpcHandler):
    """Forwards every call to the real server, after failing the next `failures` derivatives.

    Attributes:
        failures: how many calls of DifferentiationService to fail from now on.
        code: what with.
        seen: how many such calls arrived.
    """

    def __init__(self, upstream: str) -> None:
        limits = [("grpc.max_receive_message_length", -1)]
        self.failures = 0
        self.code = grpc.StatusCode.UNAVAILABLE
        self.seen = 0
        self._channel = grpc.insecure_channel(upstream, limits)
        self._pool = ThreadPoolExecutor(4)
        self._server = grpc.server(self._pool, [self], options=limits)
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> "grpc.RpcMethodHandler[bytes, bytes]":
        method = str(handler_call_details.method)
        forward: Callable[..., bytes] = self._channel.unary_unary(method)

        def behave(request: bytes, context: grpc.ServicerContext) -> bytes:
            if "DifferentiationService" in method:
                self.seen += 1
                if self.failures:
                    self.failures -= 1
                    context.abort(self.code, "on purpose")
            return forward(request)

        return grpc.unary_unary_rpc_method_handler(behave)

    def close(self) -> None:
        self._server.stop(None).wait()
        self._channel.close()
        self._pool.shutdown()


@pytest.fixture
def proxy(server_address: str) -> Iterator[Proxy]:
    running = Proxy(server_address)
    yield running
    running.close()


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED])
@pytest.mark.parametrize("size", [3, 100_000], ids=["small", "beyond gRPC's default retry buffer"])
def test_a_call_is_repeated_until_the_server_is_back(proxy: Proxy, size: int, code: grpc.StatusCode) -> None:
    with nablad.Client(proxy.address) as client:
        proxy.failures, proxy.code = 2, code
        assert np.array_equal(client.gradient("sum_of_squares", np.ones(size)).gradient, np.full(size, 2.0))
    assert proxy.seen == 3


def test_the_asyncio_client_repeats_too(proxy: Proxy) -> None:
    async def call() -> list[float]:
        async with nablad.aio.Client(proxy.address) as client:
            proxy.failures = 2
            gradient: list[float] = (await client.gradient("sum_of_squares", [1.0])).gradient.tolist()
            return gradient

    assert asyncio.run(call()) == [2.0]
    assert proxy.seen == 3


def test_a_server_that_stays_away_is_reported_after_four_attempts(proxy: Proxy) -> None:
    with nablad.Client(proxy.address) as client:
        proxy.failures = 9
        with pytest.raises(errors.Unavailable, match="on purpose"):
            client.gradient("sum_of_squares", [1.0])
    assert proxy.seen == 4


def test_retries_can_be_switched_off(proxy: Proxy) -> None:
    with nablad.Client(proxy.address, retries=False) as client:
        proxy.failures = 1
        with pytest.raises(errors.Unavailable):
            client.gradient("sum_of_squares", [1.0])
    assert proxy.seen == 1


def test_what_the_caller_did_wrong_is_not_repeated(proxy: Proxy) -> None:
    with nablad.Client(proxy.address) as client, pytest.raises(errors.NabladError):
        client.gradient("softmax", [1.0, 2.0])
    assert proxy.seen == 1
