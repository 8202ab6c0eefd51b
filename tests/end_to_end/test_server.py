"""A server process as its operators and callers see it: life cycle, limits, deadlines, and functions that misbehave."""

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

import nablad
from nablad import errors
from servers import ServerProcess

FUNCTIONS = Path(__file__).parent / "user_functions.py"


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scratch")
    os.mkfifo(path / "gate")
    return path


@pytest.fixture(scope="module")
def user_server(scratch: Path) -> Iterator[ServerProcess]:
    """A server of the user's functions with one worker, so that one held execution occupies it, and a small queue."""
    options = ("--workers", "1", "--queue-calls", "4", "--direct-microseconds", "0", "--max-message-bytes", "1000000")
    with ServerProcess(FUNCTIONS, *options, env={"NABLAD_TEST_SCRATCH": str(scratch)}) as process:
        yield process
        assert process.errors() == []


@pytest.fixture
def user_client(user_server: ServerProcess) -> Iterator[nablad.Client]:
    with nablad.Client(user_server.address, timeout=60) as client:
        yield client


class Hold:
    """Occupies the server's one worker until released."""

    def __init__(self, client: nablad.Client, scratch: Path, pool: ThreadPoolExecutor) -> None:
        self._gate = scratch / "gate"
        client.evaluate("held", 2.0)  # compiled
        self.call = pool.submit(client.evaluate, "held", 1000.0)
        # Opening the FIFO for writing returns once the execution has opened it for reading: the worker is occupied.
        self._writer = self._gate.open("w")

    def release(self) -> None:
        """Lets the held execution go on, and checks its answer."""
        self._writer.close()
        assert self.call.result(60).value == 1000.0


def insist(client: nablad.Client, x: float) -> float:
    """Calls `held` as often as the queue is full."""
    while True:
        try:
            return float(client.evaluate("held", x).value)
        except errors.QueueFull:
            continue


def until(expected: type[nablad.NabladError], client: nablad.Client) -> nablad.NabladError:
    """Calls with a short deadline, again and again, until one fails as expected."""
    while True:
        try:
            client.evaluate("held", 99.0, timeout=0.1)
        except expected as error:
            return error
        except (errors.QueueFull, errors.DeadlineExceeded):
            continue


def call_until_refused(client: nablad.Client) -> None:
    """The log says that the server drains a moment before it sends calls elsewhere."""
    while True:
        client.evaluate("rosenbrock", [1.0, 1.0])


def executed(scratch: Path) -> list[float]:
    return [float(line) for line in (scratch / "executions").read_text().split()]


def test_a_file_of_functions_is_served_beside_the_catalogue(user_client: nablad.Client) -> None:
    names = {info.name: info.version for info in user_client.functions()}
    assert names["cubes"] == 2
    assert names["rosenbrock"] == 1
    assert user_client.gradient("cubes@1", [1.0, 2.0]).gradient.tolist() == [3.0, 12.0]
    latest = user_client.gradient("cubes", [1.0, 2.0])
    assert latest.gradient.tolist() == [6.0, 24.0]
    assert latest.execution.function == "cubes@2"
    assert user_client.describe("cubes").source == "file:user_functions.py"


def test_a_function_that_refuses_a_shape_says_so(user_client: nablad.Client) -> None:
    with pytest.raises(errors.FunctionFailed, match="needs an even number of elements, not 3") as caught:
        user_client.gradient("only_even", [1.0, 2.0, 3.0])
    assert caught.value.metadata["exception"] == "TypeError"
    assert user_client.gradient("only_even", [1.0, 2.0]).gradient.tolist() == [2.0, 1.0]


def test_a_function_that_cannot_be_differentiated_can_be_evaluated(user_client: nablad.Client) -> None:
    assert user_client.evaluate("fragile", 9.0).value == 3.0
    with pytest.raises(errors.NotDifferentiable, match="fragile@1"):
        user_client.gradient("fragile", 9.0)


def test_a_point_that_fails_does_not_fail_its_neighbours(
    user_client: nablad.Client, scratch: Path, user_server: ServerProcess
) -> None:
    user_client.evaluate("fragile", [1.0, 1.0], batched=True)
    user_client.evaluate("fragile", 1.0)
    with ThreadPoolExecutor(8) as pool:
        hold = Hold(user_client, scratch, pool)
        # All of these gather in one lane while the worker is held, and leave it as one batch.
        calls = {x: pool.submit(user_client.evaluate, "fragile", x) for x in (4.0, -1.0, 9.0)}
        hold.release()
        assert calls[4.0].result().value == 2.0
        assert calls[9.0].result().value == 3.0
        with pytest.raises(errors.FunctionFailed, match="a negative number"):
            calls[-1.0].result()


def test_work_past_its_deadline_is_never_done(user_client: nablad.Client, scratch: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        hold = Hold(user_client, scratch, pool)
        with pytest.raises(errors.DeadlineExceeded):
            user_client.evaluate("held", 33.0, timeout=0.2)
        # The server counts from the arrival of a call: it is late by as long as that took, and surely later than this.
        with pytest.raises(errors.DeadlineExceeded):
            user_client.evaluate("held", 35.0, timeout=1.0)
        hold.release()
        assert user_client.evaluate("held", 34.0).value == 34.0
    assert 34.0 in executed(scratch)
    assert 33.0 not in executed(scratch)


def test_work_that_was_cancelled_is_never_done(
    user_client: nablad.Client, user_server: ServerProcess, scratch: Path
) -> None:
    with ThreadPoolExecutor(2) as pool:
        hold = Hold(user_client, scratch, pool)
        other = nablad.Client(user_server.address)
        doomed = pool.submit(insist, other, 43.0)
        fillers = ThreadPoolExecutor(3)
        calls = [fillers.submit(insist, user_client, 50.0 + index) for index in range(3)]
        # The queue holds 4: once a fifth call is refused, 43 is known to wait.
        refused = until(errors.QueueFull, user_client)
        assert refused.retry_after == 0.1
        other.close()
        with pytest.raises(errors.Cancelled):
            doomed.result(60)
        # Once a fifth call finds room, and waits until its deadline, 43 is known to have left.
        until(errors.DeadlineExceeded, user_client)
        hold.release()
        assert [call.result(60) for call in calls] == [50.0, 51.0, 52.0]
        fillers.shutdown()
    assert user_client.evaluate("held", 60.0).value == 60.0
    assert 43.0 not in executed(scratch)


def test_a_message_above_the_limit_is_refused_and_the_next_is_served(user_client: nablad.Client) -> None:
    with pytest.raises(errors.ResourceExhausted, match="larger than max"):
        user_client.gradient("cubes", np.ones(200_000))
    assert user_client.gradient("cubes@1", [1.0]).gradient.tolist() == [3.0]


def test_health_and_reflection(user_server: ServerProcess) -> None:
    with grpc.insecure_channel(user_server.address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for service in ("", "nablad.v1.DifferentiationService", "nablad.v1.CatalogService"):
            answer = health.Check(health_pb2.HealthCheckRequest(service=service))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        (listing,) = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([request]))
        names = {service.name for service in listing.list_services_response.service}
        assert {"nablad.v1.DifferentiationService", "nablad.v1.CatalogService"} <= names


def test_warm_programs_are_ready_with_the_server(user_server: ServerProcess, user_client: nablad.Client) -> None:
    warmed = [line for line in user_server.log if line["event"] == "warmed"]
    assert [line["function"] for line in warmed] == ["cubes@1", "patient@1"]
    assert user_client.gradient("cubes@1", np.ones(4)).execution.compile_seconds == 0
    assert user_client.gradient("cubes@2", np.ones(3)).execution.compile_seconds > 0


def test_until_it_is_warm_it_says_so(scratch: Path) -> None:
    process = ServerProcess(FUNCTIONS, env={"NABLAD_TEST_SCRATCH": str(scratch), "NABLAD_TEST_HOLD_WARM": "1"})
    try:
        process.wait_for("listening")
        with (scratch / "gate").open("w"), nablad.Client(process.address, retries=False) as client:
            # The gate is open for writing: the first program is being warmed, and waits.
            assert not client.healthy()
            with pytest.raises(errors.Loading, match="warming up"):
                client.gradient("rosenbrock", [1.0, 2.0])
        process.wait_for("serving")
        with nablad.Client(process.address) as client:
            assert client.healthy()
            assert client.gradient("rosenbrock", [1.0, 1.0]).gradient.tolist() == [0.0, 0.0]
    finally:
        assert process.stop() == 0


def test_sigterm_answers_all_that_is_in_flight_and_exits_0(scratch: Path) -> None:
    # The pause is for the calls below to arrive in: what comes after it is sent elsewhere.
    options = ("--workers", "1", "--drain-pause-seconds", "3")
    with ServerProcess(FUNCTIONS, *options, env={"NABLAD_TEST_SCRATCH": str(scratch)}) as process:
        with nablad.Client(process.address) as client, ThreadPoolExecutor(8) as pool:
            client.evaluate("rosenbrock", np.ones(5))
            hold = Hold(client, scratch, pool)
            waiting = [pool.submit(client.gradient, "rosenbrock", np.full(9, float(i))) for i in range(6)]
            process.terminate()
            hold.release()
            for index, call in enumerate(waiting):
                x = np.full(9, float(index))
                expected = np.zeros(9)
                expected[:-1] += -400 * x[:-1] * (x[1:] - x[:-1] ** 2) - 2 * (1 - x[:-1])
                expected[1:] += 200 * (x[1:] - x[:-1] ** 2)
                assert np.allclose(call.result(60).gradient, expected, rtol=1e-14)
        assert process.stop() == 0
        assert process.log[-1]["event"] == "stopped"
        assert process.errors() == []


def test_sigterm_while_programs_are_warmed_ends_the_server_without_the_others() -> None:
    sizes = range(2, 102)
    options = [word for n in sizes for word in ("--warm", f"hessian rosenbrock n={n}")]
    process = ServerProcess("--compile-cache", "none", *options)
    process.wait_for("warmed")

    assert process.stop() == 0
    events = [line["event"] for line in process.log]
    assert 1 <= events.count("warmed") < len(sizes)
    assert "serving" not in events
    assert events[-1] == "stopped"
    assert process.errors() == []


ANOTHER_THREAD = """
import os, pathlib, signal, threading
from nablad_server import app, config

state = pathlib.Path(f"/proc/self/task/{os.getpid()}/stat")

def tell():
    asleep = 0
    while asleep < 1000:  # until the main thread waits
        asleep = asleep + 1 if state.read_text().rpartition(")")[2].split()[0] == "S" else 0
    signal.pthread_kill(threading.get_ident(), signal.SIGTERM)

class Signalled(app.App):
    def start(self, *given_up):
        super().start(*given_up)
        threading.Thread(target=tell, daemon=True).start()

Signalled(config.Settings(address="127.0.0.1:0", compile_cache=None, drain_pause_seconds=0)).serve_until_signalled()
"""


@pytest.mark.skipif(
    not Path("/proc/self/task").is_dir(), reason="looks at the threads of a process as Linux shows them"
)
def test_a_signal_that_another_thread_gets_ends_the_server_too() -> None:
    # The kernel may give a process's signal to any of its threads; a wait for a lock would go on for ever.
    subprocess.run([sys.executable, "-c", ANOTHER_THREAD], check=True, timeout=60, capture_output=True)


def test_what_comes_too_late_is_sent_elsewhere_while_what_is_inside_finishes(scratch: Path) -> None:
    options = ("--workers", "1", "--drain-pause-seconds", "0")
    with (
        ServerProcess(FUNCTIONS, *options, env={"NABLAD_TEST_SCRATCH": str(scratch)}) as process,
        nablad.Client(process.address, retries=False) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        client.evaluate("rosenbrock", [1.0, 1.0])
        hold = Hold(client, scratch, pool)
        process.terminate()
        process.wait_for("draining")
        with pytest.raises(errors.Draining, match="retry elsewhere"):
            call_until_refused(client)
        hold.release()
        assert process.stop() == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("missing.py",), "there is no such file"),
        (("no.such.module",), "No module named"),
        (("--warm", "gradient rosenbrock"), "a size for each of"),
        (("--warm", "integrate rosenbrock n=3"), "there is no operator 'integrate'"),
        (("--workers", "0"), "workers"),
        (("--address", "127.0.0.1:notaport"), "notaport"),
    ],
)
def test_what_is_wrong_at_start_up_is_named(arguments: tuple[str, ...], says: str) -> None:
    process = ServerProcess(*arguments)
    with pytest.raises(RuntimeError, match="ended with status 1") as caught, process:
        pass
    assert says in str(caught.value)


def test_settings_come_from_file_environment_and_command_line_in_that_order(tmp_path: Path) -> None:
    settings = tmp_path / "settings.toml"
    settings.write_text("builtin = false\nmax_points = 11\nfunctions = ['" + str(FUNCTIONS) + "']\n")
    options = ("--settings", settings, "--max-points", "9")
    with ServerProcess(*options, env={"NABLAD_MAX_POINTS": "10"}) as process, nablad.Client(process.address) as client:
        assert "rosenbrock" not in {info.name for info in client.functions()}
        with pytest.raises(errors.InvalidBatch, match="expected 1 to 9"):
            client.gradient("cubes", np.ones((10, 2)), batched=True)


def test_however_often_it_is_told_to_stop_it_ends_well() -> None:
    with ServerProcess() as server:
        while server.process.poll() is None:  # until the last moment, when the interpreter itself is ending
            server.terminate()
        assert server.stop() == 0
        assert server.errors() == []
