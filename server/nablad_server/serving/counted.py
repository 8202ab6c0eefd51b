"""What grpc.server serves itself, counted: rate, errors and duration by method.

The calls of DifferentiationService go another way, and are counted by function and operator in `statistics`.
"""

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import grpc
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from nablad_server.serving.statistics import SECONDS, Distribution

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


class Counted(grpc.ServerInterceptor, Collector):
    """Counts unary calls. Methods that there are not are no labels: there is no end of them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._codes: dict[tuple[str, str], int] = {}
        self._seconds: dict[str, Distribution] = {}

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], "Handler | None"],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "Handler | None":
        """The method's handler, whose calls are counted."""
        handler = continuation(handler_call_details)
        if handler is None or handler.unary_unary is None:
            return handler
        method, respond = handler_call_details.method.removeprefix("/"), handler.unary_unary

        def behave(request: Any, context: Any) -> Any:
            began = time.perf_counter()
            try:
                return respond(request, context)
            finally:
                self._count(method, context.code(), time.perf_counter() - began)

        return grpc.unary_unary_rpc_method_handler(behave, handler.request_deserializer, handler.response_serializer)

    def _count(self, method: str, code: grpc.StatusCode | None, seconds: float) -> None:
        name = "OK" if code is None else code.name
        with self._lock:
            self._codes[method, name] = self._codes.get((method, name), 0) + 1
            self._seconds.setdefault(method, Distribution(SECONDS)).add(seconds)

    def collect(self) -> Iterator[Metric]:
        """As a scrape reads them."""
        calls = CounterMetricFamily(
            "nablad_rpcs", "Calls of the catalogue, diagnostics, administration and health.", labels=["method", "code"]
        )
        seconds = HistogramMetricFamily("nablad_rpc_seconds", "How long they took.", labels=["method"])
        with self._lock:
            for (method, code), count in self._codes.items():
                calls.add_metric([method, code], count)
            for method, distribution in self._seconds.items():
                seconds.add_metric([method], distribution.cumulative(), distribution.sum)
        yield calls
        yield seconds
