"""Derivatives of any order in one real variable: an input, or the way along a line through the point."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.jet import jet

from nablad.errors import InvalidOption
from nablad_server.derivatives.operators.leaves import FlatFunction, Groups, Leaves, PointFunction, outputs_alone, pick
from nablad_server.derivatives.query import Query

MAX_ORDER = 16
MAX_NESTED_ORDER = 6
"""Nesting first derivatives k times costs about 2^k; Taylor arithmetic costs k²."""


def derivative(f: FlatFunction, query: Query) -> PointFunction:
    """The values and the derivatives of orders 1 to `query.order`."""

    def at(point: Leaves, vectors: Leaves) -> Groups:
        of = outputs_alone(f, query, point, query.wrt)
        chosen = pick(point, query.wrt)
        if vectors:  # along the line from the point
            x = jnp.zeros((), jnp.result_type(*chosen))
            alone = lambda t: of(tuple(leaf + t.astype(v.dtype) * v for leaf, v in zip(chosen, vectors, strict=True)))
        else:
            (x,) = chosen
            alone = lambda moved: of((moved,))
        if query.order <= 2:  # as cheap, and right where Taylor rules go through a logarithm, such as x² at 0
            return _nested(alone, x, query.order)
        try:
            values, orders = _taylor(alone, x, query.order)
        except Exception as error:  # jet raises errors of many types where it has no rule
            if query.order > MAX_NESTED_ORDER:
                raise InvalidOption(
                    f"{query.function.reference} has no Taylor rule for one of its operations ({_first_line(error)}), "
                    f"so that orders above {MAX_NESTED_ORDER} cost too much; got order {query.order}",
                    field="order",
                ) from error
            values, orders = _nested(alone, x, query.order)
        return values, orders

    return at


def _taylor(alone: Callable[[Any], Leaves], x: Any, order: int) -> tuple[Leaves, Leaves]:
    """All orders at once by Taylor-mode automatic differentiation (Bettencourt, Johnson, Duvenaud 2019)."""
    direction = [jnp.ones_like(x)] + [jnp.zeros_like(x)] * (order - 1)
    values, series = jet(alone, (x,), (direction,))
    return values, tuple(
        jnp.stack([jnp.broadcast_to(term, value.shape).astype(value.dtype) for term in terms])
        for value, terms in zip(values, series, strict=True)
    )


def _nested(alone: Callable[[Any], Leaves], x: Any, order: int) -> tuple[Leaves, Leaves]:
    """Order by order: the derivative of the derivative."""
    derivatives, current = [], alone
    for _ in range(order):
        current = jax.jacfwd(current)
        derivatives.append(current(x))
    return alone(x), tuple(jnp.stack(terms) for terms in zip(*derivatives, strict=True))


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
