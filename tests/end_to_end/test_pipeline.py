"""Pipeline: many operations over one stream of a real server, by a client that speaks the wire itself."""

import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from serving.test_bad_input import BAD

import nablad
from end_to_end.pipelines import METHOD, Stream, array, evaluate, gradient, named
from nablad import errors
from nablad.framing import delimited, tag, varint
from nablad.v1 import catalog_pb2, error_pb2
from nablad.v1 import differentiation_pb2 as pb
from nablad.v1.catalog_pb2_grpc import CatalogServiceStub
from servers import ServerProcess

FUNCTIONS = Path(__file__).parent / "user_functions.py"
MALFORMED = b"\xff"


@pytest.fixture
def channel(server_address: str) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server_address) as opened:
        yield opened


def by_id(answers: Iterable[pb.Answer]) -> dict[int, pb.Answer]:
    """Answers by their ids; every id is answered once."""
    found: dict[int, pb.Answer] = {}
    for answer in answers:
        assert answer.id not in found, "answered twice"
        found[answer.id] = answer
    return found


def reason(answer: pb.Answer) -> str:
    """Why an operation failed; empty if it did not."""
    return error_pb2.Reason.Name(answer.error.reason) if answer.HasField("error") else ""


# Rosenbrock's function 100(y − x²)² + (1 − x)² at (1, 2): value 100, gradient (−400, 200).
X = named("x", [1.0, 2.0])
HESSIAN = [[402.0, -400.0], [-400.0, 200.0]]
ROSENBROCK: dict[str, Any] = {"function": "rosenbrock", "inputs": [X]}

OPERATIONS: dict[str, tuple[pb.Operation, Callable[[Any], list[Any]], list[Any]]] = {
    "evaluate": (
        pb.Operation(evaluate=pb.EvaluateRequest(**ROSENBROCK)),
        lambda r: [array(r.values[0])], [100.0]),
    "gradient": (
        pb.Operation(gradient=pb.GradientRequest(**ROSENBROCK)),
        lambda r: [array(r.values[0]), array(r.gradients[0])], [100.0, [-400.0, 200.0]]),
    "jacobian": (
        pb.Operation(jacobian=pb.JacobianRequest(**ROSENBROCK)),
        lambda r: [array(r.blocks[0]), [r.blocks[0].row == "value", r.blocks[0].column == "x"]],
        [[-400.0, 200.0], [True, True]]),
    "hessian": (
        pb.Operation(hessian=pb.HessianRequest(**ROSENBROCK)),
        lambda r: [array(r.gradients[0]), array(r.blocks[0])], [[-400.0, 200.0], HESSIAN]),
    "hvp": (
        pb.Operation(hvp=pb.HvpRequest(tangents=[named("x", [1.0, 0.0])], **ROSENBROCK)),
        lambda r: [array(r.products[0])], [[402.0, -400.0]]),
    "jvp": (
        pb.Operation(jvp=pb.JvpRequest(tangents=[named("x", [1.0, 1.0])], **ROSENBROCK)),
        lambda r: [array(r.products[0])], [-200.0]),
    "vjp": (
        pb.Operation(vjp=pb.VjpRequest(cotangents=[named("value", 2.0)], **ROSENBROCK)),
        lambda r: [array(r.products[0])], [[-800.0, 400.0]]),
    "directional_derivative": (
        pb.Operation(directional_derivative=pb.DirectionalDerivativeRequest(
            direction=[named("x", [3.0, 4.0])], **ROSENBROCK)),
        lambda r: [array(r.derivative), array(r.max_rate), array(r.steepest_ascent[0])],
        [-80.0, np.sqrt(200_000.0), [-2 / np.sqrt(5), 1 / np.sqrt(5)]]),
    "derivative": (
        pb.Operation(derivative=pb.DerivativeRequest(function="sin", inputs=[named("x", 0.5)], order=3)),
        lambda r: [array(r.derivatives[0])], [[np.cos(0.5), -np.sin(0.5), -np.cos(0.5)]]),
}  # fmt: skip


def with_id(operation: pb.Operation, identity: int) -> pb.Operation:
    copied = pb.Operation()
    copied.CopyFrom(operation)
    copied.id = identity
    return copied


def test_all_operators_in_one_message(channel: grpc.Channel) -> None:
    stream = Stream(channel)
    identities = {name: 2**63 + 10 * index for index, name in enumerate(OPERATIONS)}

    stream.send(*(with_id(operation, identities[name]) for name, (operation, *_) in OPERATIONS.items()))

    answers = by_id(stream.rest())
    assert set(answers) == set(identities.values())
    for name, (_, numbers, expected) in OPERATIONS.items():
        answer = answers[identities[name]]
        assert answer.WhichOneof("response") == name, answer
        for found, want in zip(numbers(getattr(answer, name)), expected, strict=True):
            np.testing.assert_allclose(found, want, rtol=1e-14)
    assert stream.call.code() is grpc.StatusCode.OK


def test_an_answer_is_what_a_call_would_have_been(channel: grpc.Channel, client: nablad.Client) -> None:
    points = np.random.default_rng(0).normal(size=(7, 3))
    request = pb.GradientRequest(function="rosenbrock", inputs=[named("x", points, batched=True)])
    stream = Stream(channel)

    stream.send(pb.Operation(id=1, gradient=request))

    (answer,) = stream.rest()
    call: Any = channel.unary_unary(METHOD.replace("Pipeline", "Gradient"))
    alone = pb.GradientResponse.FromString(call(request.SerializeToString()))
    by_client = client.gradient("rosenbrock", points, batched=True)
    for tensors, expected in (
        (zip(answer.gradient.values, alone.values, strict=True), by_client.value),
        (zip(answer.gradient.gradients, alone.gradients, strict=True), by_client.gradient),
    ):
        for found, other in tensors:
            # Which programs ran, and so how they rounded, may differ.
            scale = np.max(np.abs(expected))
            np.testing.assert_allclose(array(found), expected, rtol=0, atol=64 * np.finfo(float).eps * scale)
            np.testing.assert_allclose(array(other), expected, rtol=0, atol=64 * np.finfo(float).eps * scale)
            for each in (found, other):
                each.tensor.ClearField("data")
            assert found == other
    assert answer.gradient.execution.function == alone.execution.function == "rosenbrock@1"


def test_a_stream_of_many_messages_goes_on(channel: grpc.Channel) -> None:
    stream = Stream(channel)
    for index in range(50):
        x = float(index)
        stream.send(*(gradient(identity, [x, x]) for identity in range(4)))
        answers = by_id(stream.take(4))  # so that the ids are free again
        assert set(answers) == set(range(4))
        for answer in answers.values():
            assert array(answer.gradient.gradients[0]).tolist() == [
                -400 * x * (x - x**2) - 2 * (1 - x),
                200 * (x - x**2),
            ]
    assert stream.rest() == []


def test_half_closing_at_once_answers_all_and_ends_with_ok(channel: grpc.Channel) -> None:
    stream = Stream(channel)
    stream.send(*(gradient(identity, np.full(2 + identity % 9, 1.0)) for identity in range(300)))

    answers = by_id(stream.rest())

    assert set(answers) == set(range(300))
    assert {reason(answer) for answer in answers.values()} == {""}
    assert stream.call.code() is grpc.StatusCode.OK


def test_a_stream_on_which_nothing_is_sent_ends_with_ok(channel: grpc.Channel) -> None:
    stream = Stream(channel)
    assert stream.rest() == []
    assert stream.call.code() is grpc.StatusCode.OK

    stream = Stream(channel)
    stream.send()
    assert stream.rest() == []
    assert stream.call.code() is grpc.StatusCode.OK


def test_each_wrong_operation_fails_as_its_call_would_and_harms_no_neighbour(channel: grpc.Channel) -> None:
    """Every request of which a call is refused, in one message, each between two good ones."""
    operations, expected = [], {}
    for index, bad in enumerate(BAD.values()):
        field = re.sub("(?<!^)(?=[A-Z])", "_", bad.method).lower()
        operations += [gradient(2 * index, [1.0, 2.0]), pb.Operation(id=2 * index + 1, **{field: bad.request})]
        expected[2 * index + 1] = (bad.code.value[0], f"REASON_{bad.reason}", bad.field)
    stream = Stream(channel)

    stream.send(*operations)

    answers = by_id(stream.rest())
    assert len(answers) == len(operations)
    for identity, answer in answers.items():
        if identity in expected:
            assert (answer.error.code, reason(answer), answer.error.field) == expected[identity]
            assert answer.error.message != ""
        else:
            assert array(answer.gradient.gradients[0]).tolist() == [-400.0, 200.0]


@pytest.mark.parametrize("number", range(3, 12))
def test_a_malformed_request_is_its_operations_error_alone(channel: grpc.Channel, number: int) -> None:
    broken = delimited(1, tag(1, 0) + varint(5) + delimited(number, MALFORMED))
    good = pb.PipelineRequest(operations=[gradient(6, [1.0, 2.0])]).SerializeToString()
    call: Any = channel.stream_stream(METHOD, None, pb.PipelineResponse.FromString)

    answers = by_id(answer for response in call(iter([broken + good])) for answer in response.answers)

    assert {identity: reason(answer) for identity, answer in answers.items()} == {5: "REASON_MALFORMED_REQUEST", 6: ""}


def test_not_a_number_is_a_result(channel: grpc.Channel) -> None:
    stream = Stream(channel)
    stream.send(gradient(1, [np.nan, 1.0]), gradient(2, [1.0, 2.0]))

    answers = by_id(stream.rest())

    assert answers[1].gradient.gradients[0].non_finite
    assert not np.isfinite(array(answers[1].gradient.gradients[0])).any()
    assert not answers[2].gradient.gradients[0].non_finite
    assert array(answers[2].gradient.gradients[0]).tolist() == [-400.0, 200.0]


def test_an_operation_that_asks_for_nothing_is_told_so(channel: grpc.Channel) -> None:
    stream = Stream(channel)
    stream.send(pb.Operation(id=3), gradient(4, [1.0, 2.0]))

    answers = by_id(stream.rest())

    assert (reason(answers[3]), reason(answers[4])) == ("REASON_INVALID_OPTION", "")


@pytest.mark.parametrize("data", [b"\xff", b"\x0a\x05", delimited(1, b"\x08"), delimited(2, b"\x80")])
def test_a_malformed_message_ends_its_stream_and_no_other(channel: grpc.Channel, data: bytes) -> None:
    other = Stream(channel)
    raw: Any = channel.stream_stream(METHOD)
    other.send(gradient(1, [1.0, 2.0]))
    other.take(1)

    with pytest.raises(grpc.RpcError) as caught:
        list(raw(iter([data])))

    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    info = error_details_pb2.ErrorInfo()
    assert rpc_status.from_call(caught.value).details[0].Unpack(info)
    assert info.reason == "MALFORMED_REQUEST"
    other.send(gradient(2, [1.0, 2.0]))
    assert [answer.id for answer in other.rest()] == [2]


def test_unknown_fields_are_passed_over(channel: grpc.Channel) -> None:
    operation = gradient(8, [1.0, 2.0]).SerializeToString()
    message = tag(99, 0) + varint(7) + delimited(1, delimited(98, b"new") + operation + tag(97, 5) + bytes(4))
    call: Any = channel.stream_stream(METHOD, None, pb.PipelineResponse.FromString)

    (answer,) = [answer for response in call(iter([message])) for answer in response.answers]

    assert (answer.id, array(answer.gradient.gradients[0]).tolist()) == (8, [-400.0, 200.0])


def test_a_deadline_that_passes_at_once_is_the_operations_own(channel: grpc.Channel) -> None:
    stream = Stream(channel)
    stream.send(gradient(1, [1.0, 2.0]))
    stream.take(1)  # compiled

    stream.send(gradient(1, [1.0, 2.0], timeout=1), gradient(2, [1.0, 2.0], timeout=10**12), gradient(3, [1.0, 2.0]))

    answers = by_id(stream.rest())
    assert {identity: reason(answer) for identity, answer in answers.items()} == {
        1: "REASON_DEADLINE_EXCEEDED", 2: "", 3: "",
    }  # fmt: skip
    assert answers[1].error.code == grpc.StatusCode.DEADLINE_EXCEEDED.value[0]


STREAMS, MESSAGES, EACH = 4, 50, 50
"""Four streams have no more operations open than the queue holds, however long compiling takes."""


def test_ten_thousand_operations_of_mixed_kinds_from_several_streams(server_address: str) -> None:
    together = threading.Barrier(STREAMS)

    def asked(stream: int, identity: int) -> pb.Operation:
        x = _point(stream, identity)
        match identity % 4:
            case 0:
                return gradient(identity, [x, 1.0])
            case 1:
                return evaluate(identity, "sin", x)
            case 2:
                request = pb.DerivativeRequest(function="exp", inputs=[named("x", x)], order=2)
                return pb.Operation(id=identity, derivative=request)
        hvp = pb.HvpRequest(
            function="sum_of_squares", inputs=[named("x", [x] * 3)], tangents=[named("x", [x, 1.0, 0.0])]
        )
        return pb.Operation(id=identity, hvp=hvp)

    def right(stream: int, answer: pb.Answer) -> bool:
        x = _point(stream, answer.id)
        found: Any
        match answer.id % 4:
            case 0:
                found = array(answer.gradient.gradients[0])
                expected = [-400 * x * (1 - x**2) - 2 * (1 - x), 200 * (1 - x**2)]
            case 1:
                found, expected = array(answer.evaluate.values[0]), [np.sin(x)]
            case 2:
                found, expected = array(answer.derivative.derivatives[0]), [np.exp(x)] * 2
            case _:
                found, expected = array(answer.hvp.products[0]), [2 * x, 2.0, 0.0]
        return np.allclose(found, expected, rtol=1e-13, atol=1e-12)

    def run(number: int) -> int:
        with grpc.insecure_channel(server_address) as channel:
            stream = Stream(channel)
            together.wait(60)
            for message in range(MESSAGES):
                stream.send(*(asked(number, message * EACH + index) for index in range(EACH)))
            answers = by_id(stream.rest())
            assert set(answers) == set(range(MESSAGES * EACH))
            assert {reason(answer) for answer in answers.values()} == {""}
            assert all(right(number, answer) for answer in answers.values())
            return len(answers)

    with ThreadPoolExecutor(STREAMS) as pool:
        assert sum(pool.map(run, range(STREAMS))) == 10_000


def _point(stream: int, identity: int) -> float:
    """Different for every operation of every stream, and exact."""
    return (stream * 4096 + identity) / 65536


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pipeline")
    os.mkfifo(path / "gate")
    return path


@pytest.fixture(scope="module")
def user_server(scratch: Path) -> Iterator[ServerProcess]:
    """A server of the user's functions whose one worker for heavy work one held execution occupies."""
    options = ("--workers", "1", "--queue-calls", "4")
    with ServerProcess(FUNCTIONS, *options, env={"NABLAD_TEST_SCRATCH": str(scratch)}) as process:
        yield process
        assert process.errors() == []


@pytest.fixture
def user_channel(user_server: ServerProcess) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(user_server.address) as opened:
        yield opened


class Hold:
    """An operation that occupies the worker for heavy work until it is released."""

    def __init__(self, stream: Stream, scratch: Path, identity: int) -> None:
        stream.send(evaluate(identity, "held", 1000.0))
        # Opening the FIFO for writing returns once the execution has opened it for reading: the worker is occupied.
        self._writer = (scratch / "gate").open("w")

    def release(self) -> None:
        """Lets the execution go on."""
        self._writer.close()


def executed(scratch: Path) -> list[float]:
    return [float(line) for line in (scratch / "executions").read_text().split()]


def settle(stream: Stream) -> None:
    """Returns once the server has read all that was sent before."""
    stream.send(gradient(999, [1.0, 2.0]))
    assert [answer.id for answer in stream.take(1)] == [999]


def test_answers_come_in_the_order_in_which_they_are_done(user_channel: grpc.Channel, scratch: Path) -> None:
    stream = Stream(user_channel)
    hold = Hold(stream, scratch, 1)
    for identity in (2, 3):
        stream.send(gradient(identity, [1.0, 2.0]))
        assert [answer.id for answer in stream.take(1)] == [identity]
    hold.release()

    (last,) = stream.rest()
    assert (last.id, array(last.evaluate.values[0]).tolist()) == (1, 1000.0)


def test_an_id_in_use_is_refused_and_its_first_owner_answered(user_channel: grpc.Channel, scratch: Path) -> None:
    stream = Stream(user_channel)
    hold = Hold(stream, scratch, 7)
    stream.send(gradient(7, [1.0, 2.0]), gradient(8, [1.0, 2.0]))

    refused, neighbour = sorted(stream.take(2), key=lambda answer: answer.id)
    assert (refused.id, reason(refused)) == (7, "REASON_DUPLICATE_NAME")
    assert (neighbour.id, reason(neighbour)) == (8, "")
    hold.release()

    (last,) = stream.take(1)
    assert (last.id, array(last.evaluate.values[0]).tolist()) == (7, 1000.0)
    stream.send(gradient(7, [1.0, 2.0]))  # free again
    assert [reason(answer) for answer in stream.rest()] == [""]


def test_work_past_its_operations_deadline_is_never_done(
    user_channel: grpc.Channel, user_server: ServerProcess, scratch: Path
) -> None:
    stream = Stream(user_channel)
    hold = Hold(stream, scratch, 1)
    stream.send(evaluate(2, "held", 21.0, timeout=200_000_000), evaluate(3, "held", 22.0))
    settle(stream)
    with nablad.Client(user_server.address) as client, pytest.raises(errors.DeadlineExceeded):
        client.evaluate("held", 23.0, timeout=1.0)  # later than the operation's deadline by far
    hold.release()

    answers = by_id(stream.rest())

    assert {identity: reason(answer) for identity, answer in answers.items()} == {
        1: "", 2: "REASON_DEADLINE_EXCEEDED", 3: "",
    }  # fmt: skip
    assert 21.0 not in executed(scratch)
    assert 22.0 in executed(scratch)


def test_waiting_work_that_is_cancelled_is_never_done_nor_answered(user_channel: grpc.Channel, scratch: Path) -> None:
    sending: list[bytes] = []
    ready = threading.Semaphore(0)

    def messages() -> Iterator[bytes]:
        while True:
            ready.acquire()
            if not sending:
                return
            yield sending.pop(0)

    def send(message: pb.PipelineRequest | bytes) -> None:
        sending.append(message if isinstance(message, bytes) else message.SerializeToString())
        ready.release()

    begin: Any = user_channel.stream_stream(METHOD, None, pb.PipelineResponse.FromString)
    call = begin(messages())
    send(pb.PipelineRequest(operations=[evaluate(1, "held", 1000.0)]))
    writer = (scratch / "gate").open("w")
    send(pb.PipelineRequest(operations=[evaluate(10 + index, "held", 30.0 + index) for index in range(4)]))
    packed = pb.PipelineRequest(cancelled_ids=[10, 12345])
    assert packed.SerializeToString()[0] == tag(2, 2)[0]
    send(packed)
    send(tag(2, 0) + varint(11) + tag(2, 0) + varint(12))
    send(tag(2, 5) + bytes([13] * 4))  # four bytes under the number of a list of ids are unknown, and not 13
    send(pb.PipelineRequest(operations=[gradient(2, [1.0, 2.0])]))
    assert [answer.id for answer in next(call).answers] == [2]

    writer.close()
    ready.release()

    assert {answer.id for response in call for answer in response.answers} == {1, 13}
    assert {30.0, 31.0, 32.0}.isdisjoint(executed(scratch))
    assert 33.0 in executed(scratch)


def test_a_request_that_comes_in_parts_is_the_whole_of_them(channel: grpc.Channel) -> None:
    whole = gradient(1, [1.0, 2.0]).gradient
    function = pb.GradientRequest(function=whole.function).SerializeToString()
    inputs = pb.GradientRequest(inputs=whole.inputs).SerializeToString()
    number = pb.Operation.GRADIENT_FIELD_NUMBER
    other = pb.Operation(hessian=pb.HessianRequest(**ROSENBROCK)).SerializeToString()
    for parts, fitting in (
        (delimited(number, function) + delimited(number, inputs), True),
        (other + delimited(number, function) + delimited(number, inputs), True),  # of different ones the last counts
        (delimited(number, function) + other + delimited(number, inputs), False),
    ):
        operation = pb.Operation(id=7).SerializeToString() + parts
        begin: Any = channel.stream_stream(METHOD, None, pb.PipelineResponse.FromString)
        (response,) = begin(iter([delimited(pb.PipelineRequest.OPERATIONS_FIELD_NUMBER, operation)]))
        (answer,) = response.answers
        assert pb.Operation.FromString(operation).gradient.function == ("rosenbrock" if fitting else "")
        assert answer.WhichOneof("response") == ("gradient" if fitting else "error")
        assert answer.id == 7
        if fitting:
            assert array(answer.gradient.gradients[0]).tolist() == [-400.0, 200.0]


def test_an_id_that_was_cancelled_is_free_again(user_channel: grpc.Channel, scratch: Path) -> None:
    stream = Stream(user_channel)
    hold = Hold(stream, scratch, 1)
    stream.send(evaluate(2, "held", 41.0))
    stream.send(gradient(2, [1.0, 2.0]), cancelled=[2])  # operations of a message begin as they stand in it
    stream.send(gradient(3, [1.0, 2.0]))
    answers = {answer.id: answer for answer in stream.take(2)}
    assert (reason(answers[2]), reason(answers[3])) == ("REASON_DUPLICATE_NAME", "")
    stream.send(gradient(2, [1.0, 2.0]))
    assert [reason(answer) for answer in stream.take(1)] == [""]
    hold.release()

    assert [answer.id for answer in stream.rest()] == [1]
    assert 41.0 not in executed(scratch)


def test_when_a_stream_is_cancelled_its_waiting_work_is_dropped(
    user_channel: grpc.Channel, user_server: ServerProcess, scratch: Path
) -> None:
    holder, doomed = Stream(user_channel), Stream(user_channel)
    hold = Hold(holder, scratch, 1)
    doomed.send(*(evaluate(index, "held", 50.0 + index) for index in range(4)))
    settle(doomed)
    with nablad.Client(user_server.address, retries=False) as client:
        # The queue holds four, and those are in it.
        with pytest.raises(errors.QueueFull):
            client.evaluate("held", 60.0, timeout=10)
        doomed.call.cancel()
        while True:  # until the server has noticed, and there is room
            try:
                client.evaluate("held", 61.0, timeout=0.1)
            except errors.QueueFull:
                continue
            except errors.DeadlineExceeded:
                break
    hold.release()

    assert [answer.id for answer in holder.rest()] == [1]
    assert {50.0, 51.0, 52.0, 53.0}.isdisjoint(executed(scratch))


def test_a_full_queue_is_the_operations_error_and_says_when_to_retry(user_channel: grpc.Channel, scratch: Path) -> None:
    stream = Stream(user_channel)
    hold = Hold(stream, scratch, 1)
    stream.send(*(evaluate(10 + index, "held", 70.0 + index) for index in range(6)))

    refused = stream.take(2)
    assert [reason(answer) for answer in refused] == ["REASON_QUEUE_FULL"] * 2
    assert [answer.error.retry_after.ToMilliseconds() for answer in refused] == [100, 100]
    assert [answer.id for answer in refused] == [14, 15]
    hold.release()
    assert {answer.id for answer in stream.rest()} == {1, 10, 11, 12, 13}


def test_operations_while_the_server_drains_are_sent_elsewhere_and_it_exits_0(scratch: Path) -> None:
    with (
        ServerProcess(FUNCTIONS, "--workers", "1", env={"NABLAD_TEST_SCRATCH": str(scratch)}) as process,
        grpc.insecure_channel(process.address) as channel,
    ):
        stream = Stream(channel)
        hold = Hold(stream, scratch, 1)
        process.terminate()
        process.wait_for("draining")
        answer = pb.Answer()
        while not answer.HasField("error"):  # the log says so a moment before the gate closes
            stream.send(gradient(2, [1.0, 2.0]))
            (answer,) = stream.take(1)
        assert (answer.id, reason(answer)) == (2, "REASON_DRAINING")
        assert answer.error.code == grpc.StatusCode.UNAVAILABLE.value[0]
        hold.release()

        (last,) = stream.take(1)
        assert (last.id, array(last.evaluate.values[0]).tolist()) == (1, 1000.0)
        with pytest.raises(grpc.RpcError) as caught:
            stream.take(1)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        stream.end()
        assert process.stop() == 0
        assert process.log[-1]["event"] == "stopped"
        assert process.errors() == []


SIDE, DEAF = 200, 400
RESULT_BYTES = 8 * SIDE * SIDE


def gradient_of_sine(identity: int) -> pb.Operation:
    request = pb.GradientRequest(function="sin", inputs=[named("x", 0.001 * identity)])
    return pb.Operation(id=identity, gradient=request)


def test_a_message_with_more_operations_than_a_stream_may_hold_is_answered_bit_by_bit() -> None:
    with ServerProcess("--stream-operations", "16") as server, grpc.insecure_channel(server.address) as channel:
        stream = Stream(channel)
        nothing = [pb.Operation(id=identity) for identity in range(500, 600)]
        stream.send(*(gradient_of_sine(identity) for identity in range(500)), *nothing)

        answers = by_id(stream.rest())

        assert sorted(answers) == list(range(600))
        for identity in range(500):
            found = array(answers[identity].gradient.gradients[0])
            np.testing.assert_allclose(found, np.cos(0.001 * identity), rtol=1e-12)
        assert {reason(answers[identity]) for identity in range(500, 600)} == {"REASON_INVALID_OPTION"}
        assert server.errors() == []


def test_a_client_that_never_reads_holds_up_itself_alone() -> None:
    options = ("--stream-bytes", "65536", "--stream-operations", "32")
    with ServerProcess(*options) as process, grpc.insecure_channel(process.address) as channel:
        with nablad.Client(process.address) as client:
            client.hessian("rosenbrock", np.ones(SIDE))
            before = resident_bytes(process)
            stream = Stream(channel)
            request = pb.HessianRequest(function="rosenbrock", inputs=[named("x", np.ones(SIDE))])
            for identity in range(DEAF):
                stream.send(pb.Operation(id=identity, hessian=request))

            # The server is at rest once as much was done as before, with others served meanwhile.
            done, earlier = hessians_done(channel), -1
            while done != earlier:
                earlier = done
                for _ in range(200):
                    client.gradient("rosenbrock", [1.0, 2.0])
                done = hessians_done(channel)

            assert done * RESULT_BYTES < 40 << 20, "not what was sent, but what was taken, bounds what is done"
            assert resident_bytes(process) - before < 96 << 20
            answers = by_id(stream.rest())
        assert set(answers) == set(range(DEAF))
        assert {reason(answer) for answer in answers.values()} == {""}
        assert process.errors() == []


def hessians_done(channel: grpc.Channel) -> int:
    statistics = CatalogServiceStub(channel).GetStatistics(catalog_pb2.GetStatisticsRequest(function="rosenbrock"))
    return sum(int(one.requests) for one in statistics.statistics if one.operator == 4)


def resident_bytes(process: ServerProcess) -> int:
    status = Path(f"/proc/{process.process.pid}/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith("VmRSS:")]
    return int(line.split()[1]) * 1024
