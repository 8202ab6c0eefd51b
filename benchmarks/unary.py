"""Unary calls, of raw bytes: the same for nablad and for the echo, which `echo` says by the length of its answer."""

import asyncio
import functools
import itertools
import time
from collections.abc import Callable, Sequence
from typing import Any

import grpc
import numpy as np

import nablad
from benchmarks.floors import UNLIMITED, echo_method
from benchmarks.jobs import WrongAnswer
from benchmarks.workloads import WORKLOADS, Exchange, flaw, prepared

CHECKED = 50
"""One response in so many is compared with the closed form; the length of every one is."""

FRAMING_BYTES = 512
"""At most so much longer than its arrays is a response: names, shapes and how it came about."""


class Answers:
    """Responses as they come; checked afterwards, outside the time that is measured."""

    def __init__(self, exchanges: Sequence[Exchange], echo: int | None) -> None:
        self._exchanges = exchanges
        self._echo = echo
        arrays = exchanges[0].array_bytes
        self._lengths = (echo, echo) if echo is not None else (arrays, arrays + FRAMING_BYTES)
        self._odd: list[tuple[int, int]] = []
        self._kept: list[tuple[int, bytes]] = []

    def take(self, number: int, response: bytes) -> None:
        """The response to the call of this number."""
        if not self._lengths[0] <= len(response) <= self._lengths[1]:
            self._odd.append((number, len(response)))
        if number % CHECKED == 0:
            self._kept.append((number, response))

    def check(self) -> None:
        """Raises WrongAnswer, saying which."""
        title = self._exchanges[0].workload.title
        for number, length in self._odd:
            raise WrongAnswer(f"{title}, call {number}: {length} bytes, expected {self._lengths}")
        for number, response in self._kept if self._echo is None else ():
            if problem := self._exchanges[number % len(self._exchanges)].flaw(response):
                raise WrongAnswer(f"{title}, call {number}: {problem}")


def method_of(workload: str, echo: int | None) -> str:
    """The path to call."""
    return WORKLOADS[workload].method if echo is None else echo_method(echo)


def response_length(address: str, workload: str, batch: int | None = None) -> int:
    """The bytes of one response of nablad's. Checked."""
    exchange = prepared(workload, batch)[0]
    with grpc.insecure_channel(address, UNLIMITED) as channel:
        call: Callable[[bytes], bytes] = channel.unary_unary(method_of(workload, None))  # type: ignore[assignment]
        response = call(exchange.request)
    if problem := exchange.flaw(response):
        raise WrongAnswer(f"{exchange.workload.title}: {problem}")
    return len(response)


def one_at_a_time(
    address: str, workload: str, seconds: float, batch: int | None = None, echo: int | None = None, *, token: str = ""
) -> dict[str, float]:
    """Latencies of calls one after the other: their quantiles, in seconds, and how many there were.

    `token` shows who calls.
    """
    exchanges = prepared(workload, batch)
    answers = Answers(exchanges, echo)
    requests = [exchange.request for exchange in exchanges]
    with grpc.insecure_channel(address, UNLIMITED) as channel:
        call: Callable[..., bytes] = channel.unary_unary(method_of(workload, echo))
        if token:
            call = functools.partial(call, metadata=(("authorization", f"Bearer {token}"),))
        call(requests[0])  # connects
        spent = []
        end = time.perf_counter() + seconds
        for number in itertools.count():
            started = time.perf_counter()
            response = call(requests[number % len(requests)])
            done = time.perf_counter()
            spent.append(done - started)
            answers.take(number, response)
            if done > end and number >= 2:
                break
    answers.check()
    return quantiles(spent)


def client_one_at_a_time(address: str, workload: str, seconds: float) -> dict[str, float]:
    """The same through the Python client."""
    asked, exchanges = WORKLOADS[workload], prepared(workload)
    points = [tuple(array[0] for array in asked.points(1, seed)) for seed in range(len(exchanges))]
    spent, kept = [], []
    with nablad.Client(address) as client:
        operator: Callable[..., Any] = getattr(client, asked.operator.lower())
        operator(asked.function, *points[0])  # looks the function up
        end = time.perf_counter() + seconds
        for number in itertools.count():
            started = time.perf_counter()
            result = operator(asked.function, *points[number % len(points)])
            done = time.perf_counter()
            spent.append(done - started)
            if number % CHECKED == 0:
                kept.append((number, result))
            if done > end:
                break
    for number, result in kept:
        check_result(exchanges[number % len(exchanges)], number, result)
    return quantiles(spent)


def check_result(exchange: Exchange, number: int, result: Any) -> None:
    """Compares a result of the Python client. Raises WrongAnswer."""
    found = (result.value, result.gradient, *([result.hvp] if exchange.workload.operator == "Hvp" else []))
    if problem := flaw(exchange.expected, found):
        raise WrongAnswer(f"{exchange.workload.title}, result {number} of the Python client: {problem}")


def quantiles(spent: Sequence[float]) -> dict[str, float]:
    """The median and the 99th percentile, in seconds, and the number of calls."""
    return {"p50": float(np.median(spent)), "p99": float(np.quantile(spent, 0.99)), "calls": len(spent)}


def in_flight(address: str, workload: str, calls: int, seconds: float, echo: int | None = None) -> float:
    """Calls a second with so many calls under way at every moment, each a call of its own."""
    exchanges = prepared(workload)
    answers = Answers(exchanges, echo)
    requests = [exchange.request for exchange in exchanges]
    method = method_of(workload, echo)
    rate = asyncio.run(_in_flight(address, method, requests, answers, calls=calls, seconds=seconds))
    answers.check()
    return rate


async def _in_flight(
    address: str, method: str, requests: Sequence[bytes], answers: Answers, *, calls: int, seconds: float
) -> float:
    numbers = itertools.count()
    async with grpc.aio.insecure_channel(address, UNLIMITED) as channel:
        call: Callable[[bytes], Any] = channel.unary_unary(method)  # type: ignore[assignment]
        await call(requests[0])  # connects
        started = time.perf_counter()
        end = started + seconds

        async def one_after_the_other() -> None:
            while time.perf_counter() < end:
                number = next(numbers)
                answers.take(number, await call(requests[number % len(requests)]))

        await asyncio.gather(*(one_after_the_other() for _ in range(calls)))
        return next(numbers) / (time.perf_counter() - started)
