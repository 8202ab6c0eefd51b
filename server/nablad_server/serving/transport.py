"""The transport of the calls that must be fast: one thread, on a completion queue of its own.

grpc.server hands every call to a thread of a pool and back, twice; on the way a light derivative waits longer for
threads than for its computation. So the server's other services stay with grpc.server, and these calls come to a thread
here that takes whatever has arrived, hands it on together, and sends what is answered at once: no call changes threads.
What is not answered at once holds no thread.

This uses the same layer of grpcio that grpc.server is made from. It is not public: `Transport` says so by name if it is
not as expected, and tests/serving/test_transport.py walks through all of it.
"""

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import grpc
import structlog
from grpc._cython import cygrpc  # type: ignore[attr-defined]  # its stubs leave it out
from grpc_status import rpc_status

from nablad.errors import DeadlineExceeded, Internal, NabladError, ResourceExhausted, to_status
from nablad_server.serving.caller import Caller
from nablad_server.serving.limits import Account

DAY = 86400.0

WAIT_SECONDS = 1e-3
"""So long what has arrived waits for a message that is announced but not here: once, and then no more for that one."""

TOGETHER = 512
"""At most so many events are gathered. A call makes four: with 128, the batches of 64 callers were cut short."""

ACCEPTED = 64
"""So many calls of each method can be taken on between two looks at the queue."""

TICK_SECONDS = 1.0

REFUSAL_SECONDS = 0.2
"""A refusal is sent only after so long: it costs no less than a light call, so that whoever asks again at once, and is
refused again, would take the thread from the others."""

LARGE_BYTES = 64 << 10
"""Responses from this size on are counted until they are taken. Smaller ones are bounded by the number of calls."""

REFUSED_TOGETHER = 4
"""So many refusals are sent between two looks at the queue: those that came together must not leave so."""

MAX_HELD = 1024
"""At most so many refusals wait to be sent; the others are sent at once."""

log = structlog.get_logger("nablad")


class Handler(Protocol):
    """What becomes of one call. Its methods are called in the transport's thread."""

    def received(self, message: bytes | None) -> None:
        """A message has come; None: there will be no more."""

    def sent(self) -> None:
        """The message sent last has been taken by the transport; another one may be sent."""

    def closed(self) -> None:
        """The call is over: answered, cancelled by the caller, past its deadline, or broken."""

    def dismiss(self, error: NabladError) -> None:
        """The server stops: a call that would go on for ever is to be ended with this error. From any thread."""


class Call:
    """One call. Its methods can be used from any thread.

    Attributes:
        account: its caller's.
        caller: whose call it is, and what they may do now.
        metadata: what came with the call.
        counted: whether it was let in, and counts there as open.
        stream: whether it counts there as a stream.
        deadline: on time.monotonic's clock; infinite if it has none.
        ended: whether it was ended here, and not by the caller.
        failure: the error that it was ended with, if it was.
        handler: what its events go to.
    """

    __slots__ = (
        "_begun", "_call", "_transport", "account", "caller", "counted", "deadline", "ended", "failure", "handler",
        "metadata", "stream",
    )  # fmt: skip

    def __init__(self, transport: "Transport", event: Any) -> None:
        self._transport = transport
        self._call = event.call
        remaining = event.call_details.deadline - time.time()
        # One too far off to count with is none.
        self.deadline = time.monotonic() + remaining if remaining < DAY else float("inf")
        self._begun = False
        self.ended = False
        self.failure: NabladError | None = None
        self.metadata: Sequence[tuple[str, str | bytes]] = event.invocation_metadata
        self.account: Account
        self.caller: Caller
        self.counted = False
        self.stream = False
        self.handler: Handler

    @property
    def peer(self) -> str:
        """The connection that it came over: the caller's address."""
        found: str | bytes = self._call.peer()
        return found.decode() if isinstance(found, bytes) else found

    def certificate(self) -> Mapping[Any, Any] | None:
        """What TLS knows of the other end, such as the names in its certificate; None without TLS."""
        known: Mapping[Any, Any] | None = cygrpc.auth_context(self._call)
        return known

    def begin(self, handler: Handler) -> None:
        """Says where the call's events go, and receives the first message."""
        self.handler = handler
        self.receive()

    def watch(self) -> None:
        """Has `closed` called when the call is over."""
        self._call.start_server_batch((cygrpc.ReceiveCloseOnServerOperation(0),), self._on_closed)

    def later(self, work: Callable[[], None]) -> None:
        """Has something done in the transport's thread, in which this is called, once others have had their turn."""
        self._transport.later(work)

    def receive(self) -> None:
        """Asks for the next message: `received` will be called once."""
        self._call.start_server_batch((cygrpc.ReceiveMessageOperation(0),), self._on_received)

    def send(self, message: bytes) -> None:
        """Sends a message; `sent` will be called once, and no other may be sent before."""
        operation = cygrpc.SendMessageOperation(message, 0)
        self._call.start_server_batch((*self._beginning(), operation), self._on_sent)

    def answer(self, message: bytes) -> None:
        """Sends the only message, and ends the call with OK."""
        self.ended = True
        taken = self._unread(len(message)) if len(message) >= LARGE_BYTES else _ignore
        self._call.start_server_batch(
            (
                cygrpc.SendInitialMetadataOperation(None, 0),
                cygrpc.SendMessageOperation(message, 0),
                cygrpc.SendStatusFromServerOperation(None, 0, b"", 0),
            ),
            taken,
        )

    def _unread(self, size: int) -> Callable[[Any], None]:
        """Counts bytes until the caller has taken them; what is to be called then."""
        account = self.account
        account.unread_by(size)
        return lambda _: account.unread_by(-size)

    def end(self, error: NabladError | None = None) -> None:
        """Ends the call, with OK or with the status that the error stands for."""
        self.ended, self.failure = True, error
        if error is None:
            status = cygrpc.SendStatusFromServerOperation(None, 0, b"", 0)
        else:
            rich = rpc_status.to_status(to_status(error))
            code: int = error.code.value[0]
            status = cygrpc.SendStatusFromServerOperation(rich.trailing_metadata, code, rich.details, 0)
        self._call.start_server_batch((*self._beginning(), status), _ignore)

    def _beginning(self) -> tuple[Any, ...]:
        if self._begun:
            return ()
        self._begun = True
        return (cygrpc.SendInitialMetadataOperation(None, 0),)

    def _on_received(self, event: Any) -> None:
        self._transport.came(self)
        try:
            self.handler.received(event.batch_operations[0].message())
        except Exception:  # nobody else would answer
            log.exception("internal error", rpc="transport")
            self.end(Internal("a defect of the server ended this call"))

    def _on_sent(self, event: Any) -> None:
        if event.success:
            self.handler.sent()

    def _on_closed(self, _: Any) -> None:
        self._transport.ended(self)
        self.handler.closed()


class Transport:
    """Serves some methods of a grpc.Server in one thread."""

    def __init__(
        self,
        server: grpc.Server,
        methods: Mapping[str, Callable[[Call], Handler]],
        together: Callable[[], None],
        max_calls: int,
        tick: Callable[[], None],
        *,
        admit: Callable[[str, Call], NabladError | None],
        unfinished_seconds: float = 60.0,
    ) -> None:
        """Prepares a server that has not been started.

        Args:
            server: what grpc.server gave.
            methods: for each full name, `/package.Service/Method`, what makes a handler for a call.
            together: called when what has arrived has been received: it is to be dealt with together.
            max_calls: so many calls may be open at once; more are refused.
            tick: called in the thread about once a second.
            admit: sets `caller`, `account` and `stream` of a call of a method, and has it counted; or says why it is
                refused.
            unfinished_seconds: a call, no stream, whose request has not come whole after so long is ended.

        Raises:
            RuntimeError: this version of grpcio is not made as expected.
        """
        try:
            self._core: Any = server._state.server  # type: ignore[attr-defined]
            self._queue: Any = cygrpc.CompletionQueue()
            self._core.register_completion_queue(self._queue)
            for name in methods:
                self._core.register_method(name)
        except AttributeError as error:
            raise RuntimeError(
                f"grpcio {grpc.__version__} is not made as this server expects ({error}); install another version of it"
            ) from error
        self._methods = methods
        self._together = together
        self._max_calls = max_calls
        self._tick = tick
        self._admit = admit
        self._unfinished_seconds = unfinished_seconds
        self._late: dict[Call, float] = {}  # calls whose first message has not come for long; since when
        self._later: deque[Callable[[], None]] = deque()
        self._held: deque[tuple[float, Call, NabladError]] = deque()  # refusals, and when each is to be sent
        self._open: set[Call] = set()
        self._expected = 0  # calls asked for and not yet come
        self._awaited: dict[Call, float] = {}  # calls that have come, and whose first message is about to; since when
        # Calls that have come, by method: what need not be done for them before they are answered is still to be done.
        self._new: list[tuple[str, Call]] = []
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="nablad-transport", daemon=True)

    def start(self) -> None:
        """Takes on calls, once the server has been started."""
        for name in self._methods:
            for _ in range(ACCEPTED):
                self._accept(name)
        self._thread.start()

    def dismiss(self, error: NabladError) -> None:
        """Has every call that would go on for ever ended with an error."""
        for call in list(self._open):
            call.handler.dismiss(error)

    def renew(self, renewed: Callable[[Caller], Caller | NabladError]) -> None:
        """Has open calls know what their callers may do now, and ends streams of those that may not have them any more.

        In the transport's thread.
        """
        for call in [call for call in self._open if call.counted]:
            caller = renewed(call.caller)
            if isinstance(caller, NabladError):
                call.handler.dismiss(caller)
            else:
                call.caller = caller

    def stop(self, timeout: float) -> bool:
        """Ends the thread, once the server has been told to stop; False if calls are still open after `timeout`."""
        self._stopping = True
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def later(self, work: Callable[[], None]) -> None:
        """Has something done in this thread once what has arrived meanwhile is taken in. In this thread."""
        self._later.append(work)

    def came(self, call: Call) -> None:
        """A call's message has come."""
        self._awaited.pop(call, None)
        self._late.pop(call, None)

    def ended(self, call: Call) -> None:
        """A call is over."""
        self._awaited.pop(call, None)
        self._late.pop(call, None)
        self._open.discard(call)
        call.metadata = ()  # call and handler know each other: what is large is let go of now
        if call.counted:
            call.counted = False
            call.account.leave(stream=call.stream)

    def _accept(self, name: str) -> None:
        self._core.request_registered_call(
            self._queue, self._queue, name, lambda event: self._on_call(name, event)
        )  # fmt: skip
        self._expected += 1

    def _on_call(self, name: str, event: Any) -> None:
        self._expected -= 1
        if not event.success:  # the server stops
            return
        call = Call(self, event)
        self._new.append((name, call))
        self._open.add(call)
        if len(self._open) > self._max_calls:
            call.handler = _Refused()
            call.end(ResourceExhausted(f"{self._max_calls} calls are open already; retry later", retry_after=1.0))
            return
        refused = self._admit(name, call)
        if refused is not None:
            call.handler = _Refused()
            if len(self._held) < MAX_HELD:
                self._held.append((time.monotonic() + REFUSAL_SECONDS, call, refused))
            else:
                call.end(refused)
            return
        call.counted = True
        self._awaited[call] = time.time()
        call.begin(self._methods[name](call))

    def _deal(self) -> None:
        """Has what has arrived dealt with; then does what could wait until that."""
        try:
            self._together()
        except Exception:  # a defect must not end the only thread that serves
            log.exception("internal error", rpc="transport")
        if self._new:
            new, self._new = self._new, []
            for name, call in new:
                call.watch()
                if not self._stopping:
                    with contextlib.suppress(ValueError):  # the server has been stopped meanwhile
                        self._accept(name)
        if self._later:
            self._go_on()

    def _patience(self, gathered: int) -> float:
        """For how many seconds the next event is waited for."""
        if self._later:
            return 0.0
        if gathered:
            return WAIT_SECONDS
        return max(0.0, self._held[0][0] - time.monotonic()) if self._held else TICK_SECONDS

    def _go_on(self) -> None:
        """Goes on with one piece of work that was left for later."""
        try:
            self._later.popleft()()
        except Exception:  # a defect must not end the only thread that serves
            log.exception("internal error", rpc="transport")

    def _send_held(self) -> None:
        """Sends some of the refusals that have waited long enough."""
        now = time.monotonic()
        for _ in range(REFUSED_TOGETHER):
            if not self._held or (self._held[0][0] > now and not self._stopping):
                return
            _, call, refused = self._held.popleft()
            call.end(refused)

    def _look(self) -> None:
        now = time.time()
        while self._late:
            call, since = next(iter(self._late.items()))
            if now - since < self._unfinished_seconds:
                break
            del self._late[call]
            call.handler = _Refused()
            call.end(DeadlineExceeded(f"the request had not arrived whole after {self._unfinished_seconds:g} s"))
        try:
            self._tick()
        except Exception:  # a defect must not end the only thread that serves
            log.exception("internal error", rpc="transport")

    def _waits(self) -> bool:
        """Whether what has arrived should wait for a message that is about to."""
        while self._awaited:
            call, since = next(iter(self._awaited.items()))
            if time.time() - since < WAIT_SECONDS:
                return True
            del self._awaited[call]  # what is late is not waited for again
            if not call.stream:  # which may be opened long before there is something to ask
                self._late[call] = since
        return False

    def _run(self) -> None:
        poll = self._queue.poll
        gathered = 0
        due = 0.0
        while not (self._stopping and not self._expected and not self._open):
            if time.monotonic() >= due:
                due = time.monotonic() + TICK_SECONDS
                self._look()
            # Nothing that has arrived waits for what is not under way; and for that not long.
            if gathered and (gathered >= TOGETHER or not self._waits()):
                self._deal()
                gathered = 0
            if self._held:
                self._send_held()
            event = poll(time.time() + self._patience(gathered))
            tag = event.tag
            if tag is None and self._later:
                self._go_on()
                continue
            if tag is None:
                self._waits()
                if gathered:
                    self._deal()
                    gathered = 0
                continue
            try:
                tag(event)
            except Exception:
                log.exception("internal error", rpc="transport")
            gathered += 1
            event = tag = None  # a call that is over is let go of before the wait
        self._queue.shutdown()


class _Refused:
    """The handler of a call that was not taken on."""

    def received(self, message: bytes | None) -> None:
        """Nothing is expected."""

    def sent(self) -> None:
        """Nothing is sent."""

    def closed(self) -> None:
        """As it should be."""

    def dismiss(self, error: NabladError) -> None:
        """It is ended already."""


def _ignore(_: Any) -> None:
    """The end of a call is told by `closed`."""
