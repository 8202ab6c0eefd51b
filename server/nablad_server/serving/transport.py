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
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import grpc
import structlog
from grpc._cython import cygrpc  # type: ignore[attr-defined]  # its stubs leave it out
from grpc_status import rpc_status

from nablad.errors import Internal, NabladError, ResourceExhausted, to_status

DAY = 86400.0

WAIT_SECONDS = 1e-3
"""So long what has arrived waits for a message that is announced but not here: once, and then no more for that one."""

TOGETHER = 512
"""At most so many events are gathered. A call makes four: with 128, the batches of 64 callers were cut short."""

ACCEPTED = 64
"""So many calls of each method can be taken on between two looks at the queue."""

TICK_SECONDS = 1.0

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
        deadline: on time.monotonic's clock; infinite if it has none.
        handler: what its events go to.
    """

    __slots__ = ("_begun", "_call", "_transport", "deadline", "handler")

    def __init__(self, transport: "Transport", event: Any) -> None:
        self._transport = transport
        self._call = event.call
        remaining = event.call_details.deadline - time.time()
        # One too far off to count with is none.
        self.deadline = time.monotonic() + remaining if remaining < DAY else float("inf")
        self._begun = False
        self.handler: Handler

    @property
    def peer(self) -> str:
        """The connection that it came over: the caller's address."""
        found: str | bytes = self._call.peer()
        return found.decode() if isinstance(found, bytes) else found

    def begin(self, handler: Handler) -> None:
        """Says where the call's events go, and receives the first message."""
        self.handler = handler
        self.receive()

    def watch(self) -> None:
        """Has `closed` called when the call is over."""
        self._call.start_server_batch((cygrpc.ReceiveCloseOnServerOperation(0),), self._on_closed)

    def receive(self) -> None:
        """Asks for the next message: `received` will be called once."""
        self._call.start_server_batch((cygrpc.ReceiveMessageOperation(0),), self._on_received)

    def send(self, message: bytes) -> None:
        """Sends a message; `sent` will be called once, and no other may be sent before."""
        operation = cygrpc.SendMessageOperation(message, 0)
        self._call.start_server_batch((*self._beginning(), operation), self._on_sent)

    def answer(self, message: bytes) -> None:
        """Sends the only message, and ends the call with OK."""
        self._call.start_server_batch(
            (
                cygrpc.SendInitialMetadataOperation(None, 0),
                cygrpc.SendMessageOperation(message, 0),
                cygrpc.SendStatusFromServerOperation(None, 0, b"", 0),
            ),
            _ignore,
        )

    def end(self, error: NabladError | None = None) -> None:
        """Ends the call, with OK or with the status that the error stands for."""
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
    ) -> None:
        """Prepares a server that has not been started.

        Args:
            server: what grpc.server gave.
            methods: for each full name, `/package.Service/Method`, what makes a handler for a call.
            together: called when what has arrived has been received: it is to be dealt with together.
            max_calls: so many calls may be open at once; more are refused.
            tick: called in the thread about once a second.

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

    def stop(self, timeout: float) -> bool:
        """Ends the thread, once the server has been told to stop; False if calls are still open after `timeout`."""
        self._stopping = True
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def came(self, call: Call) -> None:
        """A call's message has come."""
        self._awaited.pop(call, None)

    def ended(self, call: Call) -> None:
        """A call is over."""
        self._awaited.pop(call, None)
        self._open.discard(call)

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
            call.begin(_Refused())
            call.end(ResourceExhausted(f"{self._max_calls} calls are open already; retry later", retry_after=1.0))
            return
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

    def _look(self) -> None:
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
            event = poll(time.time() + (WAIT_SECONDS if gathered else TICK_SECONDS))
            tag = event.tag
            if tag is None:
                self._awaited.clear()
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
