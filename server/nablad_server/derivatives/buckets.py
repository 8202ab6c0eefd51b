"""Which programs a batch runs through: each takes a fixed number of points, and which are best is a matter of cost."""

from collections.abc import Mapping

EXECUTION_SECONDS = 10e-6
"""What one more execution costs beside its computing."""


def power_of_two_from(points: int) -> int:
    """The smallest power of two that is no smaller."""
    return 1 << (points - 1).bit_length()


def cheapest(points: int, costs: Mapping[int, float]) -> tuple[list[int], float]:
    """The buckets that together hold `points` points at little cost, and that cost in seconds.

    `costs` gives the seconds of one execution for each bucket there is, at least one. Only the last bucket of the
    answer may have room left.
    """
    # Many points go through the bucket that is cheapest a point; what is then left deserves a closer look.
    best = min(costs, key=lambda bucket: (costs[bucket] + EXECUTION_SECONDS) / bucket)
    whole = points // best
    rest, seconds = _rest(points - whole * best, costs)
    return [best] * whole + rest, whole * (costs[best] + EXECUTION_SECONDS) + seconds


def _rest(points: int, costs: Mapping[int, float]) -> tuple[list[int], float]:
    """As `cheapest`: one bucket that holds them all, or full ones of the next smaller size and then the rest."""
    if points == 0:
        return [], 0.0
    options = []
    covering = min((bucket for bucket in costs if bucket >= points), key=costs.__getitem__, default=None)
    if covering is not None:
        options.append(([covering], costs[covering] + EXECUTION_SECONDS))
    smaller = max((bucket for bucket in costs if bucket < points), default=None)
    if smaller is not None:
        full = points // smaller
        rest, seconds = _rest(points - full * smaller, costs)
        options.append(([smaller] * full + rest, full * (costs[smaller] + EXECUTION_SECONDS) + seconds))
    return min(options, key=lambda option: option[1])
