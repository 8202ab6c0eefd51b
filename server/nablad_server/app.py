"""The composition root: builds the parts, starts them in order, and takes them down in the reverse order."""

import gc
import threading
import time
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from wsgiref.simple_server import WSGIServer

import grpc
import structlog
from grpc_health.v1 import health_pb2
from prometheus_client import start_http_server

from nablad.errors import Draining
from nablad_server.batching.batcher import Batcher
from nablad_server.batching.policy import Policy
from nablad_server.batching.ticket import NOBODY
from nablad_server.config import MACHINE, Settings, parse_warm
from nablad_server.derivatives import device
from nablad_server.derivatives.cache import ProgramCache
from nablad_server.derivatives.inspection import Inspections
from nablad_server.derivatives.linear_runner import Budget, LinearRunner
from nablad_server.derivatives.patterns import Patterns
from nablad_server.derivatives.runner import DerivativeRunner
from nablad_server.functions.function import Function, Warm
from nablad_server.functions.registration import build
from nablad_server.functions.registry import Registry
from nablad_server.functions.sources import builtin, python
from nablad_server.functions.sources.changing import Targets
from nablad_server.serving import admin, catalog, diagnostics, differentiation, health, reflection
from nablad_server.serving.call import Call, Handler
from nablad_server.serving.call_log import log_call
from nablad_server.serving.callers import Callers
from nablad_server.serving.certificates import server_credentials
from nablad_server.serving.connections import Connections
from nablad_server.serving.decode import Decoder
from nablad_server.serving.entrance import Entrance
from nablad_server.serving.explain import Explainer
from nablad_server.serving.gate import Gate
from nablad_server.serving.identities import read_identities
from nablad_server.serving.limits import Limits
from nablad_server.serving.linearize import Bounds, Linearizations
from nablad_server.serving.linearizer import Linearizer
from nablad_server.serving.listening import check_encrypted, private_socket, socket_path
from nablad_server.serving.metrics import Parts, metrics_of
from nablad_server.serving.reload import Reloader, Retired
from nablad_server.serving.rpcs import Rpcs
from nablad_server.serving.statistics import Statistics
from nablad_server.serving.stream import Window
from nablad_server.serving.transport import Transport
from nablad_server.serving.warmup import warm_up
from nablad_server.serving.watched import Watched
from nablad_server.serving.work import KINDS, Desk
from nablad_server.signals import ENDING, RELOADING, caught

SERVICES = tuple(part.SERVICE.full_name for part in (differentiation, diagnostics, catalog, admin))

BLACK_BOX_WORKERS = 8
"""At most so many black boxes run at the same time."""

ARRIVING_SECONDS = 0.2
"""How long a call may take from the connection to the gate: a large request arrives in many pieces."""

SPANS_SECONDS = 2.0
"""So long a server that stops waits until its last spans are sent."""

log = structlog.get_logger("nablad")


def installed_functions(settings: Settings) -> list[Function]:
    """The functions that stay what they are while the server runs. Raises ValueError if one does not load."""
    functions = [build(call, "builtin") for call in builtin.FUNCTIONS] if settings.builtin else []
    if settings.entry_points:
        functions += python.load_entry_points()
    for function in functions:
        if function.black_box is not None:
            function.black_box.seconds = settings.black_box_seconds
    return functions


def callers_of(settings: Settings, limits: Limits) -> Callers:
    """What finds out who calls. Raises OSError or ValueError if the file of identities is not as it should be."""
    certificates = settings.tls_client_ca is not None
    path = settings.tokens
    if path is None:
        return Callers(certificates=certificates)
    return Callers(Watched("identities", [path], lambda: read_identities(path, limits)), certificates=certificates)


class App:
    """A server. Build it, `start` it, and `stop` it; or `serve_until_signalled`.

    Attributes:
        address: where it listens, with the real port once started.
    """

    def __init__(self, settings: Settings) -> None:
        """Loads the functions and builds the parts; listens to nothing yet.

        Raises:
            ValueError: a function does not load.
            PermissionError: others can write to the compile cache.
        """
        started = time.monotonic()
        device.configure(settings.compile_cache)
        self._settings = settings
        self._spans: Any = None
        targets = Targets(settings.functions, settings.black_box_seconds)
        self._registry = Registry([*installed_functions(settings), *targets.functions])
        self._cache = ProgramCache(
            settings.programs, settings.pending_compiles, settings.memory_bytes,
            max_pending_each=settings.compiles_per_caller, seconds_each=settings.compile_seconds_per_caller,
            exempt=NOBODY,
        )  # fmt: skip
        runner = DerivativeRunner(self._cache, settings.max_batch_points, settings.max_batch_bytes)
        boxes = sum(function.black_box is not None for function in self._registry.all())
        policy = Policy(
            max_points=settings.max_batch_points,
            max_tickets=settings.queue_calls,
            max_bytes=settings.queue_bytes,
            direct_seconds=settings.direct_microseconds * 1e-6,
            heavy_workers=settings.workers,
            # Each runs one call at a time; a reload may bring more of them.
            aside_workers=min(BLACK_BOX_WORKERS, BLACK_BOX_WORKERS * len(targets.loaded) + boxes),
        )
        self._statistics = Statistics()
        self._batcher = Batcher(LinearRunner(runner, self._cache), policy, self._statistics)
        self._patterns = Patterns(settings.memory_bytes)
        self._decoder = Decoder(self._registry, self._patterns, settings.max_points, settings.max_result_bytes)
        self._gate = Gate()
        self._health = health.Health()
        self._inspections = Inspections()
        desk = Desk(self._decoder, self._patterns, self._batcher, self._gate, self._statistics)
        self._linearizations = Linearizations(
            Linearizer(self._cache, self._batcher, Budget(settings.linearization_bytes)),
            Bounds(settings.linearization_idle_seconds, settings.linearizations_per_caller),
        )
        self._retired, self._reloader = self._build_reloader(runner, targets)
        limits = Limits(
            calls=settings.calls_per_caller, streams=settings.streams_per_caller, rate=settings.rate_per_caller,
            share=settings.queue_share, unread_bytes=settings.unread_bytes_per_caller,
        )  # fmt: skip
        self._callers = callers_of(settings, limits)
        methods = self._methods(desk)
        self._rpcs = Rpcs(methods)
        entrance = Entrance(
            self._callers, limits,
            methods=methods, streams={*differentiation.STREAMS, reflection.METHOD}, calls=settings.concurrent_calls,
            over=[self._rpcs.over, log_call] if settings.log_calls else [self._rpcs.over],
        )  # fmt: skip
        self._server = self._build_server()
        self._transport = Transport(
            self._server, methods, entrance,
            together=desk.together, tick=self._tick, unfinished_seconds=settings.request_seconds,
            header_bytes=settings.header_bytes,
        )  # fmt: skip
        self._metrics: WSGIServer | None = None
        self._ready = False
        self.address = settings.address
        log.info("functions loaded", count=len(self._registry.all()), seconds=round(time.monotonic() - started, 2))

    def start(self, given_up: Callable[[], bool] = lambda: False) -> None:
        """Listens, compiles what is to be warm, and then says that it is ready.

        While it warms up, the health check says NOT_SERVING and calls are answered with UNAVAILABLE.

        Args:
            given_up: asked before each program: whether the others need not be compiled, nor anything be served.

        Raises:
            OSError: the address cannot be listened on.
            ValueError: others could read what is sent, and nobody said that they may; or TLS's files are unusable.
            ValueError, NabladError: something to be warmed does not fit; the server is stopped.
        """
        self.address = self._listen()
        self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        self._server.start()
        self._transport.start()
        self._serve_metrics()
        log.info("listening", address=self.address)
        try:
            for function, warm in self._warmed(self._registry):
                if given_up():
                    return
                self._warm(self._decoder, function, warm)
        except Exception:
            self.stop()
            raise
        # What is here now stays: the collector need not look at it again and again, least of all while callers wait.
        gc.collect()
        gc.freeze()
        self._gate.open()
        self._ready = True
        self._set_health(health_pb2.HealthCheckResponse.SERVING)
        log.info("serving", address=self.address, machine=MACHINE)

    def stop(self) -> None:
        """Drains: says NOT_SERVING, pauses, lets calls in flight finish, and ends all threads."""
        settings = self._settings
        if self._ready:
            log.info("draining", pause_seconds=settings.drain_pause_seconds, seconds=settings.drain_seconds)
            self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
            # Nothing to wait for but the balancers' next look; calls are served meanwhile.
            threading.Event().wait(settings.drain_pause_seconds)
        finish_by = time.monotonic() + settings.drain_seconds
        # Calls that come from now on are told to go elsewhere. Only once none is inside is the transport stopped: it
        # would cancel those that it has received and not yet handed over.
        self._gate.close(finish_by - time.monotonic())
        # Whoever still waits for a black box has waited long enough: that call ends now, while it can be answered.
        for function in self._registry.all():
            if function.black_box is not None:
                function.black_box.close()
        self._retired.close()
        # Nor do those count as inside that are still on their way in: they are given a moment to be told, too.
        threading.Event().wait(ARRIVING_SECONDS)
        self._transport.dismiss(Draining("the server is shutting down; go on elsewhere"))
        self._server.stop(max(1.0, finish_by - time.monotonic())).wait()
        self._transport.stop(max(1.0, finish_by - time.monotonic()))
        if self._metrics is not None:
            self._metrics.shutdown()
            self._metrics.server_close()
        at_rest = self._patterns.close(max(1.0, finish_by - time.monotonic()))
        at_rest &= self._cache.close(max(1.0, finish_by - time.monotonic()))
        at_rest &= self._batcher.close(max(1.0, finish_by - time.monotonic()))
        if self._spans is not None:
            # Its own timeout does not hold if the collector does not answer.
            flush = threading.Thread(target=self._spans.force_flush, name="nablad-spans", daemon=True)
            flush.start()
            flush.join(SPANS_SECONDS)
        # What still runs then has nobody to answer; its threads end with the process.
        log.info("stopped", at_rest=at_rest)

    def serve_until_signalled(self) -> None:
        """Starts, serves until SIGTERM or SIGINT, and drains. SIGHUP reloads the functions of files and modules.

        The drain is bounded, so that further SIGTERMs change nothing; a second SIGINT ends the process at once.
        """
        with caught() as signals:
            self.start(lambda: signals.ending)
            while not (come := signals.next()) & ENDING:
                if come & RELOADING:
                    # In a thread of its own: a drain does not wait for a reload.
                    threading.Thread(target=self._reload, name="nablad-reload", daemon=True).start()
            self.stop()

    def _reload(self) -> None:
        try:
            self._reloader.reload(float("inf"))
        except Exception:
            log.exception("internal error", rpc="reload")

    def _build_server(self) -> grpc.Server:
        settings = self._settings
        connections = Connections(
            count=settings.connections, calls=settings.calls_per_connection, header_bytes=settings.header_bytes,
            handshake_seconds=settings.handshake_seconds, idle_seconds=settings.connection_idle_seconds,
            age_seconds=settings.connection_age_seconds, grace_seconds=settings.drain_seconds,
        )  # fmt: skip
        return grpc.server(
            ThreadPoolExecutor(1),  # for methods of its own, and it has none
            options=[
                ("grpc.max_receive_message_length", settings.max_message_bytes),
                ("grpc.max_send_message_length", -1),  # results are bounded before they are computed
                ("grpc.so_reuseport", 0),  # two servers on one port by mistake would share its calls
                *connections.options(),
            ],
        )

    def _methods(self, desk: Desk) -> dict[str, Callable[[Call], Handler]]:
        """For each RPC, by its full name, what makes a handler for a call."""
        settings = self._settings
        window = Window(settings.stream_operations, settings.stream_bytes)
        explainer = Explainer(self._decoder, self._patterns, self._cache, KINDS)
        found = {
            **differentiation.methods(desk, window, self._linearizations),
            **catalog.methods(
                registry=self._registry, decoder=self._decoder, patterns=self._patterns, statistics=self._statistics,
                explainer=explainer, gate=self._gate,
            ),
            **diagnostics.methods(
                registry=self._registry, decoder=self._decoder, desk=desk, gate=self._gate,
                inspections=self._inspections,
            ),
            **admin.methods(reloader=self._reloader, gate=self._gate),
        }  # fmt: skip
        if settings.reflection:
            found |= reflection.methods((*SERVICES, health.SERVICE.full_name, reflection.SERVICE_NAME))
        if settings.tracing:
            found = self._traced(found, desk)
        return found | self._health.methods()

    def _traced(self, served: dict[str, Callable[[Call], Handler]], desk: Desk) -> dict[str, Callable[[Call], Handler]]:
        try:
            from nablad_server.serving.tracing import provider_of, traced  # noqa: PLC0415 - an extra
        except ImportError as error:
            raise ValueError(f"tracing needs OpenTelemetry: pip install 'nablad[otel]' ({error})") from error
        self._spans = provider_of()
        return traced(served, desk, self._spans)

    def _build_reloader(self, runner: DerivativeRunner, targets: Targets) -> tuple[Retired, Reloader]:
        linears, products = self._linearizations.linearizer.linears, self._linearizations.products

        def loosen(gone: Collection[Function]) -> None:
            runner.forget()
            self._statistics.forget()
            self._batcher.forget(lambda key: getattr(key, "function", None) in gone)

        retired = Retired(
            renew=[self._decoder.renew, products.renew],
            forget=[
                self._decoder.forget, products.forget, self._cache.forget, self._patterns.forget, linears.forget,
                self._inspections.forget, loosen,
            ],
        )  # fmt: skip

        def warm(registry: Registry, function: Function, program: Warm) -> None:
            self._warm(self._decoder.of(registry), function, program)

        return retired, Reloader(self._registry, targets, retired, warmed=self._warmed, warm=warm)

    def _tick(self) -> None:
        self._linearizations.look()
        self._retired.look()
        if self._callers.refresh():
            self._transport.renew()

    def _listen(self) -> str:
        """Takes the address; where that is. Raises OSError or ValueError."""
        address, tls = self._settings.address, self._settings.tls
        check_encrypted(address, tls=tls is not None, plaintext=self._settings.plaintext)
        path = socket_path(address)
        credentials = server_credentials(tls) if tls is not None else None
        try:
            with private_socket(path):
                port = (
                    self._server.add_insecure_port(address)
                    if credentials is None
                    else self._server.add_secure_port(address, credentials)
                )
        except RuntimeError as error:
            raise OSError(f"cannot listen on {address}: {error}") from error
        return address if address.startswith("unix") else f"{address.rpartition(':')[0]}:{port}"

    def _serve_metrics(self) -> None:
        if self._settings.metrics_address == "none":
            return
        parts = Parts(
            registry=self._registry, cache=self._cache, batcher=self._batcher,
            gate=self._gate, reloader=self._reloader,
            queue_calls=self._settings.queue_calls, queue_bytes=self._settings.queue_bytes,
        )  # fmt: skip
        registry = metrics_of(self._statistics, self._linearizations, self._rpcs, parts)
        host, _, port = self._settings.metrics_address.rpartition(":")
        try:
            metrics, _ = start_http_server(int(port), host, registry)
        except (OSError, ValueError) as error:
            raise OSError(f"cannot serve metrics on {self._settings.metrics_address}: {error}") from error
        self._metrics = metrics
        log.info("metrics", address=f"{host}:{metrics.server_port}")

    def _warmed(self, registry: Registry) -> list[tuple[Function, Warm]]:
        """What is to be warm of a registry. Raises NotFound if a setting names what it has not."""
        wanted = [(function, warm) for function in registry.all() for warm in function.warm]
        return wanted + [(registry.get(ref), warm) for ref, warm in map(parse_warm, self._settings.warm)]

    def _warm(self, decoder: Decoder, function: Function, warm: Warm) -> None:
        started = time.monotonic()
        warm_up(function, warm, decoder, self._patterns, self._batcher)
        log.info("warmed", function=function.reference, operator=warm.operator, sizes=dict(warm.sizes),
                 points=list(warm.points), seconds=round(time.monotonic() - started, 2))  # fmt: skip

    def _set_health(self, status: health_pb2.HealthCheckResponse.ServingStatus) -> None:
        for service in ("", *SERVICES):
            self._health.set(service, status)
