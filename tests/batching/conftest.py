"""The bench that the batcher's tests share."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from bench import Bench


@pytest.fixture
def bench() -> Iterator[Callable[..., Bench]]:
    made: list[Bench] = []

    def make(**policy: Any) -> Bench:
        made.append(Bench(**policy))
        return made[-1]

    yield make
    for each in made:
        each.runner.let_go()
        each.batcher.close()
        assert all(points > 0 for _, points in each.runner.asked), "an empty lane was given a turn"
