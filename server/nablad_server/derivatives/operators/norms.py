"""L2 norms of gradients, and gradients kept within a bound.

Sums of squares are of numbers that were divided by a power of two near the largest of them, which rounds nothing:
squares of 1e200 would overflow, and those of 1e-200 vanish, where the norm itself is an ordinary number.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from nablad_server.derivatives.operators.leaves import Groups, Leaves, Specs
from nablad_server.derivatives.query import Clip, Query
from nablad_server.functions.signature import ArraySpec


def norm_specs(query: Query) -> Specs:
    """The norms' shape and dtype: [1 + inputs differentiated], float64, or float32 in 32-bit mode."""
    return (ArraySpec((1 + len(query.wrt),), np.dtype(np.float64 if query.wide else np.float32)),)


def measured(query: Query, groups: Groups, extras: Leaves) -> Groups:
    """The groups of a gradient with its norms after them, and the gradient itself within its bound, if it has one."""
    values, gradient, *errors = groups
    (spec,) = norm_specs(query)
    wide = tuple(part.astype(spec.dtype) for part in gradient)
    each = [_norm((part,)) for part in wide]
    whole = each[0] if len(each) == 1 else _norm(tuple(each))
    if query.clipping is not None:
        bound, *_ = extras
        clipped = _within_norm(wide, whole, bound) if query.clipping == Clip.GLOBAL_NORM else _within_value(wide, bound)
        gradient = tuple(part.astype(given.dtype) for part, given in zip(clipped, gradient, strict=True))
    return values, gradient, *errors, (jnp.stack([whole, *each]),)


def _norm(vector: Leaves) -> Any:
    """Infinite or NaN if an element is; infinite if no number of the dtype is so large; 0 for zeros."""
    small, scale = _scaled(vector)
    return _length(small) * scale


def _scaled(vector: Leaves) -> tuple[Leaves, Any]:
    """The vector divided by a power of two that makes its largest magnitude about 1, and that power."""
    # Else XLA squares the power and an element that it knows to be constant each for itself, and either may overflow.
    vector = jax.lax.optimization_barrier(vector)
    largest = jnp.max(jnp.stack([jnp.max(jnp.abs(part), initial=0) for part in vector]))
    of = np.finfo(largest.dtype)
    # Where both the power and its reciprocal are normal numbers: XLA takes subnormal ones for 0. That is enough for the
    # squares of everything else, and leaves zeros and infinities what they are.
    bound = 2.0 ** -(of.minexp + 1)
    scale = jnp.clip(jax.lax.reduce_precision(largest, of.nexp, 0), 1 / bound, bound)
    return tuple(part * (1 / scale) for part in vector), scale


def _length(vector: Leaves) -> Any:
    return jnp.sqrt(sum(jnp.sum(part * part) for part in vector))


def _within_norm(gradient: Leaves, norm: Any, bound: Any) -> Leaves:
    """The gradient scaled to the bound, if its global norm is larger.

    Where `optax.clip_by_global_norm` is right, this is what it gives, a norm that is not finite included: with NaN in
    the gradient all is NaN; with an infinite element that one is NaN, and all finite ones are 0. An infinite bound
    changes nothing even then. R. Pascanu, T. Mikolov and Y. Bengio, ICML 2013, for the rule.
    """
    # optax itself sums plain squares: it makes zeros of a gradient of 1e200, and misses that one of 1e-200 is too long.
    small, _ = _scaled(gradient)
    divisor = _length(small)
    keep = (norm <= bound) | (bound == jnp.inf)
    return tuple(
        jnp.where(keep, part, part_small / divisor * bound)
        for part, part_small in zip(gradient, small, strict=True)
    )  # fmt: skip


def _within_value(gradient: Leaves, bound: Any) -> Leaves:
    """Each element between −bound and bound. NaN stays NaN, and an infinite element becomes the bound."""
    clipped: Leaves
    clipped, _ = optax.clip(bound).update(gradient, optax.EmptyState())
    return clipped
