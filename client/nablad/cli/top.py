"""`nablad top`: what a server does, watched live."""

import dataclasses
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import click
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from nablad.cli.options import connected, connects
from nablad.cli.output import plain
from nablad.client import Client
from nablad.errors import NabladError
from nablad.reports import Histogram, OperatorStatistics

ORDERS = ("load", "requests", "points", "p99", "errors")
"""What rows can be sorted by. The load is the time spent computing."""

BAR = "▁▂▃▄▅▆▇█"

Statistics = Sequence[OperatorStatistics]


@dataclass(frozen=True)
class Row:
    """One operator of one function, over a span of time. Times are in seconds, NaN where there were none.

    Attributes:
        function: `name@version`; empty for requests that were refused as soon as they were read.
        operator: such as `gradient`.
        requests_per_second: answered with a result.
        points_per_second: in them.
        errors_per_second: requests answered with an error.
        load: seconds of computing per second.
        batch_points: the mean points of an execution.
        padding: the share of the points computed that only filled a batch.
        p50: half of the requests took no longer than this.
        p99: 99 % of the requests.
        queue_p99: of the time before execution.
        compute_mean: of an execution.
        compilations: requests that waited for one.
        errors: requests answered with an error, by reason.
    """

    function: str
    operator: str
    requests_per_second: float
    points_per_second: float
    errors_per_second: float
    load: float
    batch_points: float
    padding: float
    p50: float
    p99: float
    queue_p99: float
    compute_mean: float
    compilations: int
    errors: Mapping[str, int]


@click.command()
@connects
@click.option("--interval", type=click.FloatRange(0.1), default=1.0, show_default=True, help="Seconds between looks.")
@click.option("--once", is_flag=True, help="Print what was done over one interval, and end.")
@click.option(
    "--sort", type=click.Choice(ORDERS), default="load", show_default=True, help="The busiest first, by this."
)
@click.option("--all", "everything", is_flag=True, help="Also what was idle over the interval.")
def top(  # noqa: PLR0917 - click passes everything by keyword
    address: str, timeout: float, as_json: bool, interval: float, once: bool, sort: str, everything: bool
) -> None:
    """Watch what the server does, by function and operator: rates, latencies, batches, errors. Ctrl-C ends it.

    With --json one line of JSON for each interval.
    """
    console = Console()
    with connected(address, timeout) as client:
        before, then = client.statistics(), time.monotonic()
        if once or as_json:
            while True:
                time.sleep(interval)
                after, now = client.statistics(), time.monotonic()
                rows = rows_between(before, after, now - then, sort, everything=everything)
                if as_json:
                    click.echo(json.dumps([plain(dataclasses.asdict(row)) for row in rows]))
                else:
                    console.print(view(address, rows, len(after), now - then, []))
                if once:
                    return
                before, then = after, now
        _watch(client, console, address, interval, sort, everything=everything)


def _watch(client: Client, console: Console, address: str, interval: float, sort: str, *, everything: bool) -> None:
    before, then = client.statistics(), time.monotonic()
    rates: list[float] = []
    with Live(
        view(address, [], len(before), interval, rates), console=console, screen=True, auto_refresh=False
    ) as live:
        try:
            while True:
                time.sleep(interval)
                try:
                    after, now = client.statistics(), time.monotonic()
                except NabladError as error:  # it may come back
                    live.update(Text(f"{address}: {type(error).__name__}: {error}", style="red"), refresh=True)
                    continue
                rows = rows_between(before, after, now - then, sort, everything=everything)
                rates = [*rates[-39:], sum(row.requests_per_second for row in rows)]
                live.update(view(address, rows, len(after), now - then, rates), refresh=True)
                before, then = after, now
        except KeyboardInterrupt:
            return


def rows_between(before: Statistics, after: Statistics, seconds: float, sort: str, *, everything: bool) -> list[Row]:
    """What was done between two looks that are so many seconds apart, the busiest first."""
    earlier = {(one.function, one.operator): one for one in before}
    rows = [_row(earlier.get((one.function, one.operator)), one, seconds) for one in after]
    busy = [row for row in rows if everything or row.requests_per_second or row.errors or row.load]
    return sorted(busy, key=lambda row: (-_measure(row, sort), row.function, row.operator))


def _measure(row: Row, sort: str) -> float:
    """What a row is sorted by."""
    match sort:
        case "requests":
            return row.requests_per_second
        case "points":
            return row.points_per_second
        case "errors":
            return row.errors_per_second
        case "p99":
            return -1.0 if math.isnan(row.p99) else row.p99
        case _:
            return row.load


def _row(before: OperatorStatistics | None, after: OperatorStatistics, seconds: float) -> Row:
    def since(name: str) -> Histogram:
        now: Histogram = getattr(after, name)
        return now if before is None else now.since(getattr(before, name))

    def gained(name: str) -> int:
        now, then = int(getattr(after, name)), 0 if before is None else int(getattr(before, name))
        return now - then if now >= then else now

    known = {} if before is None else before.rejections
    errors = {reason: count - known.get(reason, 0) for reason, count in after.rejections.items()}
    batch, compute, request = since("batch_points"), since("compute_seconds"), since("request_seconds")
    padding = gained("padding_points")
    return Row(
        function=after.function,
        operator=after.operator,
        requests_per_second=gained("requests") / seconds,
        points_per_second=gained("points") / seconds,
        errors_per_second=sum(map(abs, errors.values())) / seconds,
        load=compute.sum / seconds,
        batch_points=batch.mean,
        padding=padding / (padding + batch.sum) if padding else 0.0,
        p50=request.quantile(0.5),
        p99=request.quantile(0.99),
        queue_p99=since("queue_seconds").quantile(0.99),
        compute_mean=compute.mean,
        compilations=since("compile_seconds").count,
        errors={reason: count for reason, count in errors.items() if count},
    )


def view(address: str, rows: Sequence[Row], series: int, seconds: float, rates: Sequence[float]) -> RenderableType:
    """What a terminal shows of it; `rates` are the requests per second of the last intervals, for a small graph."""
    total = sum(row.requests_per_second for row in rows)
    points = sum(row.points_per_second for row in rows)
    failed = sum(row.errors_per_second for row in rows)
    head = Text.assemble(
        ("nablad ", "bold"), (f"{address}  ", "cyan"), (_number(total), "bold"), " requests/s   ",
        (_number(points), "bold"), " points/s   ", (_number(failed), "bold red" if failed else "bold"), " errors/s   ",
        (f"{sum(row.load for row in rows):.0%}", "bold"), " of a core computing   ", (graph(rates), "green"),
    )  # fmt: skip
    foot = Text(f"{len(rows)} of {series} active over {seconds:.1f} s", style="dim")
    return Group(head, Text(""), _table(rows), Text(""), foot)


def _table(rows: Sequence[Row]) -> Table:
    table = Table(box=None, header_style="bold dim", pad_edge=False, padding=(0, 2, 0, 0), expand=False)
    table.add_column("function", overflow="ellipsis", no_wrap=True, max_width=32)
    table.add_column("operator", style="cyan", no_wrap=True)
    for name in ("req/s", "points/s", "load", "p50", "p99", "queue p99", "compute", "batch", "padding", "compiled"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("errors", overflow="fold")
    for row in rows:
        table.add_row(
            Text(row.function or "(refused when read)", style="" if row.function else "dim"),
            row.operator.replace("_", " "),
            _number(row.requests_per_second),
            _number(row.points_per_second),
            Text(f"{row.load:.0%}", style="yellow" if row.load > 0.5 else ""),
            *map(_seconds, (row.p50, row.p99, row.queue_p99, row.compute_mean)),
            "" if math.isnan(row.batch_points) else f"{row.batch_points:.3g}",
            f"{row.padding:.0%}" if row.padding else "",
            Text(str(row.compilations), style="magenta") if row.compilations else "",
            Text(", ".join(f"{_words(reason)} {count}" for reason, count in sorted(row.errors.items())), style="red"),
        )
    return table


def graph(values: Sequence[float]) -> str:
    """A line of bars, the highest full."""
    most = max(values, default=0.0)
    return "".join(BAR[min(len(BAR) - 1, int(value / most * len(BAR)))] if most else BAR[0] for value in values)


def _words(reason: str) -> str:
    return escape(reason.lower().replace("_", " "))


def _number(value: float) -> str:
    """Three digits: 1234567 is 1.23M."""
    for factor, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.3g}{prefix}"
    return f"{value:.3g}"


def _seconds(value: float) -> str:
    if math.isnan(value):
        return ""
    for factor, unit in ((1.0, "s"), (1e-3, "ms")):
        if value >= factor:
            return f"{value / factor:.3g} {unit}"
    return f"{value / 1e-6:.3g} µs"
