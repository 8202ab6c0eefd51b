"""The transport by itself: a real server on the loopback interface, real clients, and handlers of the tests' own."""

import _thread
import queue
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc._cython import cygrpc  # type: ignore[attr-defined]  # its stubs leave it out
from grpc_status import rpc_status

from nablad.errors import Draining, NabladError, NotScalar, TooManyCalls, from_rpc_error
from nablad_server.serving import refusals
from nablad_server.serving import transport as transport_module
from nablad_server.serving.call import Call, Handler
from nablad_server.serving.callers import Callers
from nablad_server.serving.entrance import Entrance
from nablad_server.serving.limits import Limits
from nablad_server.serving.transport import Transport
from puppets import SAFETY
from resilience.frames import Raw

Events = queue.SimpleQueue[Any]
UNLIMITED = Limits()
LARGE = 3 << 20


class Recorder:
    """A handler that notes what happens to its call, and answers nothing by itself."""

    def __init__(self, call: Call, events: Events) -> None:
        self.call = call
        self._events = events

    def received(self, message: bytes | None) -> None:
        self._events.put(("received", message))

    def sent(self) -> None:
        self._events.put(("sent",))

    def closed(self) -> None:
        self._events.put(("closed",))

    def dismiss(self, error: NabladError) -> None:
        self._events.put(("dismissed", error))


class Answering(Recorder):
    """Answers each request with its bytes reversed, or as `ANSWERS` says."""

    def received(self, message: bytes | None) -> None:
        super().received(message)
        if message == b"refuse":
            self.call.end(NotScalar("not a scalar; use Jacobian", field="output", metadata={"function": "f@1"}))
        elif message == b"large":
            self.call.answer(bytes(LARGE))
        elif message is not None and message != b"wait":
            self.call.answer(message[::-1])


class Gathered(Recorder):
    """Is answered with its own bytes when what has arrived is dealt with together."""

    message: bytes | None = None

    def received(self, message: bytes | None) -> None:
        super().received(message)
        self.message = message

    def answer(self) -> None:
        if self.message is not None:
            self.call.answer(self.message)
            self.message = None


class Echo(Recorder):
    """Sends every message back, one after the other, and ends when the client has sent all."""

    def received(self, message: bytes | None) -> None:
        if message is None:
            self.call.end()
        elif message == b"raise":
            raise ZeroDivisionError("in a handler")
        else:
            self.call.send(message)

    def sent(self) -> None:
        self.call.receive()

    def dismiss(self, error: NabladError) -> None:
        self.call.end(error)


def entrance_of(methods: Collection[str], calls: int = 1000, limits: Limits = UNLIMITED) -> Entrance:
    return Entrance(Callers(), limits, methods=methods, streams={"/test/Stream"}, calls=calls)


class Served:
    """A server whose methods /test/Unary and /test/Stream go through a Transport.

    Attributes:
        events: what happened to calls, and ("together",).
        handlers: of all calls, in the order of their arrival.
    """

    def __init__(self, max_calls: int = 1000, limits: Limits = UNLIMITED, unfinished_seconds: float = 600.0) -> None:
        self.ticks: queue.SimpleQueue[int] = queue.SimpleQueue()
        self.defect = False
        self.events: Events = queue.SimpleQueue()
        self.handlers: list[Recorder] = []
        self._unary: type[Recorder] = Answering
        self.server = grpc.server(ThreadPoolExecutor(1))
        port = self.server.add_insecure_port("127.0.0.1:0")
        self.port = port
        methods: dict[str, Callable[[Call], Handler]] = {
            "/test/Unary": lambda call: self._made(self._unary(call, self.events)),
            "/test/Stream": lambda call: self._made(Echo(call, self.events)),
        }
        entrance = entrance_of(methods, max_calls, limits)
        self.transport = Transport(
            self.server, methods, entrance,
            together=self._together, tick=self._tick, unfinished_seconds=unfinished_seconds,
        )  # fmt: skip
        self.server.start()
        self.transport.start()
        self.channel = grpc.insecure_channel(f"127.0.0.1:{port}")
        self.unary: Any = self.channel.unary_unary("/test/Unary")
        self.stream: Any = self.channel.stream_stream("/test/Stream")

    def _made(self, handler: Recorder) -> Recorder:
        self.handlers.append(handler)
        self.events.put(("call",))
        return handler

    def gather(self) -> None:
        """From now on unary calls are answered, with their own bytes, once what has come is dealt with together."""
        self._unary = Gathered

    def _tick(self) -> None:
        self.ticks.put(_thread.get_ident())
        if self.defect:
            raise ZeroDivisionError("in a tick")

    def _together(self) -> None:
        for handler in self.handlers:
            if isinstance(handler, Gathered):
                handler.answer()
        self.events.put(("together",))

    def await_event(self, kind: str) -> list[Any]:
        """Reads what happened until something of this kind did; all of it."""
        seen = [self.events.get(timeout=SAFETY)]
        while seen[-1][0] != kind:
            seen.append(self.events.get(timeout=SAFETY))
        return seen

    def close(self) -> bool:
        self.channel.close()
        self.server.stop(None).wait(SAFETY)
        return self.transport.stop(SAFETY)


@pytest.fixture
def served() -> Iterator[Served]:
    made = Served()
    yield made
    assert made.close()


def test_a_unary_call_is_answered_and_told_that_it_is_over(served: Served) -> None:
    assert served.unary(b"abc") == b"cba"
    assert served.unary(b"") == b""

    happened = served.await_event("closed") + served.await_event("closed")
    assert [event[1] for event in happened if event[0] == "received"] == [b"abc", b""]


@pytest.mark.parametrize("size", [1, 100_000, 3_000_000])
def test_messages_of_any_size_go_through(served: Served, size: int) -> None:
    message = bytes(range(256)) * (size // 256) + b"x"

    assert served.unary(message) == message[::-1]


def test_an_error_is_a_status_with_details(served: Served) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        served.unary(b"refuse")

    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    status = rpc_status.from_call(caught.value)
    assert "use Jacobian" in status.message
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert (info.reason, info.metadata["function"]) == ("NOT_SCALAR", "f@1")
    assert served.unary(b"ab") == b"ba"


def test_a_cancelled_call_is_told_that_it_is_over(served: Served) -> None:
    call = served.unary.future(b"wait")
    assert ("received", b"wait") in served.await_event("received")

    call.cancel()

    assert served.await_event("closed")[-1] == ("closed",)
    served.handlers[0].call.answer(b"too late")  # harms nobody
    assert served.unary(b"ab") == b"ba"


def test_a_call_whose_client_is_gone_is_told_that_it_is_over(served: Served) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{served.port}") as channel:
        unary: Any = channel.unary_unary("/test/Unary")
        call = unary.future(b"wait")
        served.await_event("received")

    assert served.await_event("closed")[-1] == ("closed",)
    assert call.done()


def test_a_deadline_is_the_calls(served: Served) -> None:
    before = time.monotonic()
    served.unary(b"ab", timeout=1000)
    served.unary(b"ab")

    limited, unlimited = (handler.call.deadline for handler in served.handlers)
    assert 900 < limited - before <= 1000 + SAFETY
    assert unlimited == float("inf")


def test_a_call_past_its_deadline_is_told_that_it_is_over(served: Served) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        served.unary(b"wait", timeout=0.05)

    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert served.await_event("closed")[-1] == ("closed",)


def test_a_stream_of_many_messages(served: Served) -> None:
    messages = [str(index).encode() * (index % 50) for index in range(2000)]

    assert list(served.stream(iter(messages))) == messages


def test_streams_and_calls_of_many_threads_are_not_mixed_up(served: Served) -> None:
    def stream(name: int) -> bool:
        messages = [f"{name} {index}".encode() for index in range(200)]
        return list(served.stream(iter(messages))) == messages

    def calls(name: int) -> bool:
        return all(served.unary(f"{name} {index}".encode()) == f"{name} {index}".encode()[::-1] for index in range(200))

    with ThreadPoolExecutor(6) as pool:
        answers = [pool.submit(each, name) for name, each in enumerate([stream, calls] * 3)]
        assert all(answer.result(SAFETY) for answer in answers)


def test_a_stream_may_be_ended_with_an_error_at_any_time(served: Served) -> None:
    sending: Events = queue.SimpleQueue()
    answers = served.stream(iter(sending.get, None))
    sending.put(b"first")
    assert next(answers) == b"first"

    served.transport.dismiss(Draining("go on elsewhere"))

    with pytest.raises(grpc.RpcError) as caught:
        next(answers)
    sending.put(None)
    assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.UNAVAILABLE, "go on elsewhere")


def test_what_would_go_on_for_ever_is_dismissed_and_nothing_else(served: Served) -> None:
    call = served.unary.future(b"wait")
    served.await_event("received")
    error = Draining("go on elsewhere")

    served.transport.dismiss(error)

    assert served.await_event("dismissed")[-1] == ("dismissed", error)
    served.handlers[0].call.answer(b"all the same")
    assert call.result(SAFETY) == b"all the same"


def test_a_handler_that_raises_does_not_end_the_transport(served: Served) -> None:
    sending: Events = queue.SimpleQueue()
    answers = served.stream(iter(sending.get, None))
    sending.put(b"raise")

    assert served.unary(b"ab") == b"ba"
    answers.cancel()
    sending.put(None)


@pytest.fixture
def patient(served: Served, monkeypatch: pytest.MonkeyPatch) -> Served:
    """A transport that waits for an announced message as long as a test may take, and gathers what has come."""
    monkeypatch.setattr(transport_module, "WAIT_SECONDS", 2 * SAFETY)
    served.gather()
    return served


def test_what_arrives_together_is_handed_on_together(patient: Served) -> None:
    raw = Raw(b"/test/Unary", patient.port)
    patient.await_event("call")
    calls = [patient.unary.future(b"a"), patient.unary.future(b"b")]
    before = patient.await_event("received") + patient.await_event("received")
    assert ("together",) not in before, "one is still to come"

    raw.send(b"c")

    after = patient.await_event("together")
    received = {event[1] for event in before + after if event[0] == "received"}
    assert received == {b"a", b"b", b"c"}
    assert [call.result(SAFETY) for call in calls] == [b"a", b"b"]
    raw.close()
    while patient.transport._open:
        patient.await_event("closed")


def test_a_message_that_never_comes_is_waited_for_once(served: Served) -> None:
    served.gather()
    raw = Raw(b"/test/Unary", served.port)
    served.await_event("call")

    assert served.unary(b"first") == b"first"  # nothing else happens meanwhile: this one waited
    assert not served.transport._awaited, "it would be waited for again"
    for index in range(20):
        assert served.unary(b"%d" % index) == b"%d" % index
    assert len(served.transport._open) >= 1
    raw.close()
    while served.transport._open:
        served.await_event("closed")


def test_too_many_calls_are_refused_and_later_ones_are_not() -> None:
    served = Served(max_calls=2)
    waiting = [served.unary.future(b"wait") for _ in range(2)]
    for _ in waiting:
        served.await_event("received")

    with pytest.raises(grpc.RpcError) as caught:
        served.unary(b"ab")
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "2 calls are open already" in str(caught.value.details())

    served.handlers[0].call.answer(b"")
    served.await_event("closed")
    assert served.unary(b"ab") == b"ba"
    for call in waiting:
        call.cancel()
    assert served.close()


def test_a_request_that_stays_unfinished_is_ended_and_a_stream_that_waits_is_not() -> None:
    served = Served(unfinished_seconds=0.01)
    sending: Events = queue.SimpleQueue()
    answers = served.stream(iter(sending.get, None))
    half = Raw(b"/test/Unary", served.port)

    half.read_until(b"had not arrived whole")

    sending.put(b"first")
    assert next(answers) == b"first"
    sending.put(None)
    assert list(answers) == []
    assert served.unary(b"ab") == b"ba"
    half.close()
    assert served.close()


def test_a_refused_call_costs_its_caller_a_pause_and_counts_as_nothing_afterwards() -> None:
    served = Served(limits=Limits(calls=1))
    waiting = served.unary.future(b"wait")
    served.await_event("received")

    before = time.monotonic()
    with pytest.raises(grpc.RpcError) as caught:
        served.unary(b"ab")

    assert time.monotonic() - before >= refusals.REFUSAL_SECONDS
    error = from_rpc_error(caught.value)
    assert isinstance(error, TooManyCalls)
    assert error.retry_after
    served.handlers[0].call.answer(b"")
    assert waiting.result(SAFETY) == b""
    served.await_event("closed")
    assert served.unary(b"ab") == b"ba"
    assert len(served.handlers) == 2, "nothing was made for the one that was refused"
    assert served.close()


def test_a_flood_of_refusals_is_answered_though_not_all_can_be_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusals, "MAX_HELD", 3)
    served = Served(limits=Limits(calls=1))
    waiting = served.unary.future(b"wait")
    served.await_event("received")

    refused = [served.unary.future(b"ab") for _ in range(50)]

    assert {call.exception(SAFETY).code() for call in refused} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
    served.handlers[0].call.answer(b"")
    assert waiting.result(SAFETY) == b""
    assert served.close()


def test_a_caller_that_does_not_read_its_responses_is_refused_until_it_does() -> None:
    served = Served(limits=Limits(unread_bytes=1 << 20))
    deaf = Raw(b"/test/Unary", served.port)
    deaf.send(b"large")
    served.await_event("received")

    with pytest.raises(grpc.RpcError) as caught:
        served.unary(b"ab")

    assert "wait until this caller reads them" in str(caught.value.details())
    deaf.close()
    served.await_event("closed")
    assert served.unary(b"ab") == b"ba"
    assert served.close()


def test_it_ticks_in_its_thread_whether_calls_come_or_not(served: Served) -> None:
    served.defect = True  # an error does not end the ticking
    threads = {served.ticks.get(timeout=SAFETY) for _ in range(2)}
    while served.ticks.empty():
        assert served.unary(b"x") == b"x"
    assert threads | {served.ticks.get()} == {served.transport._thread.ident}


def test_stopping_ends_the_thread_when_no_call_is_open(served: Served) -> None:
    served.unary(b"ab")

    assert served.close()
    assert not served.transport._thread.is_alive()


def test_stopping_ends_the_thread_when_calls_are_open() -> None:
    served = Served()
    sending: Events = queue.SimpleQueue()
    stream = served.stream(iter(sending.get, None))
    sending.put(b"first")
    next(stream)
    call = served.unary.future(b"wait")
    served.await_event("received")

    served.server.stop(None).wait(SAFETY)
    assert served.transport.stop(SAFETY)

    assert call.exception(SAFETY).code() in {grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE}
    sending.put(None)
    served.channel.close()


def test_a_call_that_stays_open_is_waited_for_no_longer_than_asked() -> None:
    served = Served()
    call = served.unary.future(b"wait")
    served.await_event("received")

    assert not served.transport.stop(0.0)
    assert not call.done()
    assert served.close()


@pytest.mark.parametrize("absent", ["CompletionQueue", "register_method"])
def test_another_grpcio_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, absent: str) -> None:
    server = grpc.server(ThreadPoolExecutor(1))
    if absent == "CompletionQueue":
        monkeypatch.delattr(cygrpc, absent)
    else:
        monkeypatch.setattr(server, "_state", type("State", (), {"server": object()})())

    unary: dict[str, Callable[[Call], Handler]] = {"/test/Unary": lambda call: Recorder(call, queue.SimpleQueue())}

    with pytest.raises(RuntimeError, match=f"grpcio {grpc.__version__} is not made as this server expects"):
        Transport(server, unary, entrance_of(unary), together=lambda: None, tick=lambda: None)


def test_what_the_transport_is_made_from_is_there() -> None:
    names = {
        "ReceiveCloseOnServerOperation", "ReceiveMessageOperation", "SendMessageOperation",
        "SendInitialMetadataOperation", "SendStatusFromServerOperation",
    }  # fmt: skip

    assert names <= set(dir(cygrpc))
