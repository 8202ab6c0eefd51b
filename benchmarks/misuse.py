"""Callers who ask for more than there is, change their minds, or send nonsense."""

import asyncio
import itertools
import random
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import grpc
import numpy as np

import nablad
from benchmarks.floors import UNLIMITED
from benchmarks.jobs import WrongAnswer
from benchmarks.workloads import SERVICE, WORKLOADS, Exchange, message, prepared
from nablad.tensors import to_tensor
from nablad.v1 import differentiation_pb2 as pb
from nablad.v1 import tensor_pb2

DEADLINE_SECONDS = 0.05
CALLS_IN_FLIGHT = 64
LANES = range(1, 9)
"""The calls of one lane can share an execution of 20 ms: with eight lanes, a round takes longer than the deadline."""

CANCELLED, MALFORMED = 0.30, 0.05
CANCEL_WITHIN_SECONDS = 0.02
"""About as long as a call takes under this load: cancellations meet calls on their way, waiting, and executing."""

STUCK_SECONDS = 30.0


def late_points(address: str, since: float = 0.0) -> float:
    """What the function `late_points` says: executions of `due` spent on points whose deadline had passed."""
    with nablad.Client(address) as client:
        return float(client.evaluate("late_points", since).value)


def prepare_overload(address: str) -> None:
    """Has the programs of `due` compiled, so that what follows waits for executions alone."""
    with nablad.Client(address) as client:
        for lane in LANES:
            for points in (1, 2, 4, 8, 16):
                client.evaluate("due", np.zeros(points), np.zeros((points, lane)), batched=True)
            client.evaluate("due", 0.0, np.zeros(lane))


def overload(address: str, seconds: float) -> dict[str, int]:
    """Asks `due` for several times what can be done, each call with a deadline of 50 ms. Calls by what they came to."""
    return dict(asyncio.run(_overload(address, seconds)))


async def _overload(address: str, seconds: float) -> Counter[str]:
    found: Counter[str] = Counter()
    end = time.perf_counter() + seconds
    lanes = [tensor_pb2.NamedTensor(name="lane", tensor=to_tensor(np.zeros(lane))) for lane in LANES]
    turn = itertools.count()
    async with grpc.aio.insecure_channel(address) as channel:
        call: Callable[..., Any] = channel.unary_unary(f"{SERVICE}/Evaluate")

        async def one_after_the_other() -> None:
            while time.perf_counter() < end:
                deadline = time.time() + DEADLINE_SECONDS
                tensor = tensor_pb2.NamedTensor(name="deadline", tensor=to_tensor(deadline))
                request = pb.EvaluateRequest(function="due", inputs=[tensor, lanes[next(turn) % len(lanes)]])
                try:
                    answer = await call(request.SerializeToString(), timeout=DEADLINE_SECONDS)
                except grpc.aio.AioRpcError as error:
                    found[error.code().name] += 1
                    continue
                response = pb.EvaluateResponse.FromString(answer)
                if response.values[0].tensor.data != tensor.tensor.data:
                    raise WrongAnswer("due: the deadline that came back is not the one that was sent")
                found["answered"] += 1

        await asyncio.gather(*(one_after_the_other() for _ in range(CALLS_IN_FLIGHT)))
    return found


def mixed(address: str, calls: int, seed: int = 0) -> dict[str, int]:
    """Many calls, some cancelled at random moments, some malformed: how many came to what.

    The keys `wrong status`, `lost` and `stuck` are what must not be; a wrong answer raises WrongAnswer.
    """
    return dict(asyncio.run(_mixed(address, calls, random.Random(seed))))  # noqa: S311 - for repeatable load


def _malformed() -> list[tuple[bytes, grpc.StatusCode]]:
    """Requests for a gradient that are wrong in different ways, and what each must be answered with."""
    good = WORKLOADS["W1"]
    point = good.points(1)[0]
    short = pb.GradientRequest.FromString(message(good, point[0]))
    short.inputs[0].tensor.data = short.inputs[0].tensor.data[:-1]
    unknown = pb.GradientRequest.FromString(message(good, point[0]))
    unknown.function = "no_such_function"
    return [
        (b"\xff\xff not a message", grpc.StatusCode.INVALID_ARGUMENT),
        (message(good, point), grpc.StatusCode.INVALID_ARGUMENT),  # a matrix for a vector
        (short.SerializeToString(), grpc.StatusCode.INVALID_ARGUMENT),
        (unknown.SerializeToString(), grpc.StatusCode.NOT_FOUND),
    ]


async def _mixed(address: str, calls: int, chance: random.Random) -> Counter[str]:
    found: Counter[str] = Counter()
    answered: list[tuple[Exchange, bytes]] = []
    exchanges = [exchange for name in ("W1", "W2", "W3") for exchange in prepared(name)]
    malformed = _malformed()
    left = iter(range(calls))
    async with grpc.aio.insecure_channel(address, UNLIMITED) as channel:
        methods: dict[str, Any] = {e.workload.method: channel.unary_unary(e.workload.method) for e in exchanges}

        async def good(exchange: Exchange, cancelled: bool) -> None:
            call: Any = methods[exchange.workload.method](exchange.request, timeout=STUCK_SECONDS)
            if cancelled:
                asyncio.get_running_loop().call_later(chance.uniform(0, CANCEL_WITHIN_SECONDS), call.cancel)
            try:
                answered.append((exchange, await call))
                found["answered"] += 1
            except asyncio.CancelledError:
                found["cancelled" if cancelled else "lost"] += 1
            except grpc.aio.AioRpcError as error:
                found["stuck" if error.code() == grpc.StatusCode.DEADLINE_EXCEEDED else "lost"] += 1

        async def bad(request: bytes, expected: grpc.StatusCode) -> None:
            call: Any = methods[WORKLOADS["W1"].method](request, timeout=STUCK_SECONDS)
            code = await call.code()
            found["refused" if code == expected else "wrong status"] += 1

        async def one_after_the_other() -> None:
            for _ in left:
                if (draw := chance.random()) < MALFORMED:
                    await bad(*chance.choice(malformed))
                else:
                    await good(chance.choice(exchanges), cancelled=draw < MALFORMED + CANCELLED)

        await asyncio.gather(*(one_after_the_other() for _ in range(CALLS_IN_FLIGHT)))
    for exchange, response in answered:
        if problem := exchange.flaw(response):
            raise WrongAnswer(f"{exchange.workload.title}, among cancelled and malformed calls: {problem}")
    return found
