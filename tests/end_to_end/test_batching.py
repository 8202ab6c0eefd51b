"""Batching never shows in the results: batched equals alone, and among strangers' traffic as well."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import nablad
from servers import ServerProcess

RTOL = 64 * 2.0**-52
"""Programs for different numbers of points round differently; neighbours never matter."""

SCALARS = ("rosenbrock", "styblinski_tang", "logsumexp", "sum_of_squares", "ackley", "rastrigin", "zakharov")
NUMBERS = st.floats(-3, 3).map(lambda x: round(x, 6))


@pytest.fixture(scope="module")
def batching_server() -> Iterator[ServerProcess]:
    """A server that runs nothing directly: every call goes through a lane."""
    with ServerProcess("--direct-microseconds", "0") as process:
        yield process
        assert process.errors() == []


@pytest.fixture(scope="module")
def batching_client(batching_server: ServerProcess) -> Iterator[nablad.Client]:
    with nablad.Client(batching_server.address, timeout=120) as client:
        yield client


def close(have: Any, want: Any) -> bool:
    have, want = np.asarray(have), np.asarray(want)
    finite = np.isfinite(want)
    scale = np.max(np.abs(want[finite]), initial=0)
    return bool(
        have.shape == want.shape
        and np.array_equal(np.isfinite(have), finite)
        and np.all(np.abs(have[finite] - want[finite]) <= RTOL * scale)
    )


# Tangents of different elements: the Hessian of logsumexp times equal ones is nothing but rounding.
OPERATORS: dict[str, Any] = {
    "value": lambda c, f, x, b: c.evaluate(f, x, batched=b).value,
    "gradient": lambda c, f, x, b: c.gradient(f, x, batched=b).gradient,
    "hessian": lambda c, f, x, b: c.hessian(f, x, batched=b).hessian,
    "hvp": lambda c, f, x, b: c.hvp(f, x, np.arange(1.0, np.shape(x)[-1] + 1), batched=b, tangent_batched=False).hvp,
    "jvp": lambda c, f, x, b: c.jvp(f, x, x, batched=b).jvp,
}


@settings(max_examples=40, deadline=None)
@given(
    function=st.sampled_from(SCALARS),
    operator=st.sampled_from(sorted(OPERATORS)),
    points=arrays.arrays(np.float64, st.tuples(st.integers(1, 20), st.just(3)), elements=NUMBERS),
)
def test_batched_equals_alone(batching_client: nablad.Client, function: str, operator: str, points: Any) -> None:
    ask = OPERATORS[operator]
    together = ask(batching_client, function, points, True)
    for row, point in zip(together, points, strict=True):
        assert close(row, ask(batching_client, function, point, False))


@settings(max_examples=15, deadline=None)
@given(
    calls=st.lists(
        st.tuples(
            st.sampled_from(SCALARS[:4]),
            st.sampled_from(["gradient", "hvp", "value"]),
            st.lists(NUMBERS, min_size=2, max_size=3),
        ),
        min_size=8,
        max_size=48,
    )
)
def test_concurrent_mixed_traffic_equals_alone(
    batching_client: nablad.Client, client: nablad.Client, calls: list[tuple[str, str, list[float]]]
) -> None:
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda call: OPERATORS[call[1]](batching_client, call[0], call[2], False), calls))
    for (function, operator, point), answer in zip(calls, answers, strict=True):
        assert close(answer, OPERATORS[operator](client, function, point, False))


def test_one_bad_point_among_strangers_harms_nobody(batching_client: nablad.Client) -> None:
    points = [[1.0, 2.0], [np.nan, 1.0], [1e200, 1e200], [0.5, 0.5]] * 12
    alone = [batching_client.gradient("rosenbrock", point).gradient for point in points[:4]]
    with ThreadPoolExecutor(24) as pool:
        answers = list(pool.map(lambda x: batching_client.gradient("rosenbrock", x).gradient, points))
    for index, answer in enumerate(answers):
        assert close(answer, alone[index % 4])


def test_many_points_in_one_request_are_split_and_joined_in_order(batching_client: nablad.Client) -> None:
    x = np.linspace(-1, 1, 3000)
    result = batching_client.gradient("sin", x, batched=True)
    assert result.gradient.shape == (3000,)
    assert close(result.gradient, np.cos(x))


def test_an_input_shared_by_all_points_equals_one_for_each(batching_client: nablad.Client) -> None:
    x, a = np.linspace(0.5, 2, 7), 3.0
    shared = batching_client.gradient("exponential", a, x, batched="x", wrt="x")
    each = batching_client.gradient("exponential", np.full(7, a), x, batched=True, wrt="x")
    assert close(shared.gradient, a**x * np.log(a))
    assert close(shared.gradient, each.gradient)
