"""Black boxes: whatever a function does in its process, its caller is told precisely and nobody else notices."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nablad
from nablad.errors import FunctionFailed, NotDifferentiable
from servers import ServerProcess

SLEEPS, RAISES, NAN, PRINTS, FORKS, DIES, SHAPE, DTYPE, LEAVES, DOUBLES, READS, TELLS = range(1, 13)
X, Y = np.array([0.5, -1.25, 2.0]), 1.5
SECONDS = 4


@pytest.fixture(scope="module")
def process() -> Iterator[ServerProcess]:
    functions = Path(__file__).with_name("black_boxes.py")
    with ServerProcess(functions, "--black-box-seconds", str(SECONDS), "--workers", "1") as server:
        yield server
        assert server.errors() == []


@pytest.fixture(scope="module")
def boxes(process: ServerProcess) -> Iterator[nablad.Client]:
    with nablad.Client(process.address, timeout=120) as connected:
        yield connected


def test_values_and_finite_differences_are_those_of_the_closed_form(boxes: nablad.Client) -> None:
    along = np.array([1.0, -2.0, 0.5])
    gradient, curvature = np.cos(X) * Y, -np.sin(X) * Y

    assert boxes.evaluate("wave", X, Y).value == pytest.approx(np.sum(np.sin(X)) * Y, rel=1e-15)
    first = boxes.gradient("wave", X, Y, wrt="x", differences="ridders")
    np.testing.assert_allclose(first.gradient, gradient, rtol=1e-10)
    assert np.all(np.abs(first.gradient - gradient) <= first.errors)
    second = boxes.hessian("wave", X, Y, wrt="x", differences="central")
    np.testing.assert_allclose(second.hessian, np.diag(curvature), atol=1e-5)
    jvp = boxes.jvp("wave", X, Y, tangent={"x": along}, differences="central")
    assert jvp.jvp == pytest.approx(gradient @ along, rel=1e-8)
    hvp = boxes.hvp("wave", X, Y, tangent={"x": along}, differences="central")
    np.testing.assert_allclose(hvp.hvp["x"], curvature * along, atol=1e-5)


def test_batched_points_and_narrow_dtypes(boxes: nablad.Client) -> None:
    points = np.stack([X, 2 * X, -X, 3 * X, 0 * X])

    found = boxes.gradient("wave", points, Y, wrt="x", batched=["x"], differences="central")
    narrow = boxes.gradient("wave", X.astype(np.float32), np.float32(Y), wrt="x", differences="central")

    np.testing.assert_allclose(found.value, np.sum(np.sin(points), axis=1) * Y, rtol=1e-14)
    np.testing.assert_allclose(found.gradient, np.cos(points) * Y, rtol=1e-8, atol=1e-8)
    assert narrow.gradient.dtype == np.float32
    np.testing.assert_allclose(narrow.gradient, np.cos(X) * Y, rtol=1e-3)


def test_several_outputs_in_the_order_of_their_names(boxes: nablad.Client) -> None:
    value = boxes.evaluate("several", X).value
    jacobian = boxes.jacobian("several", X, outputs="doubled", differences="forward").jacobian

    assert value["count"] == 3
    np.testing.assert_array_equal(value["doubled"], np.stack([X, 2 * X], axis=1))
    wanted = np.stack([np.eye(3), 2 * np.eye(3)], axis=1)
    np.testing.assert_allclose(np.asarray(jacobian["doubled"] if isinstance(jacobian, dict) else jacobian), wanted,
                               atol=1e-7)  # fmt: skip


def test_the_catalogue_says_that_it_is_a_black_box_and_what_serves_it(boxes: nablad.Client) -> None:
    wave, several = boxes.describe("wave"), boxes.describe("several")

    assert wave.source == "file:black_boxes.py (black box)"
    assert set(wave.operators) == {"evaluate", "gradient", "jacobian", "hessian", "hvp", "jvp"}
    assert set(several.operators) == {"evaluate", "jacobian", "jvp"}


@pytest.mark.parametrize("operator", ["gradient", "laplacian", "derivative", "hessian"])
def test_automatic_differentiation_is_refused_with_advice(boxes: nablad.Client, operator: str) -> None:
    with pytest.raises(NotDifferentiable, match="ask for finite differences"):
        getattr(boxes, operator)("careless", 0, 1.5)


def test_streams_and_patterns_of_black_boxes_are_refused_with_advice(boxes: nablad.Client) -> None:
    with pytest.raises(NotDifferentiable, match="ask for finite differences"), boxes.stream_jacobian("wave", X, Y):
        pass
    with (
        pytest.raises(NotDifferentiable, match="ask for finite differences"),
        boxes.linearize("wave", X, Y) as linearization,
    ):
        linearization.jvp({"x": X})
    with pytest.raises(NotDifferentiable):
        boxes.sparsity("wave", X, Y, operator="hessian")


def test_explain_does_not_run_it(boxes: nablad.Client) -> None:
    found = boxes.explain("gradient", "careless", SLEEPS, 1.5, differences="central")

    assert found.mode == "finite differences"
    assert found.cost.seconds == 0


CASES: dict[int, tuple[str, str] | float] = {
    SLEEPS: (f"took longer than {SECONDS} s", ""),
    RAISES: ("raised LookupError", "nothing is known of 1.5"),
    NAN: float("nan"),
    PRINTS: 2.25,
    FORKS: 2.25,
    DIES: ("ended its process by signal SIGKILL", ""),
    SHAPE: ("raised ValueError", "output 'value' has the shape \\[3\\]; it is declared as \\[\\]"),
    DTYPE: ("raised ValueError", "output 'value' is complex128; it is declared as float64"),
    LEAVES: ("ended its process with status 7", ""),
    DOUBLES: 2.25,
    READS: ("raised EOFError", ""),
}


def test_whatever_it_does_its_caller_is_told_and_others_go_on(process: ServerProcess, boxes: nablad.Client) -> None:
    stop, served, failures = threading.Event(), [0], []

    def others() -> None:
        with nablad.Client(process.address, timeout=120) as client:
            while not stop.is_set():
                try:
                    client.gradient("rosenbrock", X)
                    served[0] += 1
                except Exception as error:
                    failures.append(error)

    thread = threading.Thread(target=others)
    thread.start()
    try:
        for what, expected in CASES.items():
            before = served[0]
            if isinstance(expected, float):
                np.testing.assert_array_equal(boxes.evaluate("careless", what, 1.5).value, expected)
            else:
                with pytest.raises(FunctionFailed, match=expected[0]) as failed:
                    boxes.evaluate("careless", what, 1.5)
                failed.match(expected[1])
                assert failed.value.metadata["function"] == "careless@1"
            if what == SLEEPS:
                assert served[0] > before + 10, "a function that sleeps holds up others"
            assert boxes.evaluate("careless", 0, 1.5).value == 2.25
    finally:
        stop.set()
        thread.join()

    assert failures == []
    assert [line for line in process.log if line["event"] == "jax.pure_callback failed"] == []
    assert {"to standard output", "and past the interpreter"} <= {line["event"] for line in process.log}


def test_sleepers_leave_other_black_boxes_and_derivatives_their_turn(boxes: nablad.Client) -> None:
    gone: list[Any] = []

    def sleep() -> None:
        try:
            boxes.gradient("careless", SLEEPS, 1.5, differences="central")
        except FunctionFailed as error:
            gone.append(error)

    sleepers = [threading.Thread(target=sleep) for _ in range(3)]
    for sleeper in sleepers:
        sleeper.start()
    for _ in range(5):
        boxes.hessian("rosenbrock", np.ones(7))
        boxes.gradient("wave", X, Y, wrt="x", differences="central")
    assert len(gone) < 3
    for sleeper in sleepers:
        sleeper.join()
    assert len(gone) == 3


def test_a_server_that_stops_ends_a_sleeper_when_its_time_is_up() -> None:
    functions = Path(__file__).with_name("black_boxes.py")
    with (
        ServerProcess(functions, "--drain-seconds", "1") as server,
        nablad.Client(server.address, timeout=120, retries=False) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        assert client.evaluate("careless", 0, 1.5).value == 2.25
        sleeper = pool.submit(client.evaluate, "careless", TELLS, 1.5)
        server.wait_for("asleep")
        status = server.stop()
        with pytest.raises(FunctionFailed, match="ended its process by signal SIGKILL"):
            sleeper.result()

    assert status == 0
    (stopped,) = [line for line in server.log if line["event"] == "stopped"]
    assert stopped["at_rest"]
