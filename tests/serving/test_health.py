"""Health and reflection: the statuses, in their order, whatever others do; bad requests are the caller's fault."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2 as pb

from nablad_server.serving.callers import Callers
from nablad_server.serving.entrance import Entrance
from nablad_server.serving.health import Health
from nablad_server.serving.limits import Limits
from nablad_server.serving.transport import Transport
from puppets import SAFETY

CHECK, WATCH = "/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"
SERVING, NOT_SERVING = b"\x08\x01", b"\x08\x02"
UNKNOWN = b"\x08\x03"


def calls(channel: grpc.Channel) -> Any:
    """The channel, whose types know no methods on bytes."""
    return channel


def test_watches_that_come_and_go_stop_nobody(server_address: str) -> None:
    with grpc.insecure_channel(server_address) as channel, ThreadPoolExecutor(16) as pool:

        def watch(_: int) -> bytes:
            call = calls(channel).unary_stream(WATCH)(b"", timeout=30)
            first: bytes = next(iter(call))
            call.cancel()
            return first

        assert set(pool.map(watch, range(800))) == {SERVING}
        assert calls(channel).unary_unary(CHECK)(b"", timeout=30) == SERVING


@pytest.fixture
def health() -> Iterator[tuple[Health, grpc.Channel]]:
    health = Health()
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    methods = health.methods()
    entrance = Entrance(Callers(), Limits(calls=3), methods=methods, streams=(), calls=1)
    transport = Transport(server, methods, entrance, together=lambda: None, tick=lambda: None)
    server.start()
    transport.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield health, channel
    server.stop(None).wait()
    assert transport.stop(SAFETY)


def test_a_watch_is_told_of_every_change(health: tuple[Health, grpc.Channel]) -> None:
    statuses, channel = health
    statuses.set("a", pb.HealthCheckResponse.SERVING)
    told = iter(calls(channel).unary_stream(WATCH)(b"\x0a\x01a", timeout=30))
    other = iter(calls(channel).unary_stream(WATCH)(b"\x0a\x01b", timeout=30))
    assert (next(told), next(other)) == (SERVING, UNKNOWN)
    statuses.set("a", pb.HealthCheckResponse.NOT_SERVING)
    statuses.set("b", pb.HealthCheckResponse.SERVING)
    assert (next(told), next(other)) == (NOT_SERVING, SERVING)
    with pytest.raises(grpc.RpcError) as caught:
        calls(channel).unary_unary(CHECK)(b"\x0a\x01c", timeout=30)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_one_address_may_have_so_many_watches_and_work_is_counted_apart(health: tuple[Health, grpc.Channel]) -> None:
    _, channel = health
    watches = [calls(channel).unary_stream(WATCH)(b"", timeout=30) for _ in range(3)]  # more than calls may be open
    for watch in watches:
        assert next(watch) == UNKNOWN
    with pytest.raises(grpc.RpcError) as caught:
        next(calls(channel).unary_stream(WATCH)(b"", timeout=30))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize("method", [CHECK, WATCH, "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"])
def test_a_malformed_request_is_the_callers_fault(server_address: str, method: str) -> None:
    with grpc.insecure_channel(server_address) as channel:
        call = calls(channel).stream_stream(method)(iter([b"\xff"]), timeout=30)  # one message is a stream, too
        with pytest.raises(grpc.RpcError) as caught:
            list(call)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
