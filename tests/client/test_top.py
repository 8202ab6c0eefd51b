"""What a server says that it has done, as the clients read it and as `nablad top` shows it."""

import asyncio
import json
import math
import threading
from collections.abc import Iterator
from dataclasses import replace
from io import StringIO
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from rich.console import Console

import nablad
from nablad import Histogram, OperatorStatistics, aio
from nablad.cli import main
from nablad.cli.top import graph, rows_between, view

BOUNDS = (1.0, 2.0, 4.0)
EMPTY = Histogram(BOUNDS, (0, 0, 0, 0), 0.0)


def statistics(function: str, **changes: Any) -> OperatorStatistics:
    found = OperatorStatistics(
        function=function, operator="gradient", requests=0, points=0, padding_points=0, batch_points=EMPTY,
        queue_seconds=EMPTY, compile_seconds=EMPTY, compute_seconds=EMPTY, encode_seconds=EMPTY, request_seconds=EMPTY,
        rejections={},
    )  # fmt: skip
    return replace(found, **changes)


def test_quantiles_are_those_of_values_spread_over_their_buckets() -> None:
    values = np.linspace(0.005, 3.995, 400)  # a hundred up to 1, a hundred up to 2, two hundred up to 4
    found = Histogram(BOUNDS, (100, 100, 200, 0), float(values.sum()))

    assert found.count == 400
    assert found.mean == pytest.approx(2.0)
    for share in (0.01, 0.1, 0.25, 0.5, 0.9, 0.99, 1.0):
        assert found.quantile(share) == pytest.approx(float(np.quantile(values, share)), abs=0.01)
    assert Histogram(BOUNDS, (0, 0, 0, 5), 50.0).quantile(0.5) == 4.0
    assert math.isnan(EMPTY.quantile(0.5))
    assert math.isnan(EMPTY.mean)


def test_what_came_since_an_earlier_look_and_after_a_restart() -> None:
    earlier, later = Histogram(BOUNDS, (1, 2, 0, 0), 3.5), Histogram(BOUNDS, (1, 5, 1, 0), 11.0)

    assert later.since(earlier) == Histogram(BOUNDS, (0, 3, 1, 0), 7.5)
    assert earlier.since(later) == earlier, "counts that go down are those of another process"
    assert later.since(Histogram((1.0,), (0, 0), 0.0)) == later


def test_rates_are_those_between_two_looks_the_busiest_first() -> None:
    before = [statistics("a@1", requests=100, points=1000, rejections={"QUEUE_FULL": 5}), statistics("idle@1")]
    after = [
        statistics("a@1", requests=120, points=1400, padding_points=100,
                   batch_points=Histogram(BOUNDS, (0, 0, 0, 4), 300),
                   compute_seconds=Histogram(BOUNDS, (4, 0, 0, 0), 1.0), rejections={"QUEUE_FULL": 11}),
        statistics("b@1", requests=6, points=6, compute_seconds=Histogram(BOUNDS, (0, 0, 1, 0), 3.0)),
        statistics("idle@1"),
    ]  # fmt: skip
    rows = rows_between(before, after, 2.0, "load", everything=False)

    assert [(row.function, row.load) for row in rows] == [("b@1", 1.5), ("a@1", 0.5)]
    a = rows[1]
    assert (a.requests_per_second, a.points_per_second, a.errors_per_second) == (10.0, 200.0, 3.0)
    assert (a.batch_points, a.padding, a.compute_mean, a.errors) == (75.0, 0.25, 0.25, {"QUEUE_FULL": 6})
    assert [row.function for row in rows_between(before, after, 2.0, "requests", everything=False)] == ["a@1", "b@1"]
    assert len(rows_between(before, after, 2.0, "errors", everything=True)) == 3


def test_the_view_names_what_is_busy_and_what_goes_wrong() -> None:
    refused = statistics("", rejections={"FUNCTION_NOT_FOUND": 1})
    busy = statistics("a@1", requests=2468, rejections={"QUEUE_FULL": 3})
    rows = rows_between([], [refused, busy], 1.0, "requests", everything=False)
    out = StringIO()
    Console(file=out, width=160).print(view("127.0.0.1:50051", rows, 2, 1.0, [0.0, 1.0, 2.0]))
    text = out.getvalue()

    for words in ("127.0.0.1:50051", "2.47k requests/s", "4 errors/s", "a@1", "queue full 3", "(refused when read)",
                  "function not found 1", "2 of 2 active over 1.0 s", "▁▅█"):  # fmt: skip
        assert words in text
    assert graph([]) == ""
    assert graph([0.0, 0.0]) == "▁▁"


@pytest.fixture
def busy(client: nablad.Client, server_address: str) -> Iterator[str]:
    """The shared server's address, while somebody asks it for Hessians."""
    stop = threading.Event()

    def ask() -> None:
        with nablad.Client(server_address) as mine:
            while not stop.is_set():
                mine.hessian("rosenbrock", np.ones(3))

    thread = threading.Thread(target=ask)
    thread.start()
    yield server_address
    stop.set()
    thread.join()


def test_the_command_shows_a_server_at_work(busy: str) -> None:
    table = CliRunner().invoke(main, ["top", "--once", "--interval", "0.5", "--address", busy], env={"COLUMNS": "160"})
    lines = CliRunner().invoke(main, ["top", "--once", "--json", "--interval", "0.5", "--address", busy]).output

    assert table.exit_code == 0
    assert "rosenbrock@1" in table.output
    row = next(row for row in json.loads(lines) if (row["function"], row["operator"]) == ("rosenbrock@1", "hessian"))
    assert row["requests_per_second"] > 0
    assert 0 < row["p50"] <= row["p99"]
    assert row["errors"] == {}


def test_both_clients_read_the_same_statistics(client: nablad.Client, server_address: str) -> None:
    client.gradient("matyas", [1.0, 2.0])
    mine = client.statistics("matyas")

    async def theirs() -> Any:
        async with aio.Client(server_address) as other:
            return await other.statistics("matyas")

    while not sum(one.requests for one in mine):  # it is counted just after its answer was sent
        mine = client.statistics("matyas")
    (gradient,) = [one for one in mine if one.operator == "gradient"]
    assert gradient.function == "matyas@1"
    assert gradient.points >= gradient.requests >= 1
    assert gradient.request_seconds.count == gradient.queue_seconds.count == gradient.requests
    parts = gradient.queue_seconds.sum + gradient.compute_seconds.sum + gradient.encode_seconds.sum
    assert gradient.request_seconds.sum >= parts * (1 - 1e-9)  # and what lies between them
    assert asyncio.run(theirs()) == mine
