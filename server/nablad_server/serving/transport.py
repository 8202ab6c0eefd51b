"""The transport: one thread, on a completion queue of its own, to which every call comes.

grpc.server hands each call to a thread of a pool and back, twice; on the way a light derivative waits longer for
threads than for its computation, and a request that comes slowly holds a thread. This one takes whatever has arrived,
hands it on together, and sends what is answered at once: such a call changes no threads. What is not answered at once
holds none, or one of `threads`. The server's ports, TLS and connections are grpc.server's.

This uses the same layer of grpcio that grpc.server is made from. It is not public: `Transport` says so by name if it is
not as expected, and tests/serving/test_transport.py walks through all of it.
"""

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import grpc
import structlog
from grpc._cython import cygrpc  # type: ignore[attr-defined]  # its stubs leave it out

from nablad.errors import DeadlineExceeded, NabladError, ResourceExhausted
from nablad_server.serving.call import REFUSED, Call, Handler, Refused
from nablad_server.serving.entrance import Entrance
from nablad_server.serving.refusals import Refusals

WAIT_SECONDS = 1e-3
"""So long what has arrived waits for a message that is announced but not here: once, and then no more for that one."""

TOGETHER = 512
"""At most so many events are gathered. A call makes four: with 128, the batches of 64 callers were cut short."""

ACCEPTED = 64
"""So many calls of each method can be taken on between two looks at the queue."""

TICK_SECONDS = 1.0

log = structlog.get_logger("nablad")


class Transport:
    """Serves the methods of a grpc.Server in one thread."""

    def __init__(
        self,
        server: grpc.Server,
        methods: Mapping[str, Callable[[Call], Handler]],
        entrance: Entrance,
        *,
        together: Callable[[], None],
        tick: Callable[[], None],
        unfinished_seconds: float = 60.0,
        header_bytes: int = 16 << 10,
    ) -> None:
        """Prepares a server that has not been started.

        Args:
            server: what grpc.server gave.
            methods: for each full name, `/package.Service/Method`, what makes a handler for a call.
            entrance: what every call passes before there is a handler for it, and when it is over.
            together: called when what has arrived has been received: it is to be dealt with together.
            tick: called in the thread about once a second.
            unfinished_seconds: a call, no stream, whose request has not come whole after so long is ended.
            header_bytes: a call with more of headers is refused. The core does so, too, but to those alone who have
                said that they know of the limit.

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
        self._entrance = entrance
        self._tick = tick
        self._unfinished_seconds = unfinished_seconds
        self._header_bytes = header_bytes
        self._late: dict[Call, float] = {}  # calls whose first message has not come for long; since when
        self._later: deque[Callable[[], None]] = deque()
        self._refusals = Refusals()
        self._open: set[Call] = set()
        self._expected = 0  # calls asked for and not yet come
        self._awaited: dict[Call, float] = {}  # calls that have come, and whose first message is about to; since when
        self._new: list[Call] = []  # what need not be done for them before they are answered is still to be done
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

    def renew(self) -> None:
        """Ends streams of those who may not have them any more. In this thread."""
        for call in [call for call in self._open if call.counted]:
            refused = self._entrance.renew(call)
            if refused is not None:
                call.handler.dismiss(refused)

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
        self._entrance.left(call)

    def _accept(self, name: str) -> None:
        self._core.request_registered_call(
            self._queue, self._queue, name, lambda event: self._on_call(name, event)
        )  # fmt: skip
        self._expected += 1

    def _on_call(self, name: str, event: Any) -> None:
        self._expected -= 1
        if not event.success:  # the server stops
            return
        call = Call(self, name, event)
        self._new.append(call)
        self._open.add(call)
        size = sum(len(key) + len(value) for key, value in call.metadata)
        if size > self._header_bytes:  # at once: while it is held, so are its headers
            call.handler, call.metadata = REFUSED, ()
            call.end(ResourceExhausted(f"{size} bytes of headers came with a call; send {self._header_bytes} at most"))
            return
        refused = self._entrance.admit(call)
        if refused is not None:
            call.handler = REFUSED
            self._refusals.hold(call, refused)
            return
        self._awaited[call] = time.monotonic()
        call.begin(self._methods[name](call))

    def _deal(self) -> None:
        """Has what has arrived dealt with; then does what could wait until that."""
        try:
            self._together()
        except Exception:  # a defect must not end the only thread that serves
            log.exception("internal error", rpc="transport")
        if self._new:
            new, self._new = self._new, []
            for call in new:
                call.watch()
                if not self._stopping:
                    with contextlib.suppress(ValueError):  # the server has been stopped meanwhile
                        self._accept(call.method)
        if self._later:
            self._go_on()

    def _patience(self, gathered: int) -> float:
        """For how many seconds the next event is waited for."""
        if self._later:
            return 0.0
        if gathered:
            return WAIT_SECONDS
        return self._refusals.patience() if self._refusals else TICK_SECONDS

    def _go_on(self) -> None:
        """Goes on with one piece of work that was left for later."""
        try:
            self._later.popleft()()
        except Exception:  # a defect must not end the only thread that serves
            log.exception("internal error", rpc="transport")

    def _look(self) -> None:
        now = time.monotonic()
        while self._late:
            call, since = next(iter(self._late.items()))
            if now - since < self._unfinished_seconds:
                break
            del self._late[call]
            call.handler = _GivenUp(call.handler)
            call.end(DeadlineExceeded(f"the request had not arrived whole after {self._unfinished_seconds:g} s"))
        try:
            self._tick()
        except Exception:  # a defect must not end the only thread that serves
            log.exception("internal error", rpc="transport")

    def _waits(self) -> bool:
        """Whether what has arrived should wait for a message that is about to."""
        while self._awaited:
            call, since = next(iter(self._awaited.items()))
            if time.monotonic() - since < WAIT_SECONDS:
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
            if self._refusals:
                self._refusals.send(all_=self._stopping)
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


class _GivenUp(Refused):
    """The handler of a call that was taken on, and whose message may still come."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler

    def closed(self) -> None:
        """It is over for whoever made it, too."""
        self._handler.closed()
