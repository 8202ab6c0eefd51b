"""A matrix in blocks of rows, for the synchronous client."""

import time
from collections.abc import Callable, Iterator
from functools import partial
from types import TracebackType
from typing import Any, Self

import grpc

from nablad import results
from nablad._plans import Plans
from nablad._rows import (
    CLIENT_CLOSED,
    CLOSED,
    ENDED,
    SERVICE,
    TAKEN,
    Destination,
    Opened,
    Progress,
    Question,
    Reading,
    Rows,
    block_of,
)
from nablad._tracing import trace_context
from nablad.errors import Cancelled, InvalidArgument, NabladError, NotFound, Unavailable, from_rpc_error
from nablad.tensors import Array


class RowStream(Opened):
    """A Hessian or a Jacobian of any size as one matrix, in blocks of rows that come as they are taken.

    Use it in a `with` statement: entering asks for the matrix, and leaving cancels what has not come. Then either
    iterate over the blocks, or `read` all rows into an array. The server computes no further ahead than two blocks.

    Rows belong to the elements of the inputs (or outputs) in `rows`, one after the other, each in row-major order;
    columns likewise. If the connection breaks, or the server drains, the rows that are missing are asked for again.

    It raises what the client's calls raise. It is for one thread.
    """

    def __init__(
        self,
        channel: grpc.Channel,
        plans: Plans,
        describe: Callable[[str], results.FunctionInfo],
        question: Question,
        *,
        retries: bool,
    ) -> None:
        """Made by `Client.stream_hessian` and `Client.stream_jacobian`."""
        ask: Any = channel.unary_stream(f"/{SERVICE}/{question.matrix.method}")  # without serializers: bytes both ways
        self._ask: Callable[..., Any] = partial(ask, metadata=trace_context())
        self._plans = plans
        self._describe = describe
        self._question = question
        self._retries = retries
        self._reading: Reading | None = None
        self._call: Any = None

    def read(self, out: Array | None = None, progress: Progress | None = None) -> Array:
        """All rows in one array: a new one, or `out`.

        Args:
            out: an array, or a memory-mapped file, of the matrix's shape; if there is one input (or output) of the rows
                and one of the columns, of the one's shape followed by the other's, which is also that of a new one.
            progress: called after each block with how many rows are there, and how many there will be.
        """
        reading = self._open()
        if reading.next_row:
            raise RuntimeError(TAKEN)
        destination = Destination(self, out)
        while (rows := self._next(reading)) is not None:
            destination.place(rows)
            if progress is not None:
                progress(reading.next_row, self.shape[0])
        return destination.array

    def close(self) -> None:
        """Cancels what has not come."""
        self._reading = None
        self._hang_up()

    def __iter__(self) -> Iterator[results.RowBlock]:
        return self

    def __next__(self) -> results.RowBlock:
        rows = self._next(self._open())
        if rows is None:
            raise StopIteration
        return block_of(rows, self.dtype)

    def __enter__(self) -> Self:
        question = self._question
        info = self._plans.info(question.function) or self._describe(question.function)
        deadline = float("inf") if question.timeout is None else time.monotonic() + question.timeout
        reading = self._reading = Reading(question.prepared(info), self._retries, deadline)
        try:
            while reading.header is None:
                self._advance(reading)
            self._describe_as(reading.header, reading.head)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _open(self) -> Reading:
        if self._reading is None:
            raise RuntimeError(CLOSED)
        return self._reading

    def _next(self, reading: Reading) -> Rows | None:
        """The next rows; None if every row has come."""
        while not reading.done:
            rows = self._advance(reading)
            if rows is not None:
                self.non_finite |= rows.non_finite
                return rows
        return None

    def _advance(self, reading: Reading) -> Rows | None:
        """What the next message brings, or None if that is no rows; asks anew where that helps."""
        message = self._message(reading)
        if isinstance(message, bytes):
            return reading.take(message)
        self._hang_up()
        if isinstance(message, InvalidArgument | NotFound):
            self._plans.forget(self._question.function)  # perhaps the server has a newer version since
        time.sleep(reading.pause(message))
        return None

    def _message(self, reading: Reading) -> bytes | NabladError:
        try:
            if self._call is None:
                self._call = self._ask(reading.request(), timeout=reading.remaining(time.monotonic()))
            message: bytes | None = next(self._call, None)
        except grpc.RpcError as error:
            return from_rpc_error(error, cancelled_here=self._call is None)
        except ValueError:  # what grpc raises if the channel was closed
            return Cancelled(CLIENT_CLOSED)
        return Unavailable(ENDED) if message is None else message

    def _hang_up(self) -> None:
        call, self._call = self._call, None
        if call is not None:
            call.cancel()
