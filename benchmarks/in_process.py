"""The floor of the computation: the same derivatives as compiled executables, called in this process with NumPy arrays.

`python -m benchmarks.in_process` does the jobs below.
"""

import statistics
import time
from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import functions
from benchmarks.jobs import WrongAnswer, serve_jobs
from benchmarks.workloads import WORKLOADS, Arrays, flaw
from nablad_server.functions.sources.builtin.optimisation import rosenbrock

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_cpu_enable_async_dispatch", False)

_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "rosenbrock": rosenbrock,
    "logistic_posterior": functions.logistic_posterior,
    "perceptron_loss": functions.perceptron_loss,
}


def derivative(operator: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """What the operator computes at one point: a tuple of value, gradient and, for an HVP, the product."""
    both = jax.value_and_grad(function)
    if operator == "Gradient":
        return both

    def hvp(x: Any, tangent: Any) -> Any:
        (value, gradient), (_, product) = jax.jvp(both, (x,), (tangent,))
        return value, gradient, product

    return hvp


@cache
def executable(name: str, batch: int) -> tuple[Callable[..., Any], Arrays]:
    """The compiled program of a workload at so many points, and arguments for it. Checked once."""
    workload = WORKLOADS[name]
    points = workload.points(batch)
    at_one = derivative(workload.operator, _FUNCTIONS[workload.function])
    compiled = jax.jit(jax.vmap(at_one)).lower(*points).compile()
    if problem := flaw(workload.closed_form(*points), tuple(map(np.asarray, compiled(*points)))):
        raise WrongAnswer(f"in process, {workload.title}: {problem}")
    return compiled, points


def rate(workload: str, batch: int, seconds: float) -> float:
    """Points a second, one call after the other, results as NumPy arrays."""
    call, points = executable(workload, batch)
    calls, started = 0, time.perf_counter()
    while (spent := time.perf_counter() - started) < seconds or calls < 3:
        for output in call(*points):
            np.asarray(output)
        calls += 1
    return calls * batch / spent


@cache
def _row_block(n: int, rows: int) -> tuple[Callable[..., Any], Any]:
    def block(x: Any, first: Any) -> Any:
        _, push = jax.linearize(jax.grad(rosenbrock), x)
        return jax.vmap(push)((jnp.arange(n) == first + jnp.arange(rows)[:, None]).astype(x.dtype))

    x = np.random.default_rng(n).uniform(-0.5, 0.5, n)
    return jax.jit(block).lower(x, np.int32(0)).compile(), x


def row_block_seconds(n: int, rows: int) -> float:
    """The median time of so many rows of the Hessian of Rosenbrock's function."""
    call, x = _row_block(n, rows)
    spent = []
    for first in np.linspace(0, n - rows, 20).astype(np.int32):
        started = time.perf_counter()
        np.asarray(call(x, first))
        spent.append(time.perf_counter() - started)
    return statistics.median(spent)


if __name__ == "__main__":
    serve_jobs({"rate": rate, "row_block_seconds": row_block_seconds})
