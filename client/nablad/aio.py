"""The asyncio client: the same calls as `nablad.Client`, awaited."""

from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Mapping
from functools import partial
from types import TracebackType
from typing import Any, Literal, Self, TypeVar, overload

import grpc

from nablad import _calls, _diagnostics, _health, _operation, _rows, _secured, reports, results
from nablad._arguments import Batched
from nablad._calls import MISSING, Mode, Names, Operator
from nablad._channel import DEFAULT_ADDRESS, options
from nablad._differences import Differencing
from nablad._linear import Question
from nablad._plans import Plans, key_of
from nablad._secured import Tls
from nablad._tracing import trace_context
from nablad.aio_linearize import Linearization
from nablad.aio_pipeline import Pipeline
from nablad.aio_rows import RowStream
from nablad.errors import InvalidArgument, NabladError, NotFound, from_rpc_error
from nablad.sparse import Sparsity
from nablad.v1 import (
    admin_pb2,
    admin_pb2_grpc,
    catalog_pb2,
    catalog_pb2_grpc,
    diagnostics_pb2_grpc,
    differentiation_pb2_grpc,
)

__all__ = ["Client", "Function", "Pipeline", "RowStream"]

_R = TypeVar("_R", bound=results.Result)


def _connect(address: str, tls: Tls | bool | None, token: str | None, retries: bool) -> Any:
    """A channel that is secured as was asked for; raises as the client does."""
    metadata = _secured.metadata(address, tls, token)
    credentials = _secured.credentials(tls)
    given = [*options(retries), *_secured.names(tls)]
    channel = (
        grpc.aio.insecure_channel(address, given)
        if credentials is None
        else grpc.aio.secure_channel(address, credentials, given)
    )
    return _secured.Bearing(channel, metadata) if metadata else channel


class Client:
    """As `nablad.Client`, for asyncio: operators are awaited, and the client is used in an `async with` statement."""

    def __init__(
        self,
        address: str = DEFAULT_ADDRESS,
        *,
        timeout: float | None = 60.0,
        retries: bool = True,
        tls: Tls | bool | None = None,
        token: str | None = None,
        channel: grpc.aio.Channel | None = None,
    ) -> None:
        """Connects when the first call needs it.

        Args:
            address: `HOST:PORT`, or any target that gRPC resolves, such as `dns:///nablad.prod:50051`.
            timeout: seconds that a call may take, retries included; None for no limit. The first call for new shapes
                waits for a compilation, which takes from 0.1 s to many seconds for large functions.
            retries: repeat calls that no server answered (UNAVAILABLE, or cancelled by a server that stops), with
                backoff, up to four times; all calls but `reload` are pure, and that one is never repeated.
            tls: True for TLS with the usual authorities' certificates, or a `Tls` that says more; None for plaintext.
            token: shows the server who calls. It is sent over TLS, or to a server on this machine, and not otherwise.
            channel: a channel of your own (interceptors, …) instead of `address`, with retries of its own except for
                those of pipelines. It is closed with the client.

        Raises:
            InvalidArgument: others could read the token on the way, or these do not go together.
            OSError: a file of `tls` cannot be read.
        """
        _secured.check_own(channel, tls, token)
        self._channel = channel or _connect(address, tls, token, retries)
        self._timeout = timeout
        self._retries = retries
        self._stub = differentiation_pb2_grpc.DifferentiationServiceStub(self._channel)
        self._catalog = catalog_pb2_grpc.CatalogServiceStub(self._channel)
        self._diagnostics = diagnostics_pb2_grpc.DiagnosticsServiceStub(self._channel)
        self._admin = admin_pb2_grpc.AdminServiceStub(self._channel)
        self._plans = Plans()

    async def evaluate(
        self,
        function: str,
        *args: Any,
        outputs: Names = None,
        batched: Batched = False,
        timeout: float | None = None,
        **named: Any,
    ) -> results.Evaluation:
        """The value of the function: [points?] + output shape."""
        return await self._call(
            _calls.EVALUATE, function, args, named, timeout,
            outputs=outputs, batched=batched,
        )  # fmt: skip

    async def gradient(
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
    ) -> results.Gradient:
        """∇f of a scalar output, with its value: [points?] + input shape.

        `differences` asks for finite differences in place of automatic differentiation, by the name of a scheme or as
        `Differences`; estimates of their errors come with them. `clip_norm` bounds the L2 norm of the gradient over all
        inputs, or else `clip_value` the magnitude of each element, separately at each point.
        """
        return await self._call(
            _calls.GRADIENT, function, args, named, timeout,
            wrt=wrt, output=output, mode=mode, differences=differences, clip_norm=clip_norm, clip_value=clip_value,
            batched=batched,
        )  # fmt: skip

    async def jacobian(
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
    ) -> results.Jacobian:
        """∂f/∂x of any outputs, with their values: [points?] + output shape + input shape.

        `sparse` asks for the elements that can be other than zero: one `scipy.sparse.csr_array` over all outputs and
        inputs. `differences` are as for `gradient`.
        """
        return await self._call(
            _calls.JACOBIAN, function, args, named, timeout,
            wrt=wrt, outputs=outputs, sparse=sparse, mode=mode, differences=differences, batched=batched,
        )  # fmt: skip

    async def hessian(
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
    ) -> results.Hessian:
        """∂²f/∂x² of a scalar output, with its value and gradient: [points?] + row shape + column shape.

        `columns` names other inputs for the columns than `wrt` does for the rows: a block. `diagonal` asks for the
        diagonal alone, [points?] + input shape; `sparse` for the elements that can be other than zero, one
        `scipy.sparse.csr_array` over all inputs. `differences` are as for `gradient`.
        """
        return await self._call(
            _calls.HESSIAN, function, args, named, timeout,
            wrt=wrt, columns=columns, diagonal=diagonal, samples=samples, seed=seed, sparse=sparse,
            output=output, mode=mode, differences=differences, batched=batched,
        )  # fmt: skip

    async def hvp(
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
    ) -> results.Hvp:
        """Hessian times tangent, with value and gradient: [points?] + [k?] + input shape.

        The tangent comes after the function's arguments, or as `tangent=`: shaped like the one argument that can be
        differentiated, or a dictionary by argument. `stacked`: it has one more axis of k vectors before the input's
        own. It runs over points if any argument does, unless `tangent_batched` says otherwise. `differences` are as for
        `gradient`.
        """
        return await self._call(
            _calls.HVP, function, args, named, timeout,
            vector=tangent, stacked=stacked, wrt=wrt, output=output, mode=mode,
            differences=differences, batched=batched, tangent_batched=tangent_batched,
        )  # fmt: skip

    async def jvp(
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
    ) -> results.Jvp:
        """Jacobian times tangent, with the values: [points?] + [k?] + output shape.

        The tangent is given as for `hvp`; `differences` are as for `gradient`.
        """
        return await self._call(
            _calls.JVP, function, args, named, timeout,
            vector=tangent, stacked=stacked, outputs=outputs, differences=differences, batched=batched,
            tangent_batched=tangent_batched,
        )  # fmt: skip

    async def vjp(
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
    ) -> results.Vjp:
        """Cotangent times Jacobian, with the values: [points?] + [k?] + input shape.

        The cotangent comes after the function's arguments, or as `cotangent=`: shaped like the function's one output,
        or with the structure of its result. `stacked` and `cotangent_batched` are as for `hvp`.
        """
        return await self._call(
            _calls.VJP, function, args, named, timeout,
            vector=cotangent, stacked=stacked, wrt=wrt, batched=batched, cotangent_batched=cotangent_batched,
        )  # fmt: skip

    async def directional_derivative(
        self,
        function: str,
        *args: Any,
        direction: Any = MISSING,
        output: str | None = None,
        batched: Batched = False,
        direction_batched: Batched | None = None,
        timeout: float | None = None,
        **named: Any,
    ) -> results.DirectionalDerivative:
        """The rate of change along a direction scaled to unit length, with the steepest ascent and its rate.

        The direction is given as the tangent is for `hvp`.
        """
        return await self._call(
            _calls.DIRECTIONAL_DERIVATIVE, function, args, named, timeout,
            vector=direction, output=output, batched=batched, direction_batched=direction_batched,
        )  # fmt: skip

    async def derivative(
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
    ) -> results.Derivative:
        """Derivatives of orders 1 to `order` in one real variable: [points?] + [order] + output shape.

        The variable is the scalar input `wrt`; or t in f(x + t v) at t = 0 for a `direction` v, which is given as the
        tangent is for `hvp`, by keyword, and is not normalised.
        """
        return await self._call(
            _calls.DERIVATIVE, function, args, named, timeout,
            vector=direction, order=order, wrt=wrt, outputs=outputs, batched=batched,
            direction_batched=direction_batched,
        )  # fmt: skip

    async def laplacian(
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
    ) -> results.Laplacian:
        """Δf, the trace of the Hessian, with value and gradient: [points?].

        `samples` asks for an estimate from so many random products, with its standard error, in place of as many
        products as there are elements in `wrt`; the same `seed` gives the same estimate.
        """
        return await self._call(
            _calls.LAPLACIAN, function, args, named, timeout,
            samples=samples, seed=seed, wrt=wrt, output=output, mode=mode, batched=batched,
        )  # fmt: skip

    def stream_hessian(
        self,
        function: str,
        *args: Any,
        wrt: Names = None,
        columns: Names = None,
        output: str | None = None,
        mode: Mode = "auto",
        timeout: float | None = None,
        **named: Any,
    ) -> RowStream:
        """A Hessian of any size as one matrix, with value and gradient, in blocks of rows.

        Use it in a `with` statement; see `RowStream`. The rows are those of the inputs `wrt`, the columns those of
        `columns`, by default the same. `timeout` bounds the whole stream; by default nothing does.
        """
        return self._rows(
            _rows.HESSIAN, function, args, named, timeout, wrt=wrt, columns=columns, output=output, mode=mode
        )

    def stream_jacobian(
        self,
        function: str,
        *args: Any,
        wrt: Names = None,
        outputs: Names = None,
        mode: Mode = "auto",
        timeout: float | None = None,
        **named: Any,
    ) -> RowStream:
        """A Jacobian of any size as one matrix, with the values, in blocks of rows.

        Use it in a `with` statement; see `RowStream`. The rows are those of the outputs, the columns those of the
        inputs `wrt`. `timeout` bounds the whole stream; by default nothing does.
        """
        return self._rows(_rows.JACOBIAN, function, args, named, timeout, wrt=wrt, outputs=outputs, mode=mode)

    def linearize(
        self,
        function: str,
        *args: Any,
        wrt: Names = None,
        outputs: Names = None,
        timeout: float | None = None,
        **named: Any,
    ) -> Linearization:
        """The function at one point, sent once, for many products with its Jacobian and its Hessian there.

        Use it in a `with` statement; see `Linearization`. Tangents are those of the inputs `wrt`, cotangents those of
        the `outputs`; products with the Hessian need one output, a scalar. `timeout` is that of each product.
        """
        question = Question(function, args, named, wrt, outputs)
        return Linearization(
            self._channel, self._plans, self.describe, question,
            timeout=self._timeout if timeout is None else timeout, retries=self._retries,
        )  # fmt: skip

    def pipeline(self) -> Pipeline:
        """Many calls at once over one stream: the operators as methods that give futures."""
        return Pipeline(self._channel, self._plans, self.describe, timeout=self._timeout, retries=self._retries)

    async def map(
        self,
        operator: str,
        function: str,
        *iterables: Iterable[Any] | AsyncIterable[Any],
        timeout: float | None = None,
        **options: Any,
    ) -> AsyncIterator[Any]:
        """The results for many points, as `Pipeline.map` gives them, over a stream of their own."""
        async with self.pipeline() as pipeline:
            async for result in pipeline.map(operator, function, *iterables, timeout=timeout, **options):
                yield result

    def function(self, name: str) -> "Function":
        """A handle on one function, which has the operators as methods."""
        return Function(self, name)

    async def functions(self) -> AsyncIterator[results.FunctionInfo]:
        """The latest version of every function, by name, without its documentation."""
        token = ""
        while True:
            page = await self._answer(
                self._catalog.ListFunctions, catalog_pb2.ListFunctionsRequest(page_token=token), None
            )
            for function in page.functions:
                yield _calls.describe(function)
            token = page.next_page_token
            if not token:
                return

    async def describe(self, function: str) -> results.FunctionInfo:
        """Inputs, outputs, operators and documentation of one function."""
        request = _calls.describe_request(function)
        answer = await self._answer(self._catalog.DescribeFunction, request, None)
        info = _calls.describe(answer.function)
        self._plans.learn(function, info)
        return info

    async def explain(
        self, operator: str, function: str, *args: Any, timeout: float | None = None, **options: Any
    ) -> results.Explanation:
        """How the server would answer a call, and what that costs: `operator` is its method here, such as `"hessian"`.

        The program is compiled if need be, and timed at a point of all ones. Of the arguments only the shapes and
        dtypes count.
        """
        asked = _calls.split(Client, operator, options)
        info = self._plans.info(function) or await self.describe(function)
        request = _calls.explain_request(asked, info, function, args)
        return _calls.explanation(await self._answer(self._catalog.Explain, request, timeout))

    async def sparsity(
        self,
        function: str,
        *args: Any,
        operator: str = "hessian",
        wrt: Names = None,
        output: str | None = None,
        outputs: Names = None,
        timeout: float | None = None,
        **named: Any,
    ) -> Sparsity:
        """Which elements of a Hessian or a Jacobian can be other than zero: `operator` is `"hessian"` or `"jacobian"`.

        `output` is that of a Hessian, `outputs` are those of a Jacobian. Of the arguments only the shapes and dtypes
        count. The first question about a function and its shapes takes from milliseconds to a minute.
        """
        info = self._plans.info(function) or await self.describe(function)
        request = _calls.sparsity_request(
            operator, info, function, args, named, wrt=wrt, output=output, outputs=outputs
        )  # fmt: skip
        return _calls.sparsity_found(await self._answer(self._catalog.GetSparsity, request, timeout))

    @overload
    async def curvature(
        self, function: str, *args: Any, wrt: Names = ..., output: str | None = ..., batched: Literal[False] = ...,
        timeout: float | None = ..., **named: Any,
    ) -> reports.Curvature: ...  # fmt: skip

    @overload
    async def curvature(
        self, function: str, *args: Any, wrt: Names = ..., output: str | None = ..., batched: Batched,
        timeout: float | None = ..., **named: Any,
    ) -> tuple[reports.Curvature, ...]: ...  # fmt: skip

    async def curvature(
        self,
        function: str,
        *args: Any,
        wrt: Names = None,
        output: str | None = None,
        batched: Batched = False,
        timeout: float | None = None,
        **named: Any,
    ) -> reports.Curvature | tuple[reports.Curvature, ...]:
        """What the Hessian of a scalar output is like: definite or not, its extreme eigenvalues, its condition.

        One report, or with `batched` one for each point. The Hessian is over all elements of the inputs `wrt`, of which
        there may be 2048.
        """
        info = self._plans.info(function) or await self.describe(function)
        request = _diagnostics.curvature_request(info, function, args, named, wrt=wrt, output=output, batched=batched)
        response = await self._answer(self._diagnostics.SummarizeCurvature, request, timeout)
        return _diagnostics.curvatures(request, response)

    async def layers(
        self,
        function: str,
        *args: Any,
        wrt: Names = None,
        output: str | None = None,
        batched: Batched = False,
        timeout: float | None = None,
        **named: Any,
    ) -> reports.LayerReport:
        """What becomes of the gradient of a scalar output at every activation: whether it vanishes or explodes.

        With `batched`, over all points together. `wrt` are the inputs whose gradients are listed, too.
        """
        info = self._plans.info(function) or await self.describe(function)
        request = _diagnostics.layers_request(info, function, args, named, wrt=wrt, output=output, batched=batched)
        return _diagnostics.layer_report(await self._answer(self._diagnostics.InspectLayers, request, timeout))

    async def check_gradient(
        self,
        function: str,
        *args: Any,
        wrt: Names = None,
        outputs: Names = None,
        mode: Mode = "auto",
        order: int = 1,
        points: int = 0,
        coordinates: int = 0,
        directions: int = 0,
        seed: int = 0,
        sizes: Mapping[str, int] | None = None,
        dtype: str | None = None,
        batched: Batched = False,
        timeout: float | None = None,
        **named: Any,
    ) -> reports.GradientCheck:
        """Whether derivatives are right: automatic differentiation compared with differences over a sweep of steps.

        Arguments that are not given are sampled from the domain that the function declares, at `points` points (0: 3),
        with a size for each symbol in `sizes`, in `dtype` where they are floating-point ones. Up to `coordinates`
        elements of each input are moved one by one (0: 32), and all together along random `directions` (0: 4). Both
        modes are checked unless `mode` names one; with `order` 2 the second derivatives of a scalar output, too.
        """
        info = self._plans.info(function) or await self.describe(function)
        request = _diagnostics.check_request(
            info, function, args, named,
            wrt=wrt, outputs=outputs, mode=mode, order=order, points=points, coordinates=coordinates,
            directions=directions, seed=seed, sizes=sizes, dtype=dtype, batched=batched,
        )  # fmt: skip
        return _diagnostics.gradient_check(await self._answer(self._diagnostics.CheckGradient, request, timeout))

    async def statistics(
        self, function: str | None = None, *, timeout: float | None = None
    ) -> tuple[reports.OperatorStatistics, ...]:
        """What the server has done since it started, for each function and operator that was asked for.

        `function` asks for one alone. The same numbers that a Prometheus scrape reads.
        """
        request = _operation.statistics_request(function)
        return _operation.statistics(await self._answer(self._catalog.GetStatistics, request, timeout))

    async def reload(self, *, timeout: float | None = None) -> reports.Reload:
        """Has the server load the files and modules of functions anew, and says what came of that.

        What has changed is loaded, checked and warmed up before it takes the place of what there is; if anything of it
        does not load, nothing is changed at all. See AdminService.Reload.
        """
        return _operation.reload(await self._answer(self._admin.Reload, admin_pb2.ReloadRequest(), timeout))

    async def healthy(self, timeout: float = 5.0) -> bool:
        """Whether the server says that it serves; False also if it cannot be reached in time."""
        check: Callable[..., Any] = self._channel.unary_unary(_health.METHOD)
        try:
            return _health.serves(await check(_health.REQUEST, timeout=timeout))
        except grpc.RpcError:
            return False

    async def close(self) -> None:
        """Closes the connection; calls in flight fail with Cancelled."""
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def _call(
        self, operator: Operator[_R], function: str, args: tuple[Any, ...], named: dict[str, Any],
        timeout: float | None, *, vector: Any = MISSING, **options: Any,
    ) -> _R:  # fmt: skip
        key, arguments = key_of(operator, function, args, named, vector=vector, options=options)
        plan = self._plans.find(key)
        known = self._plans.info(function)
        try:
            if plan is not None:
                request, read = plan.request(arguments), plan.read
            else:
                prepared = operator.prepared(
                    known or await self.describe(function), function, args, named,
                    vector=vector, options=options, patterns=self._plans.patterns,
                )  # fmt: skip
                self._plans.make(key, operator, prepared, arguments)
                request, read = prepared.request, prepared.read
            response = await self._answer(getattr(self._stub, operator.method), request, timeout)
        except (InvalidArgument, NotFound):
            self._plans.forget(function)
            if known is None or not await self._differs(function, known):
                raise
            return await self._call(operator, function, args, named, timeout, vector=vector, **options)
        result: _R = read(response)
        return result

    async def _differs(self, function: str, known: results.FunctionInfo) -> bool:
        """Whether the server has another function than is known under that name: it may have been reloaded since."""
        try:
            return await self.describe(function) != known
        except NabladError:
            return False

    def _rows(
        self, matrix: _rows.Matrix, function: str, args: tuple[Any, ...], named: dict[str, Any],
        timeout: float | None, **options: Any,
    ) -> RowStream:  # fmt: skip
        question = _rows.Question(matrix, function, args, named, options, timeout)
        return RowStream(self._channel, self._plans, self.describe, question, retries=self._retries)

    async def _answer(self, method: Callable[..., Any], request: Any, timeout: float | None) -> Any:
        try:
            return await method(
                request, timeout=self._timeout if timeout is None else timeout, metadata=trace_context()
            )
        except grpc.RpcError as error:
            raise from_rpc_error(error) from None


class Function:
    """One function of a server: the client's operators with its name filled in. Calling it gives the value alone."""

    def __init__(self, client: Client, name: str) -> None:
        """Looks nothing up: a name that the server does not have is found out by the first call."""
        self._client = client
        self.name = name
        self.evaluate = partial(client.evaluate, name)
        self.gradient = partial(client.gradient, name)
        self.jacobian = partial(client.jacobian, name)
        self.hessian = partial(client.hessian, name)
        self.hvp = partial(client.hvp, name)
        self.jvp = partial(client.jvp, name)
        self.vjp = partial(client.vjp, name)
        self.directional_derivative = partial(client.directional_derivative, name)
        self.derivative = partial(client.derivative, name)
        self.laplacian = partial(client.laplacian, name)
        self.sparsity = partial(client.sparsity, name)
        self.check_gradient = partial(client.check_gradient, name)
        self.curvature = partial(client.curvature, name)
        self.layers = partial(client.layers, name)
        self.stream_hessian = partial(client.stream_hessian, name)
        self.stream_jacobian = partial(client.stream_jacobian, name)
        self.linearize = partial(client.linearize, name)
        self.describe = partial(client.describe, name)

    async def __call__(self, *args: Any, batched: Batched = False, timeout: float | None = None, **named: Any) -> Any:
        """The value alone."""
        return (await self._client.evaluate(self.name, *args, batched=batched, timeout=timeout, **named)).value

    async def explain(
        self, operator: str, *args: Any, timeout: float | None = None, **options: Any
    ) -> results.Explanation:
        """How the server would answer a call, and what that costs, as `Client.explain` gives it."""
        return await self._client.explain(operator, self.name, *args, timeout=timeout, **options)

    def map(
        self,
        operator: str,
        *iterables: Iterable[Any] | AsyncIterable[Any],
        timeout: float | None = None,
        **options: Any,
    ) -> AsyncIterator[Any]:
        """The results for many points, as `Pipeline.map` gives them."""
        return self._client.map(operator, self.name, *iterables, timeout=timeout, **options)

    def __repr__(self) -> str:
        return f"<function {self.name} on a nablad server>"
