"""Many calls over one stream, at once."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from time import monotonic
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc

from nablad import _calls, results
from nablad._arguments import Batched
from nablad._calls import MISSING, Mode, Names, Operator
from nablad._differences import Differencing
from nablad._intake import Intake, Question
from nablad._map import Ahead, Mapped, Piece, cut
from nablad._packing import Chunk, Dialect, Single
from nablad._plans import Plans, key_of, rows
from nablad._stream import PipelineFuture, Stream
from nablad.errors import NabladError

_R = TypeVar("_R", bound=results.Result)


class Pipeline:
    """Many calls at once over one stream: calls of one kind that wait together travel and are computed as one.

    Its operators take what those of the client take, and give a future at once (a `concurrent.futures.Future`).
    Calls of one kind, which differ in the numbers alone, share an operation if no argument is a structure or `batched`;
    the arrays of their results are parts of arrays that they share. Arguments may be changed as soon as a call is made.

    Use it in a `with` statement: leaving the block waits for all answers, or cancels what is open if an exception is
    the reason. A call waits while 65,536 points or 64 MiB are unsent. Safe to share between threads.

    Futures raise what the client's calls raise. `Future.cancel` works until the answer is there. A `timeout` counts
    from the call on. If the connection breaks, what is not answered is asked for again, as often as calls are; if that
    does not help, all futures that are open fail, and later calls try anew.
    """

    def __init__(
        self,
        channel: grpc.Channel,
        plans: Plans,
        describe: Callable[[str], results.FunctionInfo],
        *,
        timeout: float | None,
        retries: bool,
    ) -> None:
        """Made by `Client.pipeline`."""
        self._intake = Intake(plans)
        self._describe = describe
        self._timeout = timeout
        self._stream = Stream(channel, retries, self._intake.forget, Dialect())

    def evaluate(
        self,
        function: str,
        *args: Any,
        outputs: Names = None,
        batched: Batched = False,
        timeout: float | None = None,
        **named: Any,
    ) -> Future[results.Evaluation]:
        """A future of what `Client.evaluate` gives."""
        return self._submit(
            _calls.EVALUATE, function, args, named, timeout,
            outputs=outputs, batched=batched,
        )  # fmt: skip

    def gradient(
        self,
        function: str,
        *args: Any,
        wrt: Names = None,
        output: str | None = None,
        mode: Mode = "auto",
        differences: Differencing = None,
        clip_norm: float | None = None,
        clip_value: float | None = None,
        batched: Batched = False,
        timeout: float | None = None,
        **named: Any,
    ) -> Future[results.Gradient]:
        """A future of what `Client.gradient` gives."""
        return self._submit(
            _calls.GRADIENT, function, args, named, timeout,
            wrt=wrt, output=output, mode=mode, differences=differences, clip_norm=clip_norm, clip_value=clip_value,
            batched=batched,
        )  # fmt: skip

    def jacobian(
        self,
        function: str,
        *args: Any,
        wrt: Names = None,
        outputs: Names = None,
        sparse: bool = False,
        mode: Mode = "auto",
        differences: Differencing = None,
        batched: Batched = False,
        timeout: float | None = None,
        **named: Any,
    ) -> Future[results.Jacobian]:
        """A future of what `Client.jacobian` gives."""
        return self._submit(
            _calls.JACOBIAN, function, args, named, timeout,
            wrt=wrt, outputs=outputs, sparse=sparse, mode=mode, differences=differences, batched=batched,
        )  # fmt: skip

    def hessian(
        self,
        function: str,
        *args: Any,
        wrt: Names = None,
        columns: Names = None,
        diagonal: bool = False,
        samples: int | None = None,
        seed: int = 0,
        sparse: bool = False,
        output: str | None = None,
        mode: Mode = "auto",
        differences: Differencing = None,
        batched: Batched = False,
        timeout: float | None = None,
        **named: Any,
    ) -> Future[results.Hessian]:
        """A future of what `Client.hessian` gives."""
        return self._submit(
            _calls.HESSIAN, function, args, named, timeout,
            wrt=wrt, columns=columns, diagonal=diagonal, samples=samples, seed=seed, sparse=sparse,
            output=output, mode=mode, differences=differences, batched=batched,
        )  # fmt: skip

    def hvp(
        self,
        function: str,
        *args: Any,
        tangent: Any = MISSING,
        stacked: bool = False,
        wrt: Names = None,
        output: str | None = None,
        mode: Mode = "auto",
        differences: Differencing = None,
        batched: Batched = False,
        tangent_batched: Batched | None = None,
        timeout: float | None = None,
        **named: Any,
    ) -> Future[results.Hvp]:
        """A future of what `Client.hvp` gives."""
        return self._submit(
            _calls.HVP, function, args, named, timeout,
            vector=tangent, stacked=stacked, wrt=wrt, output=output, mode=mode,
            differences=differences, batched=batched, tangent_batched=tangent_batched,
        )  # fmt: skip

    def jvp(
        self,
        function: str,
        *args: Any,
        tangent: Any = MISSING,
        stacked: bool = False,
        outputs: Names = None,
        differences: Differencing = None,
        batched: Batched = False,
        tangent_batched: Batched | None = None,
        timeout: float | None = None,
        **named: Any,
    ) -> Future[results.Jvp]:
        """A future of what `Client.jvp` gives."""
        return self._submit(
            _calls.JVP, function, args, named, timeout,
            vector=tangent, stacked=stacked, outputs=outputs, differences=differences, batched=batched,
            tangent_batched=tangent_batched,
        )  # fmt: skip

    def vjp(
        self,
        function: str,
        *args: Any,
        cotangent: Any = MISSING,
        stacked: bool = False,
        wrt: Names = None,
        batched: Batched = False,
        cotangent_batched: Batched | None = None,
        timeout: float | None = None,
        **named: Any,
    ) -> Future[results.Vjp]:
        """A future of what `Client.vjp` gives."""
        return self._submit(
            _calls.VJP, function, args, named, timeout,
            vector=cotangent, stacked=stacked, wrt=wrt, batched=batched, cotangent_batched=cotangent_batched,
        )  # fmt: skip

    def directional_derivative(
        self,
        function: str,
        *args: Any,
        direction: Any = MISSING,
        output: str | None = None,
        batched: Batched = False,
        direction_batched: Batched | None = None,
        timeout: float | None = None,
        **named: Any,
    ) -> Future[results.DirectionalDerivative]:
        """A future of what `Client.directional_derivative` gives."""
        return self._submit(
            _calls.DIRECTIONAL_DERIVATIVE, function, args, named, timeout,
            vector=direction, output=output, batched=batched, direction_batched=direction_batched,
        )  # fmt: skip

    def derivative(
        self,
        function: str,
        *args: Any,
        order: int = 1,
        direction: Any = MISSING,
        wrt: str | None = None,
        outputs: Names = None,
        batched: Batched = False,
        direction_batched: Batched | None = None,
        timeout: float | None = None,
        **named: Any,
    ) -> Future[results.Derivative]:
        """A future of what `Client.derivative` gives."""
        return self._submit(
            _calls.DERIVATIVE, function, args, named, timeout,
            vector=direction, order=order, wrt=wrt, outputs=outputs, batched=batched,
            direction_batched=direction_batched,
        )  # fmt: skip

    def laplacian(
        self,
        function: str,
        *args: Any,
        samples: int | None = None,
        seed: int = 0,
        wrt: Names = None,
        output: str | None = None,
        mode: Mode = "auto",
        batched: Batched = False,
        timeout: float | None = None,
        **named: Any,
    ) -> Future[results.Laplacian]:
        """A future of what `Client.laplacian` gives."""
        return self._submit(
            _calls.LAPLACIAN, function, args, named, timeout,
            samples=samples, seed=seed, wrt=wrt, output=output, mode=mode, batched=batched,
        )  # fmt: skip

    def map(
        self,
        operator: str,
        function: str,
        *iterables: Iterable[Any],
        timeout: float | None = None,
        **options: Any,
    ) -> Iterator[Any]:
        """The results for many points, in their order, as they are taken.

        Args:
            operator: the name of a method: `"gradient"`, `"hessian"`, …
            function: `name` or `name@version`.
            iterables: one for each argument, zipped; an array is taken apart along its first axis. They are read ahead
                by some thousand points.
            timeout: seconds for each point, from the moment it is read.
            options: the operator's options, and arguments by name, which are the same for all points.

        Raises the error of the first point that fails; the others are given up, as when the iterator is closed.
        """
        timeout = self._timeout if timeout is None else timeout
        return self._mapped(Mapped(Pipeline, operator, function, timeout, options), iterables)

    def drain(self) -> None:
        """Waits until less is unsent than a pipeline holds back: 65,536 points, 64 MiB."""
        self._stream.drain()

    def close(self) -> None:
        """Waits for all answers, and ends; calls made later raise RuntimeError."""
        self._stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self._stream.close()
        else:
            self._stream.abort()

    def _submit(
        self, operator: Operator[_R], function: str, args: tuple[Any, ...], named: dict[str, Any],
        timeout: float | None, *, vector: Any = MISSING, **options: Any,
    ) -> Future[_R]:  # fmt: skip
        future = PipelineFuture(self._stream)
        timeout = self._timeout if timeout is None else timeout
        key, arguments = key_of(operator, function, args, named, vector=vector, options=options)
        group = self._intake.find(key, timeout)
        if group is not None:
            self._stream.join(group, group.plan.data(arguments), future)
            return future
        self._stream.check()
        try:
            question = Question(operator, function, args, named, vector, options)
            info = self._intake.plans.info(function) or self._describe(function)
            begun = self._intake.begin(info, question, timeout, monotonic(), future)
        except Exception as error:  # as of an Executor: what a call leads to is the future's to raise
            future.set_exception(error)
            return future
        if isinstance(begun, Single):
            self._stream.begin(begun)
        else:
            self._stream.join(*begun, future)
        return future

    def _mapped(self, mapped: Mapped, iterables: tuple[Iterable[Any], ...]) -> Iterator[Any]:
        ahead: Ahead[PipelineFuture] = Ahead()
        pieces = cut(iterables, monotonic)
        try:
            while self._read_ahead(mapped, pieces, ahead):
                future = ahead.take()
                chunk = future.operation if isinstance(future.operation, Chunk) else None
                try:
                    result = future.result()
                except NabladError as error:
                    parts = chunk.split(error, self._stream.future) if chunk is not None else []
                    if not parts:
                        raise
                    ahead.put_back([self._begin(part) for part in parts])
                else:
                    if chunk is not None and chunk.points > 1:
                        yield from rows(result, chunk.points)
                    else:
                        yield result
        finally:
            ahead.cancel()

    def _read_ahead(self, mapped: Mapped, pieces: Iterator[Piece], ahead: Ahead[PipelineFuture]) -> bool:
        """Begins two pieces for the one given out, and more while the next answer is not there; False at the end."""
        begun = 0
        while (
            ahead.wanting
            and (mapped.learnt or not ahead)
            and (begun < 2 or ahead.waiting)
            and (piece := next(pieces, None)) is not None
        ):
            info = self._intake.plans.info(mapped.function) or self._describe(mapped.function)
            chunks = mapped.chunks(info, piece, self._stream.future, monotonic())
            for chunk in chunks:
                ahead.add(self._begin(chunk))
            if not chunks:
                ask = getattr(self, mapped.operator.name)
                for row in piece.each():
                    ahead.add(ask(mapped.function, *row, timeout=mapped.timeout, **mapped.keywords))
            begun += 1
        return bool(ahead)

    def _begin(self, chunk: Chunk) -> PipelineFuture:
        self._stream.begin(chunk)
        future: PipelineFuture = chunk.futures[0]
        return future
