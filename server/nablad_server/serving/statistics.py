"""What the server has done, for each function and operator: counts, and distributions of sizes and times.

The numbers are kept here, because a call is counted in a fraction of a microsecond; the Prometheus client library makes
them into what a scrape reads.
"""

import bisect
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from nablad.errors import NabladError
from nablad.v1 import catalog_pb2, error_pb2, function_pb2
from nablad_server.batching.ticket import Outcome
from nablad_server.derivatives.inspection import Inspection
from nablad_server.derivatives.linear import Opening
from nablad_server.derivatives.linear_runner import Linearization
from nablad_server.derivatives.query import Query

SECONDS = tuple(base * 10.0**exponent for exponent in range(-6, 2) for base in (1, 2, 5))
"""Upper bounds of the buckets of times: 1 µs to 50 s."""

POINTS = tuple(float(1 << exponent) for exponent in range(15))
"""Upper bounds of the buckets of batch sizes: 1 to 16384."""


MAX_QUERIES = 8192

REASONS = {name.removeprefix("REASON_"): number for name, number in error_pb2.Reason.items()}


class Distribution:
    """How often values fell between bounds, and their sum."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def add(self, value: float) -> None:
        """Counts a value."""
        self.counts[bisect.bisect_left(self.bounds, value)] += 1
        self.sum += value

    def message(self) -> catalog_pb2.Histogram:
        """As the catalogue publishes it."""
        return catalog_pb2.Histogram(bounds=self.bounds, counts=self.counts, sum=self.sum)

    def cumulative(self) -> list[tuple[str, float]]:
        """As a scrape reads it: for each upper bound how many values are no larger."""
        total, pairs = 0, []
        for bound, count in zip([*map(str, self.bounds), "+Inf"], self.counts, strict=True):
            total += count
            pairs.append((bound, float(total)))
        return pairs


class Series:
    """What was done for one operator of one function. Safe to use from several threads."""

    def __init__(self, function: str, operator: function_pb2.Operator.ValueType) -> None:
        """`function` is `name@version`, or empty for requests that were refused as soon as they were read."""
        self.function = function
        self.operator = operator
        self._lock = threading.Lock()
        self.requests = 0
        self.points = 0
        self.padding_points = 0
        self.batch_points = Distribution(POINTS)
        self.queue = Distribution(SECONDS)
        self.compile = Distribution(SECONDS)
        self.compute = Distribution(SECONDS)
        self.encode = Distribution(SECONDS)
        self.request = Distribution(SECONDS)
        self.rejections: Counter[str] = Counter()

    def answered(self, points: int, outcome: Outcome, encode_seconds: float) -> None:
        """A request was answered with a result."""
        with self._lock:
            self.requests += 1
            self.points += points
            self.queue.add(outcome.queue_seconds)
            self.encode.add(encode_seconds)
            self.request.add(outcome.queue_seconds + outcome.compute_seconds + encode_seconds)
            if outcome.compile_seconds:
                self.compile.add(outcome.compile_seconds)

    def rejected(self, error: NabladError) -> None:
        """A request was answered with an error."""
        with self._lock:
            self.rejections[error.reason or error.code.name] += 1

    def executed(self, points: int, computed: int, seconds: float) -> None:
        """A batch ran."""
        with self._lock:
            self.padding_points += computed - points
            self.batch_points.add(points)
            self.compute.add(seconds)

    def message(self) -> catalog_pb2.OperatorStatistics:
        """As the catalogue publishes it."""
        with self._lock:
            return catalog_pb2.OperatorStatistics(
                function=self.function,
                operator=self.operator,
                requests=self.requests,
                points=self.points,
                padding_points=self.padding_points,
                batch_points=self.batch_points.message(),
                queue_seconds=self.queue.message(),
                compile_seconds=self.compile.message(),
                compute_seconds=self.compute.message(),
                encode_seconds=self.encode.message(),
                request_seconds=self.request.message(),
                rejections=[
                    catalog_pb2.Rejection(reason=REASONS.get(reason, error_pb2.REASON_UNSPECIFIED), requests=requests)
                    for reason, requests in sorted(self.rejections.items())
                ],
            )


class Statistics(Collector):
    """All series; what a Prometheus registry collects. An Observer of the batcher."""

    def __init__(self) -> None:
        self._series: dict[tuple[str, int], Series] = {}
        self._by_query: dict[Query, Series] = {}  # so that a call needs not put a name together

    def of(self, function: str, operator: function_pb2.Operator.ValueType) -> Series:
        """The series of one operator of one function, `name@version` or empty."""
        key = (function, operator)
        return self._series.get(key) or self._series.setdefault(key, Series(function, operator))

    def of_query(self, query: Query) -> Series:
        """The series that a query counts to."""
        series = self._by_query.get(query)
        if series is None:
            if len(self._by_query) >= MAX_QUERIES:
                self._by_query.clear()
            series = self._by_query[query] = self.of(query.function.reference, query.operator)
        return series

    def forget(self) -> None:
        """Lets go of all queries; their numbers stay."""
        self._by_query.clear()

    def executed(
        self, key: Query | Inspection | Opening | Linearization, points: int, computed: int, seconds: float
    ) -> None:
        """A batch ran. See Observer."""
        if isinstance(key, Opening):  # what is kept for many products is no point of theirs
            return
        query = key if isinstance(key, Query) else key.query
        self.of_query(query).executed(points, computed, seconds)

    def messages(self, function: str = "") -> list[catalog_pb2.OperatorStatistics]:
        """As the catalogue publishes them, by name; those of one function, `name@version`, if one is given."""
        series = sorted(self._series.values(), key=lambda one: (one.function, one.operator))
        return [one.message() for one in series if not function or one.function == function]

    def collect(self) -> Iterator[Metric]:
        """As a scrape reads them."""
        series = list(self._series.values())
        yield from _counters(series)
        for name, documentation, attribute in (
            ("nablad_batch_points", "Points that rode in one execution, padding not counted.", "batch_points"),
            ("nablad_queue_seconds", "From the decoding of a request to the start of its execution.", "queue"),
            ("nablad_compile_seconds", "Compilations that requests waited for.", "compile"),
            ("nablad_compute_seconds", "Executions.", "compute"),
            (
                "nablad_encode_seconds",
                "From an execution's end until a response was with the transport.",
                "encode",
            ),
            (
                "nablad_request_seconds",
                "From the decoding of a request until its response was with the transport.",
                "request",
            ),
        ):
            family = HistogramMetricFamily(name, documentation, labels=("function", "operator"))
            for one in series:
                distribution: Distribution = getattr(one, attribute)
                family.add_metric(_labels(one), distribution.cumulative(), distribution.sum)
            yield family


def _counters(series: Iterable[Series]) -> Iterator[Metric]:
    for name, documentation, attribute in (
        ("nablad_requests", "Requests answered with a result: calls, and operations of pipelines.", "requests"),
        ("nablad_points", "Points in requests answered with a result.", "points"),
        ("nablad_padding_points", "Points computed only to fill a batch.", "padding_points"),
    ):
        family = CounterMetricFamily(name, documentation, labels=("function", "operator"))
        for one in series:
            family.add_metric(_labels(one), getattr(one, attribute))
        yield family
    rejected = CounterMetricFamily(
        "nablad_rejections", "Requests answered with an error.", labels=("function", "operator", "reason")
    )
    for one in series:
        for reason, requests in list(one.rejections.items()):
            rejected.add_metric([*_labels(one), reason], requests)
    yield rejected


def _labels(series: Series) -> list[str]:
    return [series.function, function_pb2.Operator.Name(series.operator).removeprefix("OPERATOR_").lower()]
