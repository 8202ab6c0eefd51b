"""What the operator of a server asks of it, as data: what to send and how to read the answer. Pure."""

from nablad import reports
from nablad.v1 import admin_pb2, catalog_pb2, error_pb2, function_pb2


def statistics_request(function: str | None) -> catalog_pb2.GetStatisticsRequest:
    """The request that asks what was done, for one function or for all."""
    return catalog_pb2.GetStatisticsRequest(function=function or "")


def statistics(response: catalog_pb2.GetStatisticsResponse) -> tuple[reports.OperatorStatistics, ...]:
    """A response about what was done, read."""
    return tuple(
        reports.OperatorStatistics(
            function=one.function,
            operator=_operator(one.operator),
            requests=one.requests,
            points=one.points,
            padding_points=one.padding_points,
            batch_points=_histogram(one.batch_points),
            queue_seconds=_histogram(one.queue_seconds),
            compile_seconds=_histogram(one.compile_seconds),
            compute_seconds=_histogram(one.compute_seconds),
            encode_seconds=_histogram(one.encode_seconds),
            request_seconds=_histogram(one.request_seconds),
            rejections={_reason(each.reason): each.requests for each in one.rejections},
        )
        for one in response.statistics
    )


def reload(response: admin_pb2.ReloadResponse) -> reports.Reload:
    """What came of a reload, read."""
    return reports.Reload(
        added=tuple(response.added),
        replaced=tuple(response.replaced),
        removed=tuple(response.removed),
        refused={each.source: each.reason for each in response.refused},
        seconds=response.nanoseconds * 1e-9,
    )


def _histogram(histogram: catalog_pb2.Histogram) -> reports.Histogram:
    return reports.Histogram(tuple(histogram.bounds), tuple(histogram.counts), histogram.sum)


def _operator(number: function_pb2.Operator.ValueType) -> str:
    if number not in function_pb2.Operator.values():  # of a server newer than this client
        return f"operator_{number}"
    return function_pb2.Operator.Name(number).removeprefix("OPERATOR_").lower()


def _reason(number: error_pb2.Reason.ValueType) -> str:
    if number not in error_pb2.Reason.values():  # likewise
        return f"REASON_{number}"
    return error_pb2.Reason.Name(number).removeprefix("REASON_")
