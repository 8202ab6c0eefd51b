"""A function linearised at one point, for the synchronous client."""

from collections.abc import Callable
from concurrent.futures import Future
from time import monotonic
from types import TracebackType
from typing import Any, Self

import grpc

from nablad import results
from nablad._linear import NOT_OPEN, OPEN, Opening, Point, ProductCall, Question
from nablad._plans import Plans
from nablad._stream import Stream
from nablad.errors import InvalidArgument, NotFound
from nablad.tensors import Array


class Linearization:
    """A function at one point, sent once: products with its Jacobian and its Hessian there.

    Use it in a `with` statement, or between `open` and `close`. What the products have in common is computed once and
    kept by the server where that pays; products that wait together are computed together. If the connection breaks,
    the point is sent again, and what is not answered asked for again, as often as calls are.

    Products raise what the client's calls raise, and LinearizationExpired if nothing was asked for so long that the
    server let the point go (`idle_seconds`). Safe to share between threads.

    Attributes:
        value: the value of the outputs, as the client's `evaluate` gives it.
        non_finite: whether some element of it is NaN or infinite.
        execution: how it came about.
        idle_seconds: after so many seconds without a product the server lets the point go.
    """

    value: Any
    non_finite: bool
    execution: results.Execution
    idle_seconds: float

    def __init__(
        self,
        channel: grpc.Channel,
        plans: Plans,
        describe: Callable[[str], results.FunctionInfo],
        question: Question,
        *,
        timeout: float | None,
        retries: bool,
    ) -> None:
        """Made by `Client.linearize`."""
        self._channel = channel
        self._plans = plans
        self._describe = describe
        self._question = question
        self._timeout = timeout
        self._retries = retries
        self._point: Point | None = None
        self._stream: Stream | None = None

    def open(self) -> Self:
        """Sends the point and waits for the value, as entering the `with` block does."""
        if self._stream is not None:
            raise RuntimeError(OPEN)
        question = self._question
        info = self._plans.info(question.function) or self._describe(question.function)
        point = self._point = question.point(info)
        stream = self._stream = Stream(self._channel, self._retries, self._plans.forget, point)
        future = stream.future()
        opening = Opening(point, future)
        opening.deadline = self._deadline(None)
        stream.begin(opening)
        try:
            self.value, self.non_finite, self.execution = future.result()
        except BaseException as error:
            if isinstance(error, InvalidArgument | NotFound):
                self._plans.forget(question.function)  # perhaps the server has a newer version since
            self._hang_up()
            raise
        self.idle_seconds = point.idle_seconds
        return self

    def jvp(self, tangent: Any, *, stacked: bool = False, timeout: float | None = None) -> Any:
        """Jacobian times tangent: [k?] + output shape; given and arranged as by `Client.jvp`."""
        return self.submit("jvp", tangent, stacked=stacked, timeout=timeout).result()

    def vjp(self, cotangent: Any, *, stacked: bool = False, timeout: float | None = None) -> Any:
        """Cotangent times Jacobian: [k?] + input shape; given and arranged as by `Client.vjp`."""
        return self.submit("vjp", cotangent, stacked=stacked, timeout=timeout).result()

    def hvp(self, tangent: Any, *, stacked: bool = False, timeout: float | None = None) -> Any:
        """Hessian times tangent: [k?] + input shape; given as by `Client.hvp`, and arranged by the point's `wrt`."""
        return self.submit("hvp", tangent, stacked=stacked, timeout=timeout).result()

    def submit(self, operator: str, vector: Any, *, stacked: bool = False, timeout: float | None = None) -> Future[Any]:
        """A future of a product, so that many can be under way: `operator` is "jvp", "vjp" or "hvp"."""
        point, stream = self._open()
        future = stream.future()
        try:
            body, read = point.product(operator, vector, stacked)
            stream.check()
        except Exception as error:  # as of an Executor: what a call leads to is the future's to raise
            future.set_exception(error)
            return future
        stream.begin(ProductCall(self._question.function, body, read, future, self._deadline(timeout)))
        return future

    def as_linear_operator(self, kind: str = "hessian") -> Any:
        """The Hessian (`"hessian"`) or the Jacobian (`"jacobian"`) as a `scipy.sparse.linalg.LinearOperator`.

        It acts on flat vectors: the elements of the inputs `wrt`, and of the outputs, one after the other, each in
        row-major order; those of a structure in the order in which the function's description lists them. A product
        with a matrix is one stacked product. It works while the linearization is open.

        Raises:
            ImportError: SciPy is not installed.
        """
        try:
            from scipy.sparse.linalg import LinearOperator  # noqa: PLC0415 - the client does without SciPy but for this
        except ImportError as error:
            raise ImportError("as_linear_operator needs SciPy: pip install scipy") from error
        flat = self._open()[0].flat(kind)

        def product(operator: str) -> Callable[[Array], Array]:
            def ask(vectors: Array) -> Array:
                _, stream = self._open()
                future = stream.future()
                body, read = flat.product(operator, vectors), lambda answer: flat.result(answer, vectors)
                stream.begin(ProductCall(self._question.function, body, read, future, self._deadline(None)))
                found: Array = future.result()
                return found

            return ask

        forward, backward = product(flat.forward), product(flat.backward)
        return LinearOperator(
            flat.shape, matvec=forward, rmatvec=backward, matmat=forward, rmatmat=backward, dtype=flat.dtype
        )

    def close(self) -> None:
        """Waits for the answers that are under way, and has the server let the point go."""
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._hang_up()

    def _hang_up(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.abort()

    def _open(self) -> tuple[Point, Stream]:
        if self._stream is None or self._point is None:
            raise RuntimeError(NOT_OPEN)
        return self._point, self._stream

    def _deadline(self, timeout: float | None) -> float:
        timeout = self._timeout if timeout is None else timeout
        return float("inf") if timeout is None else monotonic() + timeout
