"""Linearize: many products at one point over one stream of a real server, by a client that speaks the wire itself."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

import nablad
from credentials import write_identities
from end_to_end.pipelines import array, named
from end_to_end.products import HVP, JVP, VJP, ProductStream, by_id, gauges, point, product
from nablad.framing import delimited
from nablad.v1 import differentiation_pb2 as pb
from nablad.v1 import error_pb2, function_pb2
from pendulums import energy_gradient, energy_products
from servers import ServerProcess

FUNCTIONS = Path(__file__).parent / "linearized_functions.py"
METHOD = "/nablad.v1.DifferentiationService/Linearize"
PER_CALLER = 3
ONE, OTHER = "one", "other"
"""Tokens, and the names of those who have them."""
ALONE = [("grpc.use_local_subchannel_pool", 1)]
"""Makes a connection of a channel's own, whatever others to the same address are open."""
SIZE = 1000

# Rosenbrock's function 100(y − x²)² + (1 − x)² at (1, 2): value 100, gradient (−400, 200).
X = [1.0, 2.0]
HESSIAN = np.array([[402.0, -400.0], [-400.0, 200.0]])
GRADIENT = np.array([-400.0, 200.0])
AT = point("rosenbrock", X)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("linearize")
    os.mkfifo(path / "gate")
    return path


@pytest.fixture(scope="module")
def process(scratch: Path) -> Iterator[ServerProcess]:
    """A server whose metrics are read."""
    options = ("--metrics-address", "127.0.0.1:0")
    with ServerProcess(FUNCTIONS, *options, env={"NABLAD_TEST_SCRATCH": str(scratch)}) as started:
        yield started
        assert started.errors() == []


@pytest.fixture
def channel(process: ServerProcess) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(process.address, options=ALONE) as opened:
        yield opened


def reason(answer: pb.ProductAnswer) -> str:
    """Why a product failed; empty if it did not."""
    return error_pb2.Reason.Name(answer.error.reason) if answer.HasField("error") else ""


def reason_of(error: grpc.RpcError) -> str:
    """Why a stream ended."""
    info = error_details_pb2.ErrorInfo()
    assert rpc_status.from_call(error).details[0].Unpack(info)
    found: str = info.reason
    return found


def ended(stream: ProductStream) -> tuple[grpc.StatusCode, str]:
    """What a stream ended with, that is still to be read from."""
    with pytest.raises(grpc.RpcError) as caught:
        for _ in stream.call:
            pass
    return caught.value.code(), reason_of(caught.value)


def test_all_products_in_the_first_message(channel: grpc.Channel) -> None:
    stream = ProductStream(channel)

    stream.send(
        product(2**63, HVP, [1.0, 0.0]), product(7, JVP, [1.0, 1.0]), product(0, VJP, 2.0, "value"),
        product(9, HVP, np.eye(2), stacked=True), product(10, JVP, [[1.0, 1.0], [0.0, 1.0]], stacked=True),
        product(11, VJP, [1.0, -1.0, 0.5], "value", stacked=True),
        point=AT,
    )  # fmt: skip

    opened = stream.opened()
    assert [(value.name, array(value).tolist()) for value in opened.values] == [("value", 100.0)]
    assert (opened.idle_seconds, opened.execution.function) == (300.0, "rosenbrock@1")
    answers = by_id(stream.rest())
    expected: dict[int, Any] = {
        2**63: HESSIAN[:, 0], 7: -200.0, 0: 2 * GRADIENT, 9: HESSIAN, 10: [-200.0, 200.0],
        11: np.outer([1.0, -1.0, 0.5], GRADIENT),
    }  # fmt: skip
    for identity, product_by_hand in expected.items():
        (found,) = answers.pop(identity).products
        assert not found.batched
        np.testing.assert_allclose(array(found), product_by_hand, rtol=1e-14)
    assert answers == {}
    assert stream.call.code() is grpc.StatusCode.OK


def test_products_of_many_messages_are_answered_once_each(channel: grpc.Channel) -> None:
    stream = ProductStream(channel)
    stream.send(point=AT)
    stream.opened()
    vectors = np.random.default_rng(0).integers(-8, 8, size=(600, 2)).astype(float)
    for start in range(0, 600, 40):
        stream.send(*(product(identity, HVP, vectors[identity]) for identity in range(start, start + 40)))

    answers = by_id(stream.rest())

    assert set(answers) == set(range(600))
    found = np.stack([array(answers[identity].products[0]) for identity in range(600)])
    assert np.array_equal(found, vectors @ HESSIAN)  # whole numbers: exact


def test_what_is_wrong_with_a_product_is_its_error_alone(channel: grpc.Channel) -> None:
    stream = ProductStream(channel)
    wrong = {
        1: (product(1, HVP, [1.0, 2.0, 3.0]), "WRONG_SHAPE", "vectors[0].tensor.shape"),
        2: (product(2, function_pb2.OPERATOR_GRADIENT, X), "INVALID_OPTION", "operator"),
        3: (product(3, function_pb2.OPERATOR_UNSPECIFIED, X), "INVALID_OPTION", "operator"),
        4: (product(4, JVP, X, "y"), "UNKNOWN_INPUT", "vectors[0].name"),
        5: (product(5, VJP, 1.0, "y"), "UNKNOWN_OUTPUT", "vectors[0].name"),
        6: (product(6, JVP, [1, 2]), "WRONG_DTYPE", "vectors[0].tensor.dtype"),
        7: (pb.Product(id=7, operator=HVP), "INVALID_VECTOR", "vectors"),
        8: (product(8, HVP, X, stacked=True), "WRONG_SHAPE", "vectors[0].tensor.shape"),
        9: (
            pb.Product(id=9, operator=HVP, vectors=[named("x", [X], batched=True)]),
            "INVALID_BATCH",
            "vectors[0].batched",
        ),
        10: (pb.Product(id=10, operator=HVP, vectors=[named("x", X)] * 2), "DUPLICATE_NAME", "vectors[1].name"),
    }

    stream.send(*(asked for asked, _, _ in wrong.values()), product(11, HVP, [0.0, 1.0]), point=AT)

    stream.opened()
    answers = by_id(stream.rest())
    assert array(answers.pop(11).products[0]).tolist() == [-400.0, 200.0]
    assert {identity: (reason(answer), answer.error.field) for identity, answer in answers.items()} == {
        identity: (f"REASON_{name}", field) for identity, (_, name, field) in wrong.items()
    }
    assert stream.call.code() is grpc.StatusCode.OK


def test_a_hessian_needs_one_scalar_output_and_vectors_those_of_the_point(channel: grpc.Channel) -> None:
    inputs = [named("x", np.ones(SIZE)), named("mask", np.ones(SIZE, bool)), named("speed", 1.0)]
    refused: dict[int, str] = {}
    for index, (outputs, wrt) in enumerate([((), ()), (("places",), ()), (("total",), ("speed",))]):
        stream = ProductStream(channel)
        at = pb.LinearizePoint(function="swing", inputs=inputs, outputs=outputs, wrt=wrt)
        stream.send(
            product(0, HVP, np.ones(SIZE)), product(1, VJP, np.ones(SIZE), "places"), product(2, JVP, 1.0, "speed"),
            point=at,
        )  # fmt: skip
        stream.opened()
        refused |= {10 * index + one.id: reason(one) for one in stream.rest() if one.HasField("error")}
    assert refused == {0: "REASON_NOT_SCALAR", 10: "REASON_NOT_SCALAR", 20: "REASON_INVALID_VECTOR",
                       21: "REASON_INVALID_VECTOR"}  # fmt: skip


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([pb.LinearizeRequest()], "MALFORMED_REQUEST"),
        ([pb.LinearizeRequest(products=[product(1, HVP, X)])], "MALFORMED_REQUEST"),
        ([pb.LinearizeRequest(point=AT)] * 2, "MALFORMED_REQUEST"),
        ([], "MALFORMED_REQUEST"),
        ([b"\xff"], "MALFORMED_REQUEST"),
        ([delimited(1, b"\x0a\x05")], "MALFORMED_REQUEST"),
        ([pb.LinearizeRequest(point=AT), delimited(2, b"\x08")], "MALFORMED_REQUEST"),
        ([pb.LinearizeRequest(point=point("nope", X))], "FUNCTION_NOT_FOUND"),
        ([pb.LinearizeRequest(point=point("rosenbrock", X, wrt=["y"]))], "UNKNOWN_INPUT"),
        (
            [pb.LinearizeRequest(point=pb.LinearizePoint(
                function="rosenbrock", inputs=[named("x", [X], batched=True)]))],
            "INVALID_BATCH",
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_with_the_point_ends_the_stream(
    channel: grpc.Channel, messages: list[Any], expected: str
) -> None:
    call: Any = channel.stream_stream(METHOD)
    data = [message if isinstance(message, bytes) else message.SerializeToString() for message in messages]

    with pytest.raises(grpc.RpcError) as caught:
        list(call(iter(data)))

    assert reason_of(caught.value) == expected


def test_the_point_may_come_after_the_products_of_its_message(channel: grpc.Channel) -> None:
    call: Any = channel.stream_stream(METHOD, None, pb.LinearizeResponse.FromString)
    message = delimited(2, product(3, HVP, [1.0, 0.0]).SerializeToString()) + delimited(1, AT.SerializeToString())

    first, *others = call(iter([message]))

    assert first.HasField("opened")
    (answer,) = [answer for response in (first, *others) for answer in response.answers]
    assert array(answer.products[0]).tolist() == [402.0, -400.0]


class Held:
    """Products whose program is compiled once it is released: they wait until then.

    Attributes:
        stream: theirs.
        size: of x, which no others may have had.
    """

    def __init__(self, channel: grpc.Channel, scratch: Path, size: int, products: int = 1) -> None:
        self.size = size
        self.stream = ProductStream(channel)
        self.stream.send(point=point("waiting", np.full(size, 2.0)))
        self.stream.opened()
        self.stream.send(*(product(identity, JVP, np.full(size, 1.0)) for identity in range(1, 1 + products)))
        # Opening the FIFO for writing returns once the trace has opened it for reading: the products wait.
        self._writer = (scratch / "gate").open("w")

    def release(self) -> None:
        """Lets the compilation go on."""
        self._writer.close()


def settle(stream: ProductStream) -> None:
    """Returns once the server has read all that was sent before."""
    stream.send(product(999, JVP, [1, 2]))
    assert [(answer.id, reason(answer)) for answer in stream.take(1)] == [(999, "REASON_WRONG_SHAPE")]


def test_products_are_answered_as_they_are_done_and_an_id_in_use_is_refused(
    channel: grpc.Channel, scratch: Path
) -> None:
    held = Held(channel, scratch, 1001)
    held.stream.send(product(1, VJP, 1.0, "value"), product(2, JVP, [1, 2]))

    assert [(answer.id, reason(answer)) for answer in held.stream.take(2)] == [
        (1, "REASON_DUPLICATE_NAME"), (2, "REASON_WRONG_SHAPE"),
    ]  # fmt: skip
    held.release()
    (last,) = held.stream.rest()
    assert (last.id, array(last.products[0]).tolist()) == (1, 4.0 * 1001)


def test_two_callers_at_two_points_of_a_light_function_ride_together(process: ServerProcess, scratch: Path) -> None:
    """While their program is compiled, products of two connections wait in the lane of their query."""
    with (
        grpc.insecure_channel(process.address, options=ALONE) as one,
        grpc.insecure_channel(process.address, options=ALONE) as two,
    ):
        held = Held(one, scratch, 1002, products=3)  # the program is for four points
        other = ProductStream(two)
        other.send(product(1, JVP, np.full(1002, 0.5)), point=point("waiting", np.full(1002, -1.0)))
        other.opened()
        settle(other)
        held.release()

        (mine,) = other.rest()
        theirs = held.stream.rest()

    assert array(mine.products[0]).tolist() == -1002.0
    assert [array(answer.products[0]).tolist() for answer in theirs] == [4.0 * 1002] * 3
    assert {answer.execution.batch_points for answer in (mine, *theirs)} == {4}


def test_what_waits_is_let_go_of_with_its_stream(process: ServerProcess, channel: grpc.Channel, scratch: Path) -> None:
    held = Held(channel, scratch, 1003, products=5)
    held.stream.call.cancel()
    await_nothing(process, channel)
    held.release()
    stream = ProductStream(channel)
    stream.send(product(1, JVP, np.ones(1003)), point=point("waiting", np.ones(1003)))
    stream.opened()
    assert [array(answer.products[0]).tolist() for answer in stream.rest()] == [2.0 * 1003]


def kept(process: ServerProcess, stream: ProductStream, operators: dict[Any, str], size: int = SIZE) -> None:
    """Asks for products until their linearisations are kept."""
    identity = 10**6
    for operator, name in operators.items():
        before = gauges(process)["nablad_linearization_bytes"]
        while gauges(process)["nablad_linearization_bytes"] == before:
            identity += 1
            vector = 1.0 if name in {"value", "total"} else np.ones(size)
            stream.send(product(identity, operator, vector, name))
            assert [reason(answer) for answer in stream.take(1)] == [""]


def test_products_of_what_is_kept_are_right(process: ServerProcess, channel: grpc.Channel) -> None:
    x = np.random.default_rng(1).normal(size=SIZE)
    stream = ProductStream(channel)
    stream.send(point=point("pendulums", x))
    stream.opened()
    kept(process, stream, {HVP: "x", JVP: "x", VJP: "value"})
    vectors = np.random.default_rng(2).normal(size=(40, SIZE))

    stream.send(
        *(product(identity, HVP, vectors[identity]) for identity in range(40)),
        product(50, HVP, vectors[:5], stacked=True),
        product(51, JVP, vectors[:3], stacked=True), product(52, JVP, vectors[0]),
        product(53, VJP, [2.0, 3.0], "value", stacked=True), product(54, VJP, -1.0, "value"),
    )  # fmt: skip

    answers = by_id(stream.take(45))
    hvps, gradient = energy_products(x, vectors), energy_gradient(x)
    singles = np.stack([array(answers[identity].products[0]) for identity in range(40)])
    for found, expected in (
        (singles, hvps), (array(answers[50].products[0]), hvps[:5]),
        (array(answers[51].products[0]), vectors[:3] @ gradient),
        (array(answers[52].products[0]), vectors[0] @ gradient),
        (array(answers[53].products[0]), np.outer([2.0, 3.0], gradient)),
        (array(answers[54].products[0]), -gradient),
    ):  # fmt: skip
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-11 * np.max(np.abs(expected)))
    together = 0
    while together < 2:  # once a program for several vectors is ready, they ride together
        stream.send(*(product(identity, HVP, vectors[identity]) for identity in range(40)))
        answers = by_id(stream.take(40))
        together = max(answer.execution.batch_points for answer in answers.values())
    riding = np.stack([array(answers[identity].products[0]) for identity in range(40)])
    np.testing.assert_allclose(riding, hvps, rtol=0, atol=1e-11 * np.max(np.abs(hvps)))
    assert stream.rest() == []


def test_a_stream_that_ends_or_breaks_keeps_nothing(process: ServerProcess, channel: grpc.Channel) -> None:
    x = np.linspace(-1.0, 1.0, SIZE)
    for ends in (lambda stream: stream.rest(), lambda stream: stream.call.cancel()):
        stream = ProductStream(channel)
        stream.send(point=point("pendulums", x))
        stream.opened()
        kept(process, stream, {HVP: "x"})
        assert gauges(process)["nablad_linearizations"] == 1
        assert gauges(process)["nablad_linearization_bytes"] >= 200 * SIZE * 8
        ends(stream)
        await_nothing(process, channel)


def await_nothing(process: ServerProcess, channel: grpc.Channel) -> None:
    """Reads until the server has dealt with the end of every stream: a call after it may be dealt with before."""
    call: Any = channel.unary_unary("/nablad.v1.DifferentiationService/Gradient")
    request = pb.GradientRequest(function="rosenbrock", inputs=[named("x", X)]).SerializeToString()
    while gauges(process) != {"nablad_linearizations": 0.0, "nablad_linearization_bytes": 0.0}:
        call(request)


def test_a_caller_may_have_few_and_others_theirs(tmp_path: Path) -> None:
    path = tmp_path / "identities.toml"
    write_identities(path, [{"name": name, "tokens": [name], "roles": ["evaluate"]} for name in (ONE, OTHER)])
    with (
        ServerProcess("--tokens", path, "--linearizations-per-caller", str(PER_CALLER)) as process,
        grpc.insecure_channel(process.address) as channel,
        grpc.insecure_channel(process.address, options=ALONE) as another_connection,
    ):
        streams = [ProductStream(channel, token=ONE) for _ in range(PER_CALLER)]
        for stream in streams:
            stream.send(point=AT)
            stream.opened()
        one_more = ProductStream(another_connection, token=ONE)
        one_more.send(point=AT)
        assert ended(one_more) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_LINEARIZATIONS")

        stream = ProductStream(channel, token=OTHER)
        stream.send(product(1, HVP, [1.0, 0.0]), point=AT)
        stream.opened()
        assert [array(answer.products[0]).tolist() for answer in stream.rest()] == [[402.0, -400.0]]

        assert [stream.rest() for stream in streams] == [[]] * PER_CALLER
        refused = True  # until the server has dealt with an end
        while refused:
            again = ProductStream(channel, token=ONE)
            again.send(point=AT)
            try:
                assert array(again.opened().values[0]).tolist() == 100.0
            except grpc.RpcError as error:
                assert reason_of(error) == "TOO_MANY_LINEARIZATIONS"  # noqa: PT017 - it may be let in, too
            else:
                refused = False
                again.rest()
        assert process.errors() == []


def test_an_idle_stream_expires_and_a_busy_one_does_not(scratch: Path) -> None:
    options = ("--linearization-idle-seconds", "0.5", "--metrics-address", "127.0.0.1:0")
    with (
        ServerProcess(FUNCTIONS, *options, env={"NABLAD_TEST_SCRATCH": str(scratch)}) as process,
        grpc.insecure_channel(process.address) as channel,
    ):
        held = Held(channel, scratch, 1000)
        idle = ProductStream(channel)
        idle.send(point=point("waiting", np.ones(1000)))  # whose value is compiled already
        assert idle.opened().idle_seconds == 0.5

        assert ended(idle) == (grpc.StatusCode.FAILED_PRECONDITION, "LINEARIZATION_EXPIRED")

        held.release()
        assert [array(answer.products[0]).tolist() for answer in held.stream.take(1)] == [4000.0]
        assert ended(held.stream) == (grpc.StatusCode.FAILED_PRECONDITION, "LINEARIZATION_EXPIRED")
        await_nothing(process, channel)
        assert process.errors() == []


def test_what_does_not_fit_is_computed_by_itself() -> None:
    options = ("--linearization-bytes", "1000", "--metrics-address", "127.0.0.1:0")
    x = np.linspace(-1.0, 1.0, SIZE)
    with ServerProcess(FUNCTIONS, *options) as process, nablad.Client(process.address) as client:
        (expected,) = energy_products(x, [x])
        with client.linearize("pendulums", x) as at:
            for _ in range(100):
                np.testing.assert_allclose(at.hvp(x), expected, rtol=0, atol=1e-11 * np.max(np.abs(expected)))
        assert gauges(process)["nablad_linearization_bytes"] == 0
        assert process.errors() == []


def test_a_server_that_drains_sends_its_callers_elsewhere_and_exits_0() -> None:
    with ServerProcess() as process, grpc.insecure_channel(process.address) as channel:
        stream = ProductStream(channel)
        stream.send(product(1, HVP, [1.0, 0.0]), point=AT)
        stream.opened()
        stream.take(1)
        process.terminate()

        assert ended(stream) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")

        assert process.stop() == 0
        assert process.errors() == []
