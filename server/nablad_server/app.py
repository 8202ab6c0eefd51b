"""The composition root: builds the parts, starts them in order, and takes them down in the reverse order."""

import gc
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from wsgiref.simple_server import WSGIServer

import grpc
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from prometheus_client import CollectorRegistry, start_http_server

from nablad.errors import Draining
from nablad_server.batching.batcher import Batcher
from nablad_server.batching.policy import Policy
from nablad_server.config import MACHINE, Settings, parse_warm
from nablad_server.derivatives import device
from nablad_server.derivatives.cache import ProgramCache
from nablad_server.derivatives.linear_runner import Budget, LinearRunner
from nablad_server.derivatives.patterns import Patterns
from nablad_server.derivatives.runner import DerivativeRunner
from nablad_server.functions.function import Function
from nablad_server.functions.registration import build
from nablad_server.functions.registry import Registry
from nablad_server.functions.sources import builtin, python
from nablad_server.serving import catalog, diagnostics, differentiation
from nablad_server.serving.catalog import catalog_service
from nablad_server.serving.decode import Decoder
from nablad_server.serving.diagnostics import diagnostics_service
from nablad_server.serving.differentiation import methods
from nablad_server.serving.explain import Explainer
from nablad_server.serving.gate import Gate
from nablad_server.serving.linearize import Bounds, Linearizations
from nablad_server.serving.linearizer import Linearizer
from nablad_server.serving.statistics import Statistics
from nablad_server.serving.stream import Window
from nablad_server.serving.transport import Transport
from nablad_server.serving.warmup import warm_up
from nablad_server.serving.work import KINDS, Desk

SERVICES = (differentiation.SERVICE.full_name, diagnostics.SERVICE.full_name, catalog.SERVICE.full_name)

CATALOG_THREADS = 8
"""Threads for the services that grpc.server serves; each health watch and each reflection stream holds one."""

BLACK_BOX_WORKERS = 8
"""At most so many black boxes run at the same time."""

ARRIVING_SECONDS = 0.2
"""How long a call may take from the connection to the gate: a large request arrives in many pieces."""

log = structlog.get_logger("nablad")


def load_functions(settings: Settings) -> list[Function]:
    """All functions that the settings name. Raises ValueError if one does not load, or two have the same name."""
    functions = [build(call, "builtin") for call in builtin.FUNCTIONS] if settings.builtin else []
    if settings.entry_points:
        functions += python.load_entry_points()
    for target in settings.functions:
        functions += python.load(target)
    for function in functions:
        if function.black_box is not None:
            function.black_box.seconds = settings.black_box_seconds
    return functions


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
        self._registry = Registry(load_functions(settings))
        self._cache = ProgramCache(settings.programs, settings.pending_compiles, settings.memory_bytes)
        runner = DerivativeRunner(self._cache, settings.max_batch_points, settings.max_batch_bytes)
        policy = Policy(
            max_points=settings.max_batch_points,
            max_tickets=settings.queue_calls,
            max_bytes=settings.queue_bytes,
            direct_seconds=settings.direct_microseconds * 1e-6,
            heavy_workers=settings.workers,
            # Each runs one call at a time.
            aside_workers=min(BLACK_BOX_WORKERS, sum(f.black_box is not None for f in self._registry.all())),
        )
        self._statistics = Statistics()
        self._batcher = Batcher(LinearRunner(runner, self._cache), policy, self._statistics)
        self._patterns = Patterns(settings.memory_bytes)
        self._decoder = Decoder(self._registry, self._patterns, settings.max_points, settings.max_result_bytes)
        self._gate = Gate()
        self._health = health.HealthServicer()
        desk = Desk(self._decoder, self._patterns, self._batcher, self._gate, self._statistics)
        self._server = self._build_server(desk)
        window = Window(settings.stream_operations, settings.stream_bytes)
        self._linearizations = Linearizations(
            Linearizer(self._cache, self._batcher, Budget(settings.linearization_bytes)),
            Bounds(settings.linearization_idle_seconds, settings.linearizations_per_caller),
        )
        self._transport = Transport(
            self._server, methods(desk, window, self._linearizations), desk.together, settings.concurrent_calls,
            self._linearizations.look,
        )  # fmt: skip
        self._metrics: WSGIServer | None = None
        self._ready = False
        self.address = settings.address
        log.info("functions loaded", count=len(self._registry.all()), seconds=round(time.monotonic() - started, 2))

    def start(self) -> None:
        """Listens, compiles what is to be warm, and then says that it is ready.

        While it warms up, the health check says NOT_SERVING and calls are answered with UNAVAILABLE.

        Raises:
            OSError: the address cannot be listened on.
            ValueError, NabladError: something to be warmed does not fit; the server is stopped.
        """
        host, _, _ = self._settings.address.rpartition(":")
        try:
            port = self._server.add_insecure_port(self._settings.address)
        except RuntimeError as error:
            raise OSError(f"cannot listen on {self._settings.address}: {error}") from error
        if not self._settings.address.startswith("unix:"):
            self.address = f"{host}:{port}"
        self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        self._server.start()
        self._transport.start()
        self._serve_metrics()
        log.info("listening", address=self.address)
        try:
            self._warm_up()
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
        finish_by = time.monotonic() + settings.drain_seconds
        if self._ready:
            log.info("draining", pause_seconds=settings.drain_pause_seconds, seconds=settings.drain_seconds)
            self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
            # Nothing to wait for but the balancers' next look; calls are served meanwhile.
            threading.Event().wait(settings.drain_pause_seconds)
        # Calls that come from now on are told to go elsewhere. Only once none is inside is the transport stopped: it
        # would cancel those that it has received and not yet handed over.
        self._gate.close(finish_by - time.monotonic())
        # Whoever still waits for a black box has waited long enough: that call ends now, while it can be answered.
        for function in self._registry.all():
            if function.black_box is not None:
                function.black_box.close()
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
        # What still runs then has nobody to answer; its threads end with the process.
        log.info("stopped", at_rest=at_rest)

    def serve_until_signalled(self) -> None:
        """Starts, serves until SIGTERM or SIGINT, and drains.

        The drain is bounded, so that further SIGTERMs change nothing; a second SIGINT ends the process at once.
        """
        signalled = threading.Event()

        def on_signal(number: int, _: object) -> None:
            if signalled.is_set() and number == signal.SIGINT:
                os._exit(128 + number)
            # One is enough. A handler would see the others too, perhaps faster than it returns, and would be taken away
            # when the interpreter ends: a late SIGTERM would then be this process's exit status.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            signalled.set()

        signal.signal(signal.SIGTERM, on_signal)
        signal.signal(signal.SIGINT, on_signal)
        self.start()
        signalled.wait()
        self.stop()

    def _build_server(self, desk: Desk) -> grpc.Server:
        settings = self._settings
        server = grpc.server(
            ThreadPoolExecutor(CATALOG_THREADS, thread_name_prefix="nablad-call"),
            options=[
                ("grpc.max_receive_message_length", settings.max_message_bytes),
                ("grpc.max_send_message_length", -1),  # results are bounded before they are computed
                ("grpc.so_reuseport", 0),  # two servers on one port by mistake would share its calls
                ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
                ("grpc.keepalive_permit_without_calls", 1),
            ],
        )
        explainer = Explainer(self._decoder, self._patterns, self._cache, KINDS)
        handlers = catalog_service(
            registry=self._registry, decoder=self._decoder, patterns=self._patterns, statistics=self._statistics,
            explainer=explainer, gate=self._gate,
        )  # fmt: skip
        diagnoses = diagnostics_service(registry=self._registry, decoder=self._decoder, desk=desk, gate=self._gate)
        server.add_generic_rpc_handlers((handlers, diagnoses))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        if settings.reflection:
            names = (*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(names, server)
        return server

    def _serve_metrics(self) -> None:
        if self._settings.metrics_address == "none":
            return
        registry = CollectorRegistry()
        registry.register(self._statistics)
        registry.register(self._linearizations)
        host, _, port = self._settings.metrics_address.rpartition(":")
        try:
            metrics, _ = start_http_server(int(port), host, registry)
        except (OSError, ValueError) as error:
            raise OSError(f"cannot serve metrics on {self._settings.metrics_address}: {error}") from error
        self._metrics = metrics
        log.info("metrics", address=f"{host}:{metrics.server_port}")

    def _warm_up(self) -> None:
        wanted = [(function, warm) for function in self._registry.all() for warm in function.warm]
        wanted += [(self._registry.get(ref), warm) for ref, warm in map(parse_warm, self._settings.warm)]
        for function, warm in wanted:
            started = time.monotonic()
            warm_up(function, warm, self._decoder, self._patterns, self._batcher)
            log.info("warmed", function=function.reference, operator=warm.operator, sizes=dict(warm.sizes),
                     points=list(warm.points), seconds=round(time.monotonic() - started, 2))  # fmt: skip

    def _set_health(self, status: health_pb2.HealthCheckResponse.ServingStatus) -> None:
        for service in ("", *SERVICES):
            self._health.set(service, status)
