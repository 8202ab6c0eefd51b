"""Streams of rows and the server they come from: who is slow, who leaves, and what is left behind."""

import contextlib
import gc
import os
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

import nablad
from end_to_end.pipelines import named
from nablad import errors
from nablad.v1 import catalog_pb2, function_pb2
from nablad.v1 import differentiation_pb2 as pb
from nablad.v1.catalog_pb2_grpc import CatalogServiceStub
from nablad.v1.differentiation_pb2_grpc import DifferentiationServiceStub
from nablad_server.app import App
from nablad_server.batching.ticket import Ticket
from nablad_server.config import Settings
from nablad_server.serving.call import Call
from nablad_server.serving.rows import RowStream
from servers import ServerProcess

FUNCTIONS = Path(__file__).parent / "row_functions.py"
LONG = 5000
"""So many rows are 200 MB, in blocks of 2 MB."""
BROKEN = 1000
"""So many streams are broken off."""
AT_ONCE = 16
"""So many calls may be open."""
LIMITS = [("grpc.max_receive_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
"""Of channels: messages of any size, and a connection of its own for each channel."""


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    os.mkfifo(tmp_path / "gate")
    return tmp_path


@pytest.fixture
def noting(scratch: Path) -> Iterator[ServerProcess]:
    with ServerProcess(FUNCTIONS, env={"NABLAD_TEST_SCRATCH": str(scratch)}) as process:
        yield process
        assert process.errors() == []


def linearised(scratch: Path) -> int:
    """How many blocks were begun."""
    return len((scratch / "linearisations").read_text().split())


def blocks_done(client: nablad.Client, address: str) -> int:
    """How many blocks of Hessians were answered, once the server is at rest: calls of others change nothing."""
    earlier = -1
    with grpc.insecure_channel(address) as channel:
        while True:
            statistics = CatalogServiceStub(channel).GetStatistics(catalog_pb2.GetStatisticsRequest()).statistics
            done = sum(int(one.requests) for one in statistics if one.operator == function_pb2.OPERATOR_HESSIAN)
            if done == earlier:
                return done
            earlier = done
            for _ in range(300):
                client.gradient("rosenbrock", [1.0, 2.0])


def test_who_does_not_read_is_not_worked_for() -> None:
    x = np.random.default_rng(0).normal(size=LONG)
    with ServerProcess() as process, nablad.Client(process.address) as client:
        with client.stream_hessian("rosenbrock", x) as stream:
            first = next(stream)
            done = blocks_done(client, process.address)
            in_all = -(-LONG // len(first.array))
            # What the connection holds is taken, and two blocks more are held.
            assert 2 <= done <= in_all // 3
            rest = sum(len(block.array) for block in stream)
        assert len(first.array) + rest == LONG
        assert blocks_done(client, process.address) == in_all
        assert process.errors() == []


def test_a_caller_that_leaves_is_worked_for_no_more() -> None:
    with ServerProcess() as process, nablad.Client(process.address) as client:
        with client.stream_hessian("rosenbrock", np.random.default_rng(0).normal(size=LONG)) as stream:
            block = next(stream)
        done = blocks_done(client, process.address)
        assert done < LONG // len(block.array) // 2
        assert blocks_done(client, process.address) == done


def test_a_block_under_way_is_finished_and_none_follows(noting: ServerProcess, scratch: Path) -> None:
    x = np.full(LONG, 2.0)
    with nablad.Client(noting.address) as client:
        with client.stream_jacobian("noted", x, timeout=120) as warm:
            next(warm)
        x[0] = 200.0
        with grpc.insecure_channel(noting.address) as channel:
            request = pb.StreamJacobianRequest(function="noted", inputs=[named("x", x)])
            call: Any = DifferentiationServiceStub(channel).StreamJacobian(request, timeout=120)
            assert next(call).HasField("header")
            with (scratch / "gate").open("w"):  # opens when the block has come to its gate
                begun = linearised(scratch)
                call.cancel()
                client.gradient("sum_of_squares", x)
        assert noting.stop() == 0
    assert linearised(scratch) == begun


def test_what_fails_within_a_block_ends_the_stream_with_that_error(noting: ServerProcess) -> None:
    with nablad.Client(noting.address) as client:
        with client.stream_jacobian("noted", [-1.0, 2.0]) as stream:
            assert stream.value.tolist() == [1.0, 4.0], "the value needs no derivative"
            with pytest.raises(errors.FunctionFailed, match="a negative number"):
                next(stream)
        with client.stream_jacobian("noted", [3.0, 2.0]) as stream:
            np.testing.assert_array_equal(stream.read(), np.diag([6.0, 4.0]))


def test_streams_at_the_same_time_do_not_mix() -> None:
    points = np.random.default_rng(0).normal(size=(6, 700))
    with ServerProcess() as process, nablad.Client(process.address) as client, ThreadPoolExecutor(6) as pool:

        def streamed(x: Any) -> Any:
            with client.stream_hessian("rosenbrock", x) as stream:
                return stream.read()

        for x, found in zip(points, pool.map(streamed, points), strict=True):
            np.testing.assert_allclose(found, client.hessian("rosenbrock", x).hessian, rtol=1e-12, atol=1e-9)
        assert process.errors() == []


def test_a_server_that_drains_sends_its_readers_elsewhere_and_exits_0() -> None:
    with ServerProcess("--drain-seconds", "100") as process, grpc.insecure_channel(process.address) as channel:
        request = pb.StreamHessianRequest(function="rosenbrock", inputs=[named("x", np.ones(LONG))])
        call: Any = DifferentiationServiceStub(channel).StreamHessian(request, timeout=120)
        assert next(call).HasField("header")

        process.terminate()  # while nobody reads

        with pytest.raises(grpc.RpcError) as caught:
            for _ in call:
                pass
        found = errors.from_rpc_error(caught.value)
        assert isinstance(found, errors.Draining), found
        assert process.stop() == 0
        assert process.log[-1]["event"] == "stopped"
        assert process.log[-1]["at_rest"]
        assert process.errors() == []


def resident_bytes(process: ServerProcess) -> int:
    status = Path(f"/proc/{process.process.pid}/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith("VmRSS:")]
    return int(line.split()[1]) * 1024


def broken_off(address: str, count: int, seed: int) -> None:
    """Begins so many streams and breaks each off after a few messages, some by closing the connection."""
    chance = random.Random(seed)  # noqa: S311 - which moments are tried, not who may know them
    left = count
    while left > 0:
        with grpc.insecure_channel(address, LIMITS) as channel:
            stub = DifferentiationServiceStub(channel)
            calls: list[Any] = []
            for _ in range(8):
                n = chance.choice([2, 600, 600, LONG])
                request = pb.StreamHessianRequest(function="rosenbrock", inputs=[named("x", np.ones(n))])
                calls.append(stub.StreamHessian(request, timeout=120))
            for call in calls:
                messages = chance.choice([0, 0, 1, 2, 3])
                left -= not messages or taken_on(call)
                with contextlib.suppress(grpc.RpcError):  # of those not taken on
                    for _ in range(1, messages):
                        next(call, None)
                if chance.random() < 0.7:
                    call.cancel()
        # The others end with their connection.


def taken_on(call: Any) -> bool:
    """Whether a stream begins; if not, others have not yet been noticed to have ended."""
    try:
        return bool(next(call).HasField("header"))
    except grpc.RpcError as error:
        if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
            raise
        return False


def all_at_once(address: str) -> bool:
    """Whether as many streams as may be open are answered."""
    with grpc.insecure_channel(address, LIMITS) as channel:
        stub = DifferentiationServiceStub(channel)
        request = pb.StreamHessianRequest(function="rosenbrock", inputs=[named("x", np.ones(LONG))])
        calls: list[Any] = [stub.StreamHessian(request, timeout=120) for _ in range(AT_ONCE)]
        return sum(map(taken_on, calls)) == AT_ONCE


def test_broken_streams_leave_nothing_behind() -> None:
    """Nothing stays open, everyone is let out, and the memory is what it was."""
    limits = ("--concurrent-calls", str(AT_ONCE), "--queue-calls", str(AT_ONCE), "--drain-seconds", "100")
    with ServerProcess(*limits) as process:
        broken_off(process.address, BROKEN // 5, seed=0)
        while not all_at_once(process.address):
            continue
        before = resident_bytes(process)

        broken_off(process.address, BROKEN, seed=1)

        while not all_at_once(process.address):  # the server hears of it a little later
            continue
        with nablad.Client(process.address) as client, client.stream_hessian("rosenbrock", np.ones(600)) as stream:
            assert stream.read().shape == (600, 600)
        # The C library keeps what was free once; a leak of a block for each stream would be two gigabytes.
        assert resident_bytes(process) - before < 256 << 20
        assert process.stop() == 0, "it drains: nothing is inside"
        assert process.log[-1]["at_rest"]
        assert process.errors() == []


def alive() -> dict[str, int]:
    """How many of the objects that make up a stream there are."""
    gc.collect()
    kinds = [type(one) for one in gc.get_objects()]
    return {kind.__name__: kinds.count(kind) for kind in (RowStream, Call, Ticket)}


def test_broken_streams_leave_no_object_behind() -> None:
    """In this very process, so that what is left can be counted."""
    app = App(Settings(address="127.0.0.1:0", compile_cache=None, drain_pause_seconds=0, concurrent_calls=AT_ONCE))
    app.start()
    try:
        for seed in range(2):
            broken_off(app.address, BROKEN // 10, seed)
            while app._transport._open or app._gate._inside or app._batcher.waiting():
                continue
            with nablad.Client(app.address) as client, client.stream_hessian("rosenbrock", np.ones(600)) as stream:
                assert stream.read().shape == (600, 600)
            # What is not let go of would be waited for until the test's time-out.
            while app._transport._open or app._gate._inside:
                continue
            assert app._batcher.waiting() == 0
            assert app._batcher._lanes == {}
            # Each worker remembers its last batch until the next one.
            assert all(count <= AT_ONCE + len(app._batcher._workers) for count in alive().values())
    finally:
        app.stop()
