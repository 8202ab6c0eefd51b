"""Pipelines: many points over one stream, through the Python client and as messages packed beforehand."""

import queue
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import grpc

import nablad
from benchmarks.data import Array
from benchmarks.floors import UNLIMITED
from benchmarks.jobs import WrongAnswer
from benchmarks.unary import CHECKED, check_result
from benchmarks.workloads import SERVICE, WORKLOADS, arrays_of, flaw, prepared, request
from nablad.v1 import differentiation_pb2 as pb

OPERATIONS = 256
"""In a packed message."""

MESSAGES = 16
"""Packed messages under way at once."""


def mapped(address: str, workload: str, points: int) -> float:
    """Points a second through `Client.map`."""
    asked = WORKLOADS[workload]
    with nablad.Client(address) as client:
        client.describe(asked.function)
        started = time.perf_counter()
        results = client.map(asked.operator.lower(), asked.function, _points(workload, points))
        return _read(workload, points, results, started)


def futures(address: str, workload: str, points: int) -> float:
    """Points a second through the futures of `Client.pipeline`."""
    asked = WORKLOADS[workload]
    with nablad.Client(address) as client:
        client.describe(asked.function)
        started = time.perf_counter()
        with client.pipeline() as pipeline:
            operator = getattr(pipeline, asked.operator.lower())
            pending = [operator(asked.function, point) for point in _points(workload, points)]
            return _read(workload, points, (future.result() for future in pending), started)


def _points(workload: str, count: int) -> list[Array]:
    distinct = len(prepared(workload))
    arrays = [WORKLOADS[workload].points(1, seed)[0][0] for seed in range(distinct)]
    return [arrays[number % distinct] for number in range(count)]


def _read(workload: str, points: int, results: Iterable[Any], started: float) -> float:
    """Takes all results, in order, and gives the rate; checks a sample afterwards."""
    kept, number = [], -1
    for number, result in enumerate(results):
        if number % CHECKED == 0:
            kept.append((number, result))
    rate = points / (time.perf_counter() - started)
    exchanges = prepared(workload)
    if number + 1 != points:
        raise WrongAnswer(f"{exchanges[0].workload.title}: {number + 1} results for {points} points")
    for number, result in kept:
        check_result(exchanges[number % len(exchanges)], number, result)
    return rate


def packed(address: str, workload: str, seconds: float) -> float:
    """Points a second with messages packed beforehand, each sent again once all its operations are answered."""
    exchanges = prepared(workload)
    messages = [_message(workload, first) for first in range(0, MESSAGES * OPERATIONS, OPERATIONS)]
    ready: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    for message in messages:
        ready.put(message)
    waiting = Counter(dict.fromkeys(range(MESSAGES), OPERATIONS))
    kept: list[Any] = []
    answered = 0
    with grpc.insecure_channel(address, UNLIMITED) as channel:
        open_stream: Callable[[Iterator[bytes]], Iterator[bytes]] = channel.stream_stream(f"{SERVICE}/Pipeline")  # type: ignore[assignment]
        started = time.perf_counter()
        for response in open_stream(iter(ready.get, None)):
            answers = pb.PipelineResponse.FromString(response).answers
            open_for_more = time.perf_counter() < started + seconds
            for answer in answers:
                number = answer.id // OPERATIONS
                waiting[number] -= 1
                if waiting[number] == 0 and open_for_more:
                    waiting[number] = OPERATIONS
                    ready.put(messages[number])
            kept += answers[::CHECKED]
            answered += len(answers)
            if not +waiting:
                ready.put(None)
        rate = answered / (time.perf_counter() - started)
    for answer in kept:
        exchange = exchanges[answer.id % len(exchanges)]
        response = getattr(answer, exchange.workload.operator.lower())
        if problem := flaw(exchange.expected, arrays_of(response)):
            raise WrongAnswer(f"{exchange.workload.title}, operation {answer.id}: {problem} {answer.error}")
    return rate


def _message(workload: str, first: int) -> bytes:
    """Operations with the ids `first`, `first` + 1, …"""
    asked, distinct = WORKLOADS[workload], len(prepared(workload))
    requests = [request(asked, asked.points(1, seed)[0][0]) for seed in range(distinct)]
    operations = [
        pb.Operation(id=number, **{asked.operator.lower(): requests[number % distinct]})
        for number in range(first, first + OPERATIONS)
    ]
    return pb.PipelineRequest(operations=operations).SerializeToString()
