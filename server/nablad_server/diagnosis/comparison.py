"""What differences along one line say of a derivative: right, wrong, none there, or that they cannot tell.

The derivative is extrapolated from central differences with smaller and smaller steps, each result with an estimate of
its error from two sources: what extrapolation still changes, and the rounding of the values. How much the values are
rounded is measured where steps are so small that nothing else is left of second differences. Of all results that with
the least error counts. See C. J. F. Ridders, Advances in Engineering Software 4 (1982), for the extrapolation, and
J. J. Moré and S. M. Wild, SIAM Journal on Scientific Computing 33 (2011), for measuring noise by differences.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

import numpy as np

from nablad.tensors import Array

ORDERS = 4
"""Differences are extrapolated so many times at most."""

SMALLEST = 6
"""Noise is measured with so many of the smallest steps."""

NOISE = 2.0
"""Each value is taken to be wrong by so many units of rounding, its own and what those of its inputs make of it."""

SHARP = 2.5e-3
"""Differences can tell if they are known to this part of the derivative: a derivative that is 1 % wrong then shows."""

NEAR = 0.25
"""Values at steps up to this one say how large the function is at the point."""

OUTPUTS_AT_ONCE = 1024
"""Extrapolations of so many outputs are compared with each other at a time: all with all takes memory."""

HIDDEN = 0.1
"""Noise of this part of all that the values do near the point hides what they do."""

ASSURANCE = 3.0
"""A derivative is wrong if it is off by so many times what differences may be."""


class Verdict(IntEnum):
    """What a comparison comes to, from good to bad; the numbers are those of nablad.v1.Verdict."""

    PASS = 1
    NOISY = 2
    KINK = 3
    WRONG = 4


@dataclass(frozen=True)
class Samples:
    """The values along one line; the elements of all outputs in a row.

    Attributes:
        widths: the steps, largest first, [steps].
        middle: at the point itself, [outputs].
        ahead: at x + h, [steps, outputs].
        behind: at x − h, [steps, outputs].
    """

    widths: Array
    middle: Array
    ahead: Array
    behind: Array


class Surroundings(NamedTuple):
    """What values are like.

    Attributes:
        size: the largest of them, [outputs].
        noise: what shows of their rounding, [outputs].
    """

    size: Array
    noise: Array


@dataclass(frozen=True)
class Findings:
    """What the samples along one line say; all but `central` are [outputs].

    Attributes:
        numerical: the derivatives by differences.
        uncertainty: what they may be wrong by; infinite if there are none.
        kink: where there is no derivative.
        size: of the values around the point.
        central: the plain central differences, [steps, outputs].
    """

    numerical: Array
    uncertainty: Array
    kink: Array
    size: Array
    central: Array


def tolerance(epsilon: float) -> float:
    """The part of a derivative by which rounding of automatic differentiation itself may change it.

    Between ε, which is what a few operations take, and √ε, at which float32 arithmetic in a float64 derivative would go
    unnoticed.
    """
    return float(epsilon**0.55)


def surroundings(samples: Samples) -> Surroundings:
    """What the values along one line are like."""
    with np.errstate(all="ignore"):
        near = samples.widths <= NEAR
        size = np.maximum(np.abs(samples.ahead), np.abs(samples.behind))[near]
        size = np.max(np.where(np.isfinite(size), size, 0), axis=0, initial=0.0)
        size = np.maximum(size, np.where(np.isfinite(samples.middle), np.abs(samples.middle), 0))
        return Surroundings(size, _measured((samples.ahead + samples.behind - 2 * samples.middle)[-SMALLEST:]))


def together(some: Sequence[Surroundings]) -> Surroundings:
    """What the values around a point are like: as large as along any line, as noisy as along most."""
    return Surroundings(
        np.max([one.size for one in some], axis=0), np.median([one.noise for one in some], axis=0)
    )  # fmt: skip


def findings(samples: Samples, around: Surroundings, epsilon: float) -> Findings:
    """Derivatives by differences along one line.

    Steps are in proportion to the size of what is moved, so that a derivative is also what the rounding of the inputs
    makes of the values, in units of rounding. `epsilon` is that unit. `around` are the surroundings of the point: a
    value that is small because large terms cancel has their noise.
    """
    with np.errstate(all="ignore"):  # infinite and undefined values are looked for
        h = samples.widths[:, None]
        ahead, behind, middle = samples.ahead, samples.behind, samples.middle
        central = (ahead - behind) / (2 * h)
        bend = ahead + behind - 2 * middle
        motion = np.maximum(np.abs(ahead - middle), np.abs(behind - middle))
        measured = np.maximum(_measured(bend[-SMALLEST:]), around.noise)
        size = np.maximum(np.maximum(np.abs(ahead), np.abs(behind)), around.size)
        noise = np.maximum(measured, NOISE * epsilon * (size + np.abs(central)))
        numerical, uncertainty = _extrapolated(central, noise / h, float(samples.widths[0] / samples.widths[1]))
        # A function that moves by no more than its noise is not resolved, whatever large steps seem to say.
        moves = np.max(motion[samples.widths <= NEAR], axis=0, initial=0.0)
        hidden = (measured > 1e3 * epsilon * around.size) & (measured > HIDDEN * moves)
        kink = _kinks(samples, bend / h, motion / h, noise / h, epsilon)
    return Findings(numerical, np.where(hidden, np.inf, uncertainty), kink, around.size, central)


def significance(found: Findings, largest: Array, epsilon: float) -> Array:
    """Below which size a derivative along a line does not matter, [outputs].

    It is judged in proportion to itself down to this size, and to this size below it: with 16 digits to a
    ten-thousandth of the largest derivative at the point, with 7 to a fiftieth, each times the size of what is moved;
    and to a millionth of the values, or a thousandth.

    `largest`: the largest derivatives along any line through the point, [outputs].
    """
    matters: Array = np.maximum(epsilon**0.25 * largest, epsilon**0.4 * found.size)
    return matters


def verdicts(found: Findings, automatic: Array, matters: Array, epsilon: float) -> Array:
    """The verdict on each derivative, [outputs]; `matters` is its `significance`."""
    with np.errstate(all="ignore"):
        off = np.abs(automatic - found.numerical)
        size = np.maximum(np.abs(automatic), np.abs(found.numerical))
        sharp = found.uncertainty <= SHARP * np.maximum(size, matters)
        agree = off <= tolerance(epsilon) * size + ASSURANCE * found.uncertainty
        result = np.where(agree & sharp, Verdict.PASS, np.where(agree, Verdict.NOISY, Verdict.WRONG))
        unknown = ~np.isfinite(found.uncertainty) | ~np.isfinite(found.numerical)
        result = np.where(unknown, Verdict.NOISY, result)
        # No number to compare: wrong where differences have one, and elsewhere as it should be.
        nothing = ~np.isfinite(automatic)
        result = np.where(nothing, np.where(unknown, Verdict.KINK, Verdict.WRONG), result)
        return np.where(found.kink, Verdict.KINK, result).astype(np.int64)


def relative_errors(automatic: Array, numerical: Array, matters: Array) -> Array:
    """|automatic − numerical| over the larger of the two, or over what matters if that is larger, [..., outputs].

    0 if all three are zero; NaN if one of the derivatives is no number.
    """
    with np.errstate(all="ignore"):
        size = np.maximum(np.maximum(np.abs(automatic), np.abs(numerical)), matters)
        errors: Array = np.abs(automatic - numerical) / np.where(size == 0, 1.0, size)
    return errors


def _extrapolated(central: Array, rounding: Array, ratio: float) -> tuple[Array, Array]:
    """The best of all extrapolations of central differences, and what it may be wrong by, [outputs] each.

    `ratio` is that of a step to the next.
    """
    if central.shape[1] > OUTPUTS_AT_ONCE:
        blocks = [slice(start, start + OUTPUTS_AT_ONCE) for start in range(0, central.shape[1], OUTPUTS_AT_ONCE)]
        parts = [_extrapolated(central[:, block], rounding[:, block], ratio) for block in blocks]
        return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])
    column, noise = central, rounding
    entries, errors = [], []
    for order in range(1, ORDERS + 1):
        weight = ratio ** (2 * order)
        coarse, fine = column[:-1], column[1:]
        column = (weight * fine - coarse) / (weight - 1)
        noise = (weight * noise[1:] + noise[:-1]) / (weight - 1)
        wrong = np.maximum(np.abs(column - fine), np.abs(column - coarse)) + noise
        entries.append(column)
        errors.append(np.where(np.isfinite(wrong), wrong, np.inf))
    every, wrong = np.concatenate(entries), np.concatenate(errors)
    # Two large steps may agree by accident, where the function repeats itself or is flat in steps. Smaller ones then do
    # not: a result is at least as wrong as it is far from them, less what they may be wrong by themselves.
    finest = np.concatenate([np.arange(order + 1, len(central)) for order in range(ORDERS)])
    apart = np.abs(every[:, None] - entries[0]) - errors[0]
    apart[~(np.arange(1, len(central)) > finest[:, None])] = 0
    wrong = np.fmax(wrong, np.max(apart, axis=1, initial=0.0, where=np.isfinite(apart)))
    least = np.argmin(wrong, axis=0)[None]
    return np.take_along_axis(every, least, 0)[0], np.take_along_axis(wrong, least, 0)[0]


def _measured(tail: Array) -> Array:
    """The noise of the values, from second differences with the smallest steps, [outputs].

    If they shrink from step to step they are the function's own, and no noise shows.
    """
    size = np.where(np.isfinite(tail), np.abs(tail), 0)
    own = (np.sign(tail) == np.sign(tail[0])).all(0) & (size[1:] < 0.9 * size[:-1]).all(0)
    return np.where(own, 0.0, np.max(size, axis=0) / 2)


def _kinks(samples: Samples, apart: Array, slope: Array, rounding: Array, epsilon: float) -> Array:
    """Where the derivatives to both sides differ, grow without bound, or are there to one side only, [outputs].

    `apart` is by how much those to both sides differ, by differences; `slope` is the larger of them. With half the step
    the former is half as large where there is a derivative, the same at a corner, and more at a jump; the latter grows
    where the function is vertical. They are followed over the smallest steps at which rounding allows to tell, the
    largest of them 64 times the smallest.
    """
    ratio = float(samples.widths[0] / samples.widths[1])
    window = max(1, round(np.log(64) / np.log(ratio)))
    tells = 200 * rounding < slope
    last = np.where(tells.any(0), len(apart) - 1 - np.argmax(tells[::-1], axis=0), -1)
    rows = np.maximum(last, window) - np.arange(window, -1, -1)[:, None]
    followed, size = np.take_along_axis(apart, rows, 0), np.take_along_axis(slope, rows, 0)
    corner = (followed[1:] / followed[:-1] > ratio**-0.35).all(0) & (np.abs(followed[-1]) > 0.02 * size[-1])
    vertical = (size[1:] / size[:-1] > ratio**0.35).all(0)
    jump = _steady(samples.ahead - samples.middle, samples.middle, epsilon)
    jump |= _steady(samples.middle - samples.behind, samples.middle, epsilon)
    edge = np.isfinite(samples.ahead[-SMALLEST:]).all(0) != np.isfinite(samples.behind[-SMALLEST:]).all(0)
    kinks: Array = (last >= window) & (corner | vertical) | jump | edge | ~np.isfinite(samples.middle)
    return kinks


def _steady(change: Array, middle: Array, epsilon: float) -> Array:
    """Where a change of the value stays while the step that makes it shrinks away, [outputs]."""
    tail = change[-SMALLEST:]
    least, most = np.min(np.abs(tail), axis=0), np.max(np.abs(tail), axis=0)
    steady: Array = (least > 1e3 * epsilon * np.abs(middle)) & (least > 0.9 * most)
    return steady
