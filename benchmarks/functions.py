# ruff: noqa: F722, F821 - jaxtyping's shapes are strings, not forward references
"""The functions that the benchmark serves beside the catalogue: `nablad serve benchmarks/functions.py`."""

import hashlib
import time
from dataclasses import dataclass
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpy.typing import NDArray

from benchmarks.data import COUPLING, FEATURES, GRAVITY, LABELS, LAYERS, PRIOR_PRECISION, ROWS, STEPS, TARGETS
from nablad_server import function

GRACE_SECONDS = 0.005
"""A deadline travels as the time that is left, in the request's headers: a server that looks in time sees it later than
the caller meant it by as long as the headers were on their way."""

WORK_SECONDS = 0.02
"""Of work in each execution of `due`."""


@function
def logistic_posterior(weights: Float[Array, "50"]) -> Float[Array, ""]:
    """The negative log posterior of a logistic regression with a Gaussian prior: 2,000 rows, 50 weights."""
    logits = jnp.asarray(FEATURES) @ weights
    prior = PRIOR_PRECISION / 2 * jnp.sum(weights**2)
    return jnp.sum(jnp.logaddexp(0.0, logits) - jnp.asarray(LABELS) * logits) + prior


@function
def perceptron_loss(parameters: Float[Array, "2017"]) -> Float[Array, ""]:
    """Half the mean squared error of a multilayer perceptron with tanh, 16–48–24–1, over 640 rows.

    The parameters are, layer after layer, the weights (from × to, row-major) and then the biases.
    """
    activation, start = jnp.asarray(ROWS), 0
    for before, width in pairwise(LAYERS):
        weights = parameters[start : start + before * width].reshape(before, width)
        start += before * width
        linear = activation @ weights + parameters[start : start + width]
        start += width
        activation = jnp.tanh(linear)
    return jnp.mean((linear[:, 0] - jnp.asarray(TARGETS)) ** 2) / 2


@function
def relaxation(x: Float[Array, "n"]) -> Float[Array, ""]:
    """Half the sum of squares that is left of x after 200 steps of relaxation of coupled pendulums on a ring."""

    def step(state: Array, _: None) -> tuple[Array, None]:
        spread = jnp.roll(state, 1) - 2 * state + jnp.roll(state, -1)
        return state + COUPLING * spread - GRAVITY * jnp.sin(state), None

    last, _ = jax.lax.scan(step, x, None, length=STEPS)
    return jnp.sum(last**2) / 2


@dataclass
class _Late:
    """How many points' deadlines had passed when their execution began."""

    points: int = 0


_late = _Late()


def _work(deadline: NDArray[np.float64]) -> NDArray[np.float64]:
    """Looks at the clock once for the whole execution, and then works without the interpreter's lock, as XLA does."""
    began = time.time()
    real = deadline[deadline > 0]  # zero: a call that only has the program compiled
    # A batch may be filled up with copies of a point.
    _late.points += int(np.count_nonzero(began > np.unique(real) + GRACE_SECONDS))
    block = bytes(1 << 18)
    while real.size and time.time() < began + WORK_SECONDS:
        hashlib.sha256(block)
    return np.asarray(deadline)


@function
def due(deadline: Float[Array, ""], lane: Float[Array, "n"]) -> Float[Array, ""]:
    """The caller's deadline (Unix time, seconds) itself, after 20 ms of work; counts those that had passed before.

    Calls with lanes of different lengths cannot share an execution, so that batches do not relieve an overload.
    """
    result = jax.ShapeDtypeStruct(deadline.shape, deadline.dtype)
    same: Array = jax.pure_callback(_work, result, deadline, vmap_method="expand_dims")
    return same + 0 * jnp.sum(lane)


@function
def late_points(since: Float[Array, ""]) -> Float[Array, ""]:
    """How many points of `due` were executed though their deadline had passed, less `since`."""
    result = jax.ShapeDtypeStruct(since.shape, since.dtype)
    points: Array = jax.pure_callback(lambda s: np.asarray(_late.points - s), result, since, vmap_method="expand_dims")
    return points
