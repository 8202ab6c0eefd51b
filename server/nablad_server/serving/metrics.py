"""What a Prometheus scrape reads of the server's parts: the compile cache, the queue, memory, reloads, the build.

What is counted by function and operator is in `statistics`. Callers are never labels: there is no end of them.
"""

import platform
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version

import grpc
from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from nablad_server.batching.batcher import Batcher
from nablad_server.derivatives.cache import ProgramCache
from nablad_server.functions.registry import Registry
from nablad_server.serving.gate import Gate
from nablad_server.serving.reload import Reloader


@dataclass(frozen=True)
class Parts(Collector):
    """The parts that are looked at."""

    registry: Registry
    cache: ProgramCache
    batcher: Batcher
    gate: Gate
    reloader: Reloader
    queue_calls: int
    queue_bytes: int

    def collect(self) -> Iterator[Metric]:
        """As a scrape reads them."""
        yield from self._server()
        yield from self._programs()
        yield from self._queue()
        yield from self._reloads()

    def _server(self) -> Iterator[Metric]:
        versions = {
            "version": version("nablad"), "jax": version("jax"), "grpcio": grpc.__version__,
            "python": platform.python_version(),
        }  # fmt: skip
        yield InfoMetricFamily("nablad_build", "What runs.", value=versions)
        yield GaugeMetricFamily("nablad_serving", "1 while work is let in, 0 before and after.", self.gate.serving)
        yield GaugeMetricFamily("nablad_inside", "Calls and operations that are being worked on.", self.gate.inside)
        yield GaugeMetricFamily("nablad_functions", "Functions, versions counted.", len(self.registry.all()))

    def _programs(self) -> Iterator[Metric]:
        counts = self.cache.counts
        yield GaugeMetricFamily("nablad_programs", "Compiled programs that are kept.", self.cache.programs)
        yield GaugeMetricFamily("nablad_programs_limit", "How many may be kept.", self.cache.capacity)
        yield GaugeMetricFamily("nablad_compilations_pending", "Compilations that wait.", self.cache.pending)
        yield CounterMetricFamily("nablad_program_hits", "Batches whose program was there.", counts.hits)
        yield CounterMetricFamily("nablad_program_misses", "Programs asked for that were not there.", counts.misses)
        yield CounterMetricFamily("nablad_program_evictions", "Programs dropped to make room.", counts.evictions)
        compilations = CounterMetricFamily("nablad_compilations", "Compilations done.", labels=["outcome"])
        compilations.add_metric(["succeeded"], counts.compiled)
        compilations.add_metric(["failed"], counts.failed)
        yield compilations
        yield CounterMetricFamily(
            "nablad_compilation_seconds", "Time that the compile thread was at work.", counts.seconds
        )

    def _queue(self) -> Iterator[Metric]:
        held = self.batcher.held()
        yield GaugeMetricFamily("nablad_queue_calls", "Calls that wait for execution.", held.calls)
        yield GaugeMetricFamily("nablad_queue_calls_limit", "How many may wait.", self.queue_calls)
        yield GaugeMetricFamily("nablad_queue_bytes", "Bytes of arguments that waiting calls hold.", held.size)
        yield GaugeMetricFamily("nablad_queue_bytes_limit", "How many they may hold.", self.queue_bytes)
        yield GaugeMetricFamily("nablad_queue_lanes", "Kinds of work among the calls that wait.", held.lanes)

    def _reloads(self) -> Iterator[Metric]:
        counts = self.reloader.counts
        outcomes = CounterMetricFamily("nablad_reloads", "Reloads, by what came of them.", labels=["outcome"])
        for outcome, count in counts.outcomes.items():
            outcomes.add_metric([outcome], count)
        yield outcomes
        yield HistogramMetricFamily(
            "nablad_reload_seconds", "Reloads.", buckets=counts.seconds.cumulative(), sum_value=counts.seconds.sum
        )
        yield GaugeMetricFamily(
            "nablad_last_reload_refused", "1 if the last reload was refused, and changed nothing.", counts.last_refused
        )


def metrics_of(*collectors: Collector) -> CollectorRegistry:
    """All that a scrape reads: these, and the process, the collector of garbage and the platform."""
    registry = CollectorRegistry()
    for collector in collectors:
        registry.register(collector)
    ProcessCollector(registry=registry)
    GCCollector(registry=registry)
    PlatformCollector(registry=registry)
    return registry
