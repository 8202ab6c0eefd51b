"""Figures and their arithmetic: ratios to floors, medians with spread, targets."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Target:
    """At most (`≤`) or at least (`≥`) a bound."""

    sign: Literal["≤", "≥"]
    bound: float

    def met(self, value: float) -> bool:
        """Whether the value is on the right side of the bound."""
        return value <= self.bound if self.sign == "≤" else value >= self.bound

    def share(self, value: float) -> float:
        """How much of the target the value reaches: 1 is the bound itself, and more is better."""
        return self.bound / value if self.sign == "≤" else value / self.bound

    def __str__(self) -> str:
        return f"{self.sign} {self.bound:g}"


@dataclass(frozen=True)
class Figure:
    """One row of the table.

    Attributes:
        claim: the claim's name.
        case: what it was measured with.
        name: what the figure is, with its unit if it has one.
        samples: one for each repeat.
        target: None for a figure that only informs.
        beside: what was measured in the same repeats, floors among it: samples by name with unit.
    """

    claim: str
    case: str
    name: str
    samples: tuple[float, ...]
    target: Target | None = None
    beside: Mapping[str, Sequence[float]] = field(default_factory=dict)

    @property
    def median(self) -> float:
        """The figure."""
        return statistics.median(self.samples)

    @property
    def verdict(self) -> Literal["pass", "miss", ""]:
        """Whether the median meets the target; empty without one."""
        if self.target is None:
            return ""
        return "pass" if self.target.met(self.median) else "miss"


def ceiling(transport: float, program: float) -> float:
    """The rate to be expected of two stages on one core, one after the other, from the rate of each."""
    return 1 / (1 / transport + 1 / program)


def ceilings(transport: Sequence[float], program: Sequence[float]) -> list[float]:
    """The same for each repeat."""
    return [ceiling(e, p) for e, p in zip(transport, program, strict=True)]


def ratios(above: Sequence[float], below: Sequence[float]) -> tuple[float, ...]:
    """The ratio in each repeat."""
    return tuple(a / b for a, b in zip(above, below, strict=True))


def quickest(times: Sequence[Sequence[float]]) -> Sequence[float]:
    """The samples with the least median: one and the same floor for all repeats."""
    return min(times, key=statistics.median)


def highest(rates: Sequence[Sequence[float]]) -> Sequence[float]:
    """The samples with the greatest median."""
    return max(rates, key=statistics.median)


def readable(value: float) -> str:
    """Three significant digits, thousands set apart."""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def with_spread(samples: Sequence[float]) -> str:
    """The median, and the least and greatest."""
    middle = readable(statistics.median(samples))
    return middle if len(samples) == 1 else f"{middle} ({readable(min(samples))}–{readable(max(samples))})"
