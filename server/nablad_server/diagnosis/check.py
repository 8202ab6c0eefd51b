"""Checking derivatives at one point: lines through it are sampled, and what differences say along each is compared.

Nothing here evaluates anything: a Sampled gives the function's values at the points that it is asked for.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from nablad.tensors import Array
from nablad_server.diagnosis import lines
from nablad_server.diagnosis.comparison import (
    Findings,
    Samples,
    Surroundings,
    Verdict,
    findings,
    relative_errors,
    significance,
    surroundings,
    together,
    verdicts,
)
from nablad_server.diagnosis.lines import Line

SHIFT = 0.75
"""What does not pass is looked at again with steps of this part of the first ones: accidents do not happen twice."""

VALUES_AT_ONCE = 1 << 22
"""Lines are sampled together as long as the points and the values of all have at most so many elements."""

Sampled = Callable[[Sequence[Array]], Array]
"""The values, [points, outputs] in float64, where the inputs that move have given values, [points, ...] each."""


@dataclass(frozen=True)
class Compared:
    """What comparing along one line came to, with derivatives in proportion to what moves, [outputs] each.

    Attributes:
        line: the line.
        automatic: the derivatives by automatic differentiation.
        numerical: by differences.
        uncertainty: what those may be wrong by.
        errors: how far they are from each other, in proportion; see `relative_errors`.
        verdicts: what it comes to.
        curve: the largest of these errors for each step, [steps]; NaN where there is none.
    """

    line: Line
    automatic: Array
    numerical: Array
    uncertainty: Array
    errors: Array
    verdicts: Array
    curve: Array


class Point:
    """A point at which derivatives are checked.

    Attributes:
        leaves: the inputs that can move.
        steps: the steps at which it is looked, in proportion to the size of what moves.
    """

    def __init__(self, leaves: Sequence[Array], middle: Array, epsilon: float) -> None:
        """Looks at nothing yet.

        `middle` are the values there, [outputs] in float64; `epsilon` is the unit of rounding of the coarsest dtype
        among inputs that can move and values.
        """
        self.leaves = leaves
        self.steps = lines.steps(epsilon)
        self._middle = middle
        self._epsilon = epsilon
        self._around: list[Surroundings] = []
        self._found: dict[Line, list[Findings]] = {}

    def compare(self, along: Sequence[Line], jacobian: Array, sampled: Sampled) -> list[Compared]:
        """Compares a Jacobian, [outputs, elements of all leaves], with differences along lines.

        What was sampled for one Jacobian is not sampled again for the next.
        """
        self._look(along, 1.0, 0, sampled)
        automatic = {line: _derivative(jacobian, line) for line in along}
        largest = self._largest(automatic)
        first = {line: self._judged(line, automatic[line], largest, 0) for line in along}
        doubtful = {line: None for line in along if (first[line].verdicts != Verdict.PASS).any()}
        self._look(list(doubtful), SHIFT, 1, sampled)
        return [self._clearer(first[line], largest) if line in doubtful else first[line] for line in along]

    def _look(self, along: Sequence[Line], shift: float, time: int, sampled: Sampled) -> None:
        """Samples the lines that have not been looked at so many times before."""
        widths = self.steps * shift
        new = [line for line in along if len(self._found.get(line, [])) <= time]
        for some in self._together(new, 2 * len(widths)):
            parts = [lines.points(self.leaves, line, widths) for line in some]
            values = sampled([np.concatenate(leaf) for leaf in zip(*parts, strict=True)])
            samples = [
                Samples(widths, self._middle, *np.split(here, 2)) for here in np.split(values, len(some))
            ]  # fmt: skip
            self._around += map(surroundings, samples)
            around = together(self._around)
            for line, one in zip(some, samples, strict=True):
                self._found.setdefault(line, []).append(findings(one, around, self._epsilon))

    def _together(self, along: Sequence[Line], count: int) -> Iterator[Sequence[Line]]:
        each = count * (sum(leaf.size for leaf in self.leaves) + self._middle.size)
        together = max(1, VALUES_AT_ONCE // max(1, each))
        for start in range(0, len(along), together):
            yield along[start : start + together]

    def _largest(self, automatic: dict[Line, Array]) -> Array:
        """The largest derivative of each output along any line, by either method."""
        sizes = [np.abs(found) for found in automatic.values()]
        sizes += [np.abs(self._found[line][0].numerical) for line in automatic]
        largest: Array = np.max([np.where(np.isfinite(size), size, 0) for size in sizes], axis=0, initial=0.0)
        return largest

    def _judged(self, line: Line, automatic: Array, largest: Array, time: int) -> Compared:
        found = self._found[line][time]
        matters = significance(found, largest, self._epsilon)
        return Compared(
            line, automatic, found.numerical, found.uncertainty,
            relative_errors(automatic, found.numerical, matters),
            verdicts(found, automatic, matters, self._epsilon),
            largest_of(relative_errors(automatic, found.central, matters)),
        )  # fmt: skip

    def _clearer(self, first: Compared, largest: Array) -> Compared:
        """Each output as the milder of the two looks has it; the first if both say the same."""
        again = self._judged(first.line, first.automatic, largest, 1)
        milder = again.verdicts < first.verdicts
        curve = again.curve if milder.all() else first.curve

        def of(name: str) -> Array:
            chosen: Array = np.where(milder, getattr(again, name), getattr(first, name))
            return chosen

        return Compared(
            first.line, first.automatic, of("numerical"), of("uncertainty"), of("errors"), of("verdicts"), curve
        )


def largest_of(errors: Array) -> Array:
    """The largest along the last axis; NaN only where all are."""
    unknown = np.isnan(errors).all(axis=-1)
    found = np.max(errors, axis=-1, initial=0.0, where=~np.isnan(errors))
    largest: Array = np.where(unknown, np.nan, found)
    return largest


def lines_through(
    leaves: Sequence[Array], coordinates: int, directions: int, random: np.random.Generator
) -> list[Line]:
    """The lines to look along: so many elements of each input, chosen at random if it has more, and directions."""
    along = []
    for index, leaf in enumerate(leaves):
        some = random.choice(leaf.size, coordinates, replace=False) if leaf.size > coordinates else range(leaf.size)
        along += [lines.coordinate(leaves, index, int(element)) for element in sorted(some)]
    return along + [lines.direction(leaves, number, random) for number in range(directions)]


def evaluations(count: int, epsilon: float) -> int:
    """At least so many evaluations does it take to look along so many lines; at most twice as many."""
    return 2 * count * len(lines.steps(epsilon))


def _derivative(jacobian: Array, line: Line) -> Array:
    """The derivative along a line, [outputs]: Jv, without touching columns that do not matter."""
    along = np.concatenate([part.reshape(-1) for part in line.along])
    moved = np.flatnonzero(along)
    with np.errstate(all="ignore"):
        product: Array = jacobian[:, moved] @ along[moved]
    return product
