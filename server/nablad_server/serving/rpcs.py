"""Calls, counted by method: rate, errors and duration.

What was asked by function and operator, operations of streams included, is in `statistics`.
"""

import time
from collections.abc import Collection, Iterator

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from nablad_server.serving.call import Call
from nablad_server.serving.statistics import SECONDS, Distribution


class Rpcs(Collector):
    """The calls of some methods that are over, those that were refused at the entrance included."""

    def __init__(self, methods: Collection[str]) -> None:
        """`methods` are full names, `/package.Service/Method`; calls of others do not come here."""
        self._codes: dict[str, dict[str, int]] = {method: {} for method in methods}
        self._seconds = {method: Distribution(SECONDS) for method in methods}

    def over(self, call: Call) -> None:
        """Counts a call. In one thread alone."""
        now = time.monotonic()
        if call.failure is not None:
            code = call.failure.code.name
        elif call.ended:
            code = "OK"
        else:
            code = "DEADLINE_EXCEEDED" if now >= call.deadline else "CANCELLED"
        codes = self._codes[call.method]
        codes[code] = codes.get(code, 0) + 1
        self._seconds[call.method].add(now - call.began)

    def collect(self) -> Iterator[Metric]:
        """As a scrape reads them; from another thread."""
        calls = CounterMetricFamily("nablad_rpcs", "Calls that are over.", labels=["method", "code"])
        seconds = HistogramMetricFamily(
            "nablad_rpc_seconds", "How long they took; streams, their whole life.", labels=["method"]
        )
        for method, codes in self._codes.items():
            name = method.removeprefix("/")
            for code, count in list(codes.items()):
                calls.add_metric([name, code], count)
            if codes:
                distribution = self._seconds[method]
                seconds.add_metric([name], distribution.cumulative(), distribution.sum)
        yield calls
        yield seconds
