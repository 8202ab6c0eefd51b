"""A pipeline's stream, carried by threads: gRPC's own asks for messages, one reads answers, one watches the time."""

import _thread
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import partial
from time import monotonic
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from nablad import errors
from nablad._channel import ATTEMPTS, BACKOFF_SECONDS
from nablad._packing import (
    CLIENT_CLOSED,
    ENDED,
    LATE,
    Dialect,
    Group,
    Leg,
    Operation,
    Packing,
    refutes,
)
from nablad._tracing import trace_context


class _Signal(_thread.RLock):  # type: ignore[misc]  # final in the stubs alone
    """A threading.Condition that is made when someone waits: most futures are asked when their result is there.

    One object for the garbage collector to look at instead of eight: with them it takes longer than all else.
    """

    _condition: threading.Condition | None = None

    def wait(self, timeout: float | None = None) -> bool:
        """As of a Condition: called by who holds the lock."""
        if self._condition is None:
            self._condition = threading.Condition(self)
        return self._condition.wait(timeout)

    def notify_all(self) -> None:
        """As of a Condition: called by who holds the lock."""
        if self._condition is not None:
            self._condition.notify_all()


class PipelineFuture(Future[Any]):
    """A future whose call can be cancelled until its answer is there."""

    operation: Operation | None = None
    _given_up = False

    def __init__(self, stream: "Stream") -> None:
        super().__init__()
        self.stream = stream
        self._condition = _Signal()  # type: ignore[assignment]  # it does what a future asks of a Condition

    def cancel(self) -> bool:
        """Cancels the call. False if its answer, or error, is there already."""
        if not super().cancel():
            return False
        if self.stream.give_up(self):
            self.set_running_or_notify_cancel()
        return True


class Stream:
    """Carries the operations of one pipeline. Safe for threads."""

    def __init__(self, channel: grpc.Channel, retries: bool, forget: Callable[[str], None], dialect: Dialect) -> None:
        """`forget` is told the functions that the server understands differently than the client does."""
        open_stream: Any = channel.stream_stream(dialect.method)  # without serializers: bytes both ways
        self._open: Callable[[Iterator[bytes]], Any] = partial(open_stream, metadata=trace_context())
        self._retries = retries
        self._forget = forget
        self._dialect = dialect
        self._packing = Packing(dialect.cancels)
        self._spent: errors.NabladError | None = None
        self._lock = threading.Lock()
        self._work = threading.Condition(self._lock)
        """Something is to be sent, or sending is over."""
        self._room = threading.Condition(self._lock)
        """Less waits, or fewer operations are open."""
        self._time = threading.Condition(self._lock)
        """The next deadline is another than it was."""
        self._halt = threading.Event()
        self._closing = False
        self._finished = False
        self._watched = 0.0
        self._call: Any = None
        self._threads = [threading.Thread(target=run, daemon=True) for run in (self._run, self._watch)]
        self._started = False

    def future(self) -> PipelineFuture:
        """A future for a call."""
        return PipelineFuture(self)

    def check(self) -> None:
        """Raises RuntimeError if the stream is closed, and what it has failed with if that is for good."""
        if self._closing:
            raise RuntimeError(self._dialect.closed)
        if self._spent is not None:
            raise self._spent

    def join(self, group: Group, data: list[bytes], future: PipelineFuture) -> None:
        """Takes in a call of a kind; waits while too much is unsent."""
        with self._lock:
            if self._packing.full:
                self._wait_for_room()
            self.check()
            if self._packing.add_row(group, data, future, monotonic()):
                self._begun()

    def begin(self, operation: Operation) -> None:
        """Takes in an operation; waits while too much is unsent."""
        with self._lock:
            if self._packing.full:
                self._wait_for_room()
            self.check()
            self._packing.add([operation])
            self._begun()

    def give_up(self, future: PipelineFuture) -> bool:
        """Takes note that a future was cancelled; False if that is known."""
        with self._lock:
            if future._given_up:
                return False
            future._given_up = True
            if future.operation is not None:
                self._packing.unwanted(future.operation)
            self._work.notify_all()
            self._room.notify_all()
            return True

    def drain(self) -> None:
        """Waits until less is unsent than may be."""
        with self._lock:
            self._wait_for_room()

    def close(self) -> None:
        """Waits until everything is answered, then ends."""
        with self._lock:
            self._closing = True
            while self._packing.open:
                self._room.wait()
        self._finish()

    def abort(self) -> None:
        """Cancels what is open, then ends."""
        with self._lock:
            self._closing = self._finished = True
            given_up = self._packing.clear()
        self._halt.set()
        for operation in given_up:
            operation.cancel()
        self._finish()

    def _finish(self) -> None:
        with self._lock:
            self._finished = True
            aborted = self._halt.is_set()
            for condition in (self._work, self._room, self._time):
                condition.notify_all()
        if aborted and self._call is not None:
            self._call.cancel()
        for thread in self._threads if self._started else ():
            if thread is not threading.current_thread():
                thread.join()

    def _wait_for_room(self) -> None:
        # A callback of a future runs in the thread that reads answers: there it must not wait for answers to be read.
        while self._packing.full and not self._closing and threading.current_thread() not in self._threads:
            self._room.wait()

    def _begun(self) -> None:
        if not self._started:
            self._started = True
            for thread in self._threads:
                thread.start()
        self._work.notify_all()
        if self._packing.deadline < self._watched:
            self._time.notify_all()

    def _messages(self, leg: Leg) -> Iterator[bytes]:
        """What gRPC sends: it asks for the next message when the last is on its way, and what waits then is in it."""
        first = self._dialect.first()
        while True:
            with self._lock:
                while not (self._packing.ready or leg.over or self._finished):
                    self._work.wait()
                if leg.over or self._finished:
                    return
                message = self._packing.message(monotonic())
                if not self._packing.full:
                    self._room.notify_all()
            if first or message is not None:
                yield first + (message or b"")
                first = b""

    def _run(self) -> None:
        failures = 0
        while self._wait_for_work():
            leg = Leg()
            error = self._carry(leg)
            given_up: list[Operation] = []
            with self._lock:
                failures = 1 if leg.answered else failures + 1
                again = error is None or isinstance(error, errors.Unavailable)
                if not (again or self._dialect.renewed):
                    self._spent = error
                if not self._packing.open:
                    failures = 0
                elif again and self._retries and failures < ATTEMPTS:
                    self._packing.resend()
                else:
                    failures = 0
                    given_up = self._packing.clear()
                self._room.notify_all()
            for operation in given_up:
                operation.fail(error or errors.Unavailable(ENDED))
            if failures:
                self._halt.wait(BACKOFF_SECONDS[failures - 1])

    def _wait_for_work(self) -> bool:
        with self._lock:
            while not (self._packing.ready or self._finished):
                self._work.wait()
            return not self._finished

    def _carry(self, leg: Leg) -> errors.NabladError | None:
        """Sends and receives over one gRPC stream until it ends, and says why if not as it should."""
        try:
            call = self._call = self._open(self._messages(leg))
        except ValueError:  # what grpc raises if the channel was closed
            return errors.Cancelled(CLIENT_CLOSED)
        try:
            if self._halt.is_set():
                call.cancel()
            for data in call:
                self._receive(self._dialect.read(data), leg)
        except grpc.RpcError as error:
            return errors.from_rpc_error(error, cancelled_here=self._halt.is_set())
        except DecodeError:
            return errors.Internal(self._dialect.malformed)
        finally:
            call.cancel()
            with self._lock:
                leg.over = True
                self._work.notify_all()
        return None

    def _receive(self, response: Any, leg: Leg) -> None:
        with self._lock:
            taken = self._packing.take(response)
        again: list[Operation] = []
        for operation, answer in taken:
            parts = operation.settle(answer, self._retries)
            if operation in parts:
                leg.over = True  # the server takes nothing more: the next leg may find another
            else:
                leg.answered = True
            if refutes(answer):
                self._forget(operation.function)
            again += parts
        with self._lock:
            self._packing.settled(len(taken), again)
            self._room.notify_all()
            if again or leg.over:
                self._work.notify_all()

    def _watch(self) -> None:
        while True:
            with self._lock:
                while not self._finished and (left := self._packing.deadline - monotonic()) > 0:
                    self._watched = self._packing.deadline
                    self._time.wait(min(left, threading.TIMEOUT_MAX))
                if self._finished:
                    return
                late = self._packing.late(monotonic())
                self._room.notify_all()
            for operation in late:
                operation.fail(errors.DeadlineExceeded(LATE))
