"""Second order at scale, through the Python client: sparse and streamed Hessians, products at one point, what gradients
cost.

Every result is checked against a closed form outside the time that is measured.
"""

import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import grpc
import numpy as np

import nablad
from benchmarks.data import COUPLING, GRAVITY, STEPS, Array
from benchmarks.floors import UNLIMITED, stream_method
from benchmarks.jobs import WrongAnswer
from benchmarks.workloads import TOLERANCE, flaw, rosenbrock_hessian_parts

COST_ELEMENTS = 100_000
"""So many numbers go into a function when its cost and its gradient's are compared, in as many points as that takes."""
COST_POINTS = 20_000
COST_REPEATS = 5

WARM_SECONDS = 2.0
"""Products are asked for so long before they are counted."""


def _point(n: int) -> Array:
    return np.random.default_rng(n).uniform(-0.5, 0.5, n)


def sparse_hessian(address: str, n: int, calls: int) -> float:
    """The median time of a sparse Hessian of Rosenbrock's function, once its pattern is known."""
    x, spent = _point(n), []
    with nablad.Client(address, timeout=600) as client:
        for _ in range(calls + 1):
            started = time.perf_counter()
            found = client.hessian("rosenbrock", x, sparse=True).hessian
            spent.append(time.perf_counter() - started)
    diagonal, beside = rosenbrock_hessian_parts(x[None])
    expected = (diagonal[0], beside[0], beside[0])
    if problem := flaw(expected, (found.diagonal(), found.diagonal(1), found.diagonal(-1))):
        raise WrongAnswer(f"sparse Hessian, n = {n}: {problem}")
    if found.nnz != 3 * n - 2:
        raise WrongAnswer(f"sparse Hessian, n = {n}: {found.nnz} elements are kept, expected {3 * n - 2}")
    return statistics.median(spent[1:])


def streamed_hessian(address: str, n: int) -> float:
    """The time of a whole dense Hessian of Rosenbrock's function, over a stream, block by block."""
    x = _point(n)
    diagonal, beside = rosenbrock_hessian_parts(x[None])
    allowed = TOLERANCE * float(np.max(np.abs(diagonal)))
    rows = 0
    started = time.perf_counter()
    with nablad.Client(address) as client, client.stream_hessian("rosenbrock", x) as stream:
        for block in stream:
            # One row of each block: the bytes are read, the time is the transport's.
            row, found = block.first_row, block.array[0]
            expected = np.zeros(n)
            expected[row] = diagonal[0, row]
            expected[row + 1 : row + 2] = beside[0, row : row + 1]
            if row:
                expected[row - 1] = beside[0, row - 1]
            if not float(np.max(np.abs(found - expected))) <= allowed:
                raise WrongAnswer(f"streamed Hessian, n = {n}: row {row} is wrong")
            rows += len(block.array)
    if rows != n:
        raise WrongAnswer(f"streamed Hessian, n = {n}: {rows} rows came")
    return time.perf_counter() - started


def block_rows(address: str, n: int) -> tuple[int, int]:
    """How many rows the blocks of that stream have, and the bytes of one message."""
    with nablad.Client(address) as client, client.stream_hessian("rosenbrock", _point(n)) as stream:
        first = next(iter(stream))
    return len(first.array), first.array.nbytes


def echoed_stream(address: str, length: int, count: int) -> float:
    """The time of a bare stream of so many messages of so many bytes, one number of each looked at."""
    started = time.perf_counter()
    with grpc.insecure_channel(address, UNLIMITED) as channel:
        call: Callable[[bytes], Iterator[bytes]] = channel.unary_stream(stream_method(length, count))  # type: ignore[assignment]
        for message in call(b""):
            float(np.max(np.abs(np.frombuffer(message, np.float64, count=length // 8)[:1])))
    return time.perf_counter() - started


def products(address: str, n: int, seconds: float, in_flight: int, linearized: bool) -> float:
    """Hessian products a second at one point of `relaxation`, so many in flight: of a linearisation, or as calls."""
    x = _point(n)
    tangents = np.random.default_rng(1).normal(size=(in_flight, n))
    with nablad.Client(address, timeout=600) as client:
        client.hvp("relaxation", x, tangents[0])
        if linearized:
            with client.linearize("relaxation", x) as linear:
                return _rate(partial(linear.submit, "hvp"), tangents, seconds, x, lambda result: result)
        with client.pipeline() as pipeline:
            return _rate(lambda v: pipeline.hvp("relaxation", x, v), tangents, seconds, x, lambda result: result.hvp)


def _rate(
    submit: Callable[[Array], Any], tangents: Array, seconds: float, x: Array, product: Callable[[Any], Array]
) -> float:
    started = time.perf_counter()
    while time.perf_counter() < started + WARM_SECONDS:  # what is new is compiled meanwhile, for batches too
        for future in list(map(submit, tangents)):
            future.result()
    waiting: deque[tuple[int, Any]] = deque()
    done, last = 0, {}
    started = time.perf_counter()
    while time.perf_counter() < started + seconds or waiting:
        if time.perf_counter() < started + seconds:
            while len(waiting) < len(tangents):
                number = done + len(waiting)
                waiting.append((number, submit(tangents[number % len(tangents)])))
        number, future = waiting.popleft()
        last[number % len(tangents)] = product(future.result())
        done += 1
    rate = done / (time.perf_counter() - started)
    for number in (0, len(tangents) - 1):
        if problem := flaw((relaxation_hvp(x, tangents[number]),), (last[number],)):
            raise WrongAnswer(f"product of the relaxation's Hessian: {problem}")
    return rate


def relaxation_hvp(x: Array, tangent: Array) -> Array:
    """Hessian times tangent of `relaxation`, by the tangent of the adjoint recursion."""
    states, moved = [x], [tangent]
    for _ in range(STEPS):
        u, du = states[-1], moved[-1]
        states.append(u + COUPLING * _spread(u) - GRAVITY * np.sin(u))
        moved.append(du + COUPLING * _spread(du) - GRAVITY * np.cos(u) * du)
    adjoint, moving = states.pop(), moved.pop()
    for u, du in zip(reversed(states), reversed(moved), strict=True):
        pull = GRAVITY * (np.cos(u) * moving - np.sin(u) * du * adjoint)
        moving = moving + COUPLING * _spread(moving) - pull
        adjoint = adjoint + COUPLING * _spread(adjoint) - GRAVITY * np.cos(u) * adjoint
    return moving


def _spread(u: Array) -> Array:
    return np.roll(u, 1) - 2 * u + np.roll(u, -1)


def gradient_costs(address: str) -> dict[str, float]:
    """For each function of the catalogue that has one, the time of its gradient over its own, in the server."""
    costs = {}
    with nablad.Client(address, timeout=600) as client:
        for info in client.functions():
            if info.source == "builtin" and "gradient" in info.operators:
                costs[info.name] = _gradient_cost(client, info)
    return costs


def _gradient_cost(client: nablad.Client, info: nablad.FunctionInfo) -> float:
    matrices = any(len(spec.shape or ()) > 1 for spec in info.inputs)
    size = 50 if matrices else 1000
    shapes = {spec.name: tuple(d if isinstance(d, int) else size for d in spec.shape or ()) for spec in info.inputs}
    points = min(COST_POINTS, max(1, COST_ELEMENTS // sum(map(math.prod, shapes.values()))))
    random = np.random.default_rng(0)
    arguments = nablad.trees.nest(
        {
            spec.name: random.uniform(0.25, 0.75, (points, *shapes[spec.name]))
            if spec.differentiable
            else np.zeros((points, *shapes[spec.name]), spec.dtypes[0] if spec.dtypes else np.int64)
            for spec in info.inputs
        }
    )
    output = next(spec.name for spec in info.outputs if spec.differentiable and spec.shape == ())
    alone, both = math.inf, math.inf
    for _ in range(COST_REPEATS):
        value = client.evaluate(info.name, outputs=output, batched=True, **arguments)
        gradient = client.gradient(info.name, output=output, batched=True, **arguments)
        alone = min(alone, value.execution.compute_seconds)
        both = min(both, gradient.execution.compute_seconds)
    return both / alone
