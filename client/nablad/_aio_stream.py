"""A pipeline's stream, carried by tasks of an event loop: one sends, one reads answers, a timer watches the time."""

import asyncio
from collections.abc import Callable
from functools import partial
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

_BROKEN_WRITE = "Internal error from Core"
"""What grpc.aio makes of the status of a stream that broke while a message was written, in place of the true one."""


class PipelineFuture(asyncio.Future[Any]):
    """A future whose call can be cancelled until its answer is there."""

    operation: Operation | None = None
    stream: "Stream"

    def cancel(self, msg: Any = None) -> bool:
        """Cancels the call. False if its answer, or error, is there already."""
        if not super().cancel(msg):
            return False
        self.stream.give_up(self)
        return True


class Stream:
    """Carries the operations of one pipeline. For one event loop."""

    def __init__(
        self, channel: grpc.aio.Channel, retries: bool, forget: Callable[[str], None], dialect: Dialect
    ) -> None:
        """`forget` is told the functions that the server understands differently than the client does."""
        open_stream: Any = channel.stream_stream(dialect.method)  # without serializers: bytes both ways
        self._open: Callable[[], Any] = partial(open_stream, metadata=trace_context())
        self._retries = retries
        self._forget = forget
        self._dialect = dialect
        self._packing = Packing(dialect.cancels)
        self._spent: errors.NabladError | None = None
        self._loop = asyncio.get_running_loop()
        self._wakes: set[asyncio.Future[None]] = set()
        self._closing = False
        self._finished = False
        self._timer: asyncio.TimerHandle | None = None
        self._watched = float("inf")
        self._task: asyncio.Task[None] | None = None
        self.undescribed = 0
        """How many calls wait for the description of their function."""

    def future(self) -> PipelineFuture:
        """A future for a call."""
        future = PipelineFuture(loop=self._loop)
        future.stream = self
        return future

    def check(self) -> None:
        """Raises RuntimeError if the stream is closed, and what it has failed with if that is for good."""
        if self._closing:
            raise RuntimeError(self._dialect.closed)
        if self._spent is not None:
            raise self._spent

    def join(self, group: Group, data: list[bytes], future: PipelineFuture) -> None:
        """Takes in a call of a kind."""
        if self._packing.add_row(group, data, future, self._loop.time()):
            self._begun()

    def begin(self, operation: Operation) -> None:
        """Takes in an operation."""
        self._packing.add([operation])
        self._begun()

    def give_up(self, future: PipelineFuture) -> None:
        """Takes note that a future was cancelled."""
        if future.operation is not None:
            self._packing.unwanted(future.operation)
        self.wake()

    def wake(self) -> None:
        """Lets everything that waits look again."""
        wakes, self._wakes = self._wakes, set()
        for future in wakes:
            if not future.done():
                future.set_result(None)

    async def drain(self) -> None:
        """Waits until less is unsent than may be."""
        while self._packing.full and not self._finished:
            await self._change()

    async def close(self) -> None:
        """Waits until everything is answered, then ends."""
        self._closing = True
        while self._packing.open or self.undescribed:
            await self._change()
        await self._finish()

    async def abort(self) -> None:
        """Cancels what is open, then ends."""
        self._closing = True
        for operation in self._packing.clear():
            operation.cancel()
        if self._task is not None:
            self._task.cancel()
        await self._finish()

    async def _finish(self) -> None:
        self._finished = True
        self.wake()
        if self._timer is not None:
            self._timer.cancel()
        if self._task is not None:
            await asyncio.wait([self._task])

    async def _change(self) -> None:
        future = self._loop.create_future()
        self._wakes.add(future)
        try:
            await future
        finally:
            self._wakes.discard(future)

    def _begun(self) -> None:
        if self._task is None:
            self._task = self._loop.create_task(self._run())
        self.wake()
        self._watch()

    def _watch(self) -> None:
        deadline = self._packing.deadline
        if deadline < self._watched and not self._finished:
            if self._timer is not None:
                self._timer.cancel()
            self._watched = deadline
            self._timer = self._loop.call_at(deadline, self._time)

    def _time(self) -> None:
        self._watched = float("inf")
        for operation in self._packing.late(self._loop.time()):
            operation.fail(errors.DeadlineExceeded(LATE))
        self.wake()
        self._watch()

    async def _run(self) -> None:
        failures = 0
        while not self._finished:
            if not self._packing.ready:
                await self._change()
                continue
            leg = Leg()
            error = await self._carry(leg)
            failures = 1 if leg.answered else failures + 1
            again = error is None or isinstance(error, errors.Unavailable)
            if not (again or self._dialect.renewed):
                self._spent = error
            if not self._packing.open:
                failures = 0
            elif again and self._retries and failures < ATTEMPTS:
                self._packing.resend()
                await asyncio.sleep(BACKOFF_SECONDS[failures - 1])
            else:
                failures = 0
                for operation in self._packing.clear():
                    operation.fail(error or errors.Unavailable(ENDED))
            self.wake()

    async def _carry(self, leg: Leg) -> errors.NabladError | None:
        """Sends and receives over one gRPC stream until it ends, and says why if not as it should."""
        call, sender = None, None
        try:
            call = self._open()
            sender = self._loop.create_task(self._send(call, leg))
            while (data := await call.read()) is not grpc.aio.EOF:
                self._receive(self._dialect.read(data), leg)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            return errors.Cancelled(CLIENT_CLOSED)
        except grpc.RpcError as error:
            found = errors.from_rpc_error(error, cancelled_here=False)
            return errors.Unavailable(ENDED) if _BROKEN_WRITE in found.message else found
        except DecodeError:
            return errors.Internal(self._dialect.malformed)
        except grpc.aio.UsageError:  # what grpc raises if the channel was closed
            return errors.Cancelled(CLIENT_CLOSED)
        else:
            return None
        finally:
            leg.over = True
            self.wake()
            if sender is not None:
                sender.cancel()
                await asyncio.wait([sender])
            if call is not None:
                call.cancel()

    async def _send(self, call: Any, leg: Leg) -> None:
        """Sends the next message when the last is on its way, and what waits then is in it."""
        try:
            first = self._dialect.first()
            while not (leg.over or self._finished):
                if not self._packing.ready:
                    await self._change()
                    continue
                message = self._packing.message(self._loop.time())
                if not self._packing.full:
                    self.wake()
                if first or message is not None:
                    await call.write(first + (message or b""))
                    first = b""
            await call.done_writing()
        except (grpc.RpcError, asyncio.InvalidStateError):
            return  # the stream is over: whoever reads is told why

    def _receive(self, response: Any, leg: Leg) -> None:
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
        self._packing.settled(len(taken), again)
        self.wake()
