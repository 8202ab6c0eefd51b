"""From differences with several steps to a derivative and an estimate of its error."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from nablad.v1 import differentiation_pb2 as pb
from nablad_server.derivatives.query import Query

FORWARD, RIDDERS = pb.DIFFERENCE_SCHEME_FORWARD, pb.DIFFERENCE_SCHEME_RIDDERS

LEVELS = 10
"""Ridders' method takes so many steps, each half of the one before."""

RIDDERS_START = 0.125
"""The first of them, in proportion to the scale of what moves."""

NOISE = 4.0
"""A value is taken to be wrong by so many units of rounding: functions round more than once."""


class Ladder(NamedTuple):
    """A derivative by differences with several steps.

    Attributes:
        found: the differences over their widths, [steps, ...].
        noise: what rounding of the values may have added to each, [steps, ...].
    """

    found: Any
    noise: Any


def factors(scheme: int) -> tuple[float, ...]:
    """The steps of a scheme, over the one that was asked for."""
    return tuple(0.5**level for level in range(LEVELS)) if scheme == RIDDERS else (1.0, 2.0)


def default_step(scheme: int, epsilon: float, order: int) -> float:
    """The step at which the errors of truncation and of rounding are about the same, for values of size one.

    Truncation falls with the step h (forward) or its square, rounding is ε / h, or ε / h² for second derivatives (Press
    et al., Numerical Recipes, §5.7).
    """
    if scheme == RIDDERS:
        return RIDDERS_START
    return float(epsilon ** (1 / (order + (1 if scheme == FORWARD else 2))))


def epsilon_of(query: Query) -> float:
    """The unit of rounding of the coarsest dtype among what moves and what is differentiated."""
    moving = (query.inputs[index] for index in {*query.wrt, *query.columns, *query.vectors})
    outputs = (query.output_specs[index] for index in query.outputs)
    return max(float(jnp.finfo(spec.dtype).eps) for spec in (*moving, *outputs))  # type: ignore[no-untyped-call]


def best(ladder: Ladder, scheme: int) -> tuple[Any, Any]:
    """The derivative and the estimate of its error, each without the axis of steps.

    Central and forward differences: those with the step asked for; the error is how far those with twice the step are
    away, which is once (forward) or three times (central) what truncation does, and what rounding may do.
    """
    if scheme == RIDDERS:
        return _ridders(ladder)
    found, noise = ladder
    return found[0], jnp.abs(found[1] - found[0]) + noise[0]


def _ridders(ladder: Ladder) -> tuple[Any, Any]:
    """Extrapolation to step zero: of all entries of the tableau that with the least error, element by element.

    C. J. F. Ridders, Accurate computation of F′(x) and F′(x)F″(x), Advances in Engineering Software 4 (1982). An entry
    of order j is the combination of two of order j − 1 that cancels the error h²ʲ; it is as wrong as it is far from
    those two, and as the rounding of the values, carried through the same combinations, makes it. Entries from a step
    that left the function's domain are NaN and are passed over.
    """
    column, noise = ladder
    entries, errors = [column[-1:]], [jnp.full_like(noise[-1:], np.inf)]
    for order in range(1, len(column)):
        weight = 4.0**order  # the square of the ratio of two steps, to the power of the order
        coarse, fine = column[:-1], column[1:]
        column = (weight * fine - coarse) / (weight - 1)
        noise = (weight * noise[1:] + noise[:-1]) / (weight - 1)
        wrong = jnp.maximum(jnp.abs(column - fine), jnp.abs(column - coarse)) + noise
        entries.append(column)
        errors.append(jnp.where(jnp.isnan(wrong), np.inf, wrong))
    every, wrong = jnp.concatenate(entries), jnp.concatenate(errors)
    least = jnp.argmin(wrong, axis=0, keepdims=True)
    return jnp.take_along_axis(every, least, 0)[0], jnp.take_along_axis(wrong, least, 0)[0]
