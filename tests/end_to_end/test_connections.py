"""Connections that want nothing good: none of them keeps the server from others."""

import resource
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

import nablad
from nablad.tensors import to_tensor
from nablad.v1 import differentiation_pb2 as pb
from nablad.v1 import tensor_pb2
from resilience.frames import Connection, Raw, headers
from servers import ServerProcess

IDLE = 2000
GRADIENT = b"/nablad.v1.DifferentiationService/Gradient"
REQUESTS = {
    "/grpc.health.v1.Health/Check": b"",
    "/nablad.v1.CatalogService/ListFunctions": b"",
    "/nablad.v1.CatalogService/Explain": b"",
    "/nablad.v1.DiagnosticsService/CheckGradient": b"",
    "/nablad.v1.AdminService/Reload": b"",
}
"""Methods of every service, and a request that each of them answers at once."""

POINT = np.array([1.0, 2.0])


@pytest.fixture(scope="module")
def impatient() -> Iterator[ServerProcess]:
    with ServerProcess(
        "--handshake-seconds", "0.5", "--request-seconds", "0.5", "--connection-idle-seconds", "2",
        "--header-bytes", "8192",
    ) as process:  # fmt: skip
        yield process
        assert process.errors() == []


@pytest.fixture
def works(impatient: ServerProcess) -> Iterator[Callable[[], None]]:
    with nablad.Client(impatient.address, timeout=120) as client:
        client.gradient("rosenbrock", POINT)

        def check() -> None:
            np.testing.assert_allclose(client.gradient("rosenbrock", POINT).gradient, [-400.0, 200.0])

        yield check
        check()


def port_of(server: ServerProcess) -> int:
    return int(server.address.rpartition(":")[2])


def resident_bytes(server: ServerProcess) -> int:
    pages = int(Path(f"/proc/{server.process.pid}/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def test_a_connection_that_says_nothing_is_closed(impatient: ServerProcess, works: Callable[[], None]) -> None:
    with socket.create_connection(("127.0.0.1", port_of(impatient)), timeout=60) as silent:
        while silent.recv(1 << 16):
            works()


def test_a_connection_without_calls_is_closed(impatient: ServerProcess, works: Callable[[], None]) -> None:
    with Connection(port_of(impatient)) as idle:
        works()

        assert b"connection idle" in idle.read_to_end()


def test_half_a_request_is_ended_with_a_reason(impatient: ServerProcess, works: Callable[[], None]) -> None:
    halves = [Raw(GRADIENT, port_of(impatient)) for _ in range(20)]
    works()

    for half in halves:
        half.read_until(b"had not arrived whole")
        half.close()


@pytest.mark.parametrize("method", REQUESTS)
def test_requests_that_stay_unfinished_hold_up_no_others_of_their_kind(
    impatient: ServerProcess, works: Callable[[], None], method: str
) -> None:
    halves = [Raw(method.encode(), port_of(impatient)) for _ in range(40)]
    works()
    with grpc.insecure_channel(impatient.address) as channel:
        call: Any = channel.unary_unary(method)
        for _ in range(len(halves)):
            try:
                call(REQUESTS[method], timeout=60)
            except grpc.RpcError as error:
                assert error.code() is grpc.StatusCode.INVALID_ARGUMENT  # noqa: PT017 - it may be answered, too

    for half in halves:
        half.read_until(b"had not arrived whole")
        half.close()


def test_headers_beyond_the_limit_are_refused_and_those_within_are_not(
    impatient: ServerProcess, works: Callable[[], None]
) -> None:
    with grpc.insecure_channel(impatient.address) as channel:
        gradient: Any = channel.unary_unary("/nablad.v1.DifferentiationService/Gradient")
        for size, code in ((10_000, grpc.StatusCode.RESOURCE_EXHAUSTED), (5_000, grpc.StatusCode.INVALID_ARGUMENT)):
            with pytest.raises(grpc.RpcError) as refused:
                gradient(b"\xff", metadata=(("padding", "x" * size),))
            assert refused.value.code() is code
    works()


def test_headers_of_megabytes_keep_the_server_from_nothing(impatient: ServerProcess, works: Callable[[], None]) -> None:
    for _ in range(20):
        with Connection(port_of(impatient)) as large:
            try:
                large.call(headers(GRADIENT, (b"padding", b"x" * (4 << 20))))
            except OSError:  # the server hung up
                continue
            works()


def test_two_thousand_idle_connections_harm_nobody() -> None:
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files < 2 * IDLE:
        pytest.skip(f"needs {2 * IDLE} open files, {files} are allowed")
    with ServerProcess() as server, nablad.Client(server.address, timeout=120) as client:
        client.gradient("rosenbrock", POINT)
        before = resident_bytes(server)
        idle = [Connection(port_of(server)) for _ in range(IDLE)]
        for each in idle:
            each.socket.recv(1)  # the server has it

        for _ in range(100):
            client.gradient("rosenbrock", POINT)
        with nablad.Client(server.address, timeout=120) as another:
            another.gradient("rosenbrock", POINT)

        assert resident_bytes(server) - before < IDLE * (200 << 10)
        for each in idle:
            each.close()
        client.gradient("rosenbrock", POINT)
        assert server.errors() == []


def test_more_connections_than_allowed_are_closed() -> None:
    with ServerProcess("--connections", "4") as server:
        open_ones = [Connection(port_of(server)) for _ in range(4)]
        for each in open_ones:
            each.socket.recv(1)

        with Connection(port_of(server)) as fifth:
            assert fifth.read_to_end() == b""

        for each in open_ones:
            each.close()
        with nablad.Client(server.address, timeout=120) as client:
            client.gradient("rosenbrock", POINT)


def test_a_client_that_reads_nothing_of_a_large_stream_fills_no_memory() -> None:
    n = 12_000  # a matrix of 1.1 GB
    point = tensor_pb2.NamedTensor(name="x", tensor=to_tensor(np.ones(n)))
    request = pb.StreamHessianRequest(function="rosenbrock", inputs=[point])
    with ServerProcess() as server, nablad.Client(server.address, timeout=120) as client:
        client.gradient("rosenbrock", POINT)
        with client.stream_hessian("rosenbrock", np.ones(n)) as rows:
            next(iter(rows))  # its programs are there
        before = resident_bytes(server)
        deaf = [Raw(b"/nablad.v1.DifferentiationService/StreamHessian", port_of(server)) for _ in range(8)]
        for each in deaf:
            each.send(request.SerializeToString())
            each.read_until(b"application/grpc")

        for _ in range(200):
            client.gradient("rosenbrock", POINT)

        assert resident_bytes(server) - before < 400 << 20
        for each in deaf:
            each.close()
        client.gradient("rosenbrock", POINT)
        assert server.errors() == []
