"""Losses."""

import numpy as np

from .activations import logsumexp, softmax, softmax_jacobian
from .scenario import Array, Blocks, Scenario, Values, of_scalar_value, point


def sigmoid(x: Array) -> Array:
    """1/(1 + e⁻ˣ), of an array."""
    return np.asarray(1 / (1 + np.exp(-x)))


def cross_entropy(logits: Array, labels: Array) -> float:
    """The mean cross-entropy of rows of logits."""
    return float(np.mean(logsumexp(logits) - logits[np.arange(labels.size), labels]))


def cross_entropy_slope(logits: Array, labels: Array) -> Array:
    """Its gradient by the logits; analytic, so it takes complex ones of moderate size."""
    exponentials = np.exp(logits)
    probabilities = exponentials / exponentials.sum(axis=-1, keepdims=True)
    return np.asarray((probabilities - np.eye(logits.shape[1])[labels]) / labels.size)


def binary_cross_entropy_terms(logits: Array, labels: Array) -> Array:
    """The cross-entropy of each logit: ln(1 + eᶻ) − yz."""
    return np.asarray(np.log1p(np.exp(logits)) - labels * logits)


def _linear_layer_residual(v: Values) -> Array:
    return np.asarray(v["W"] @ v["x"] + v["b"] - v["y_true"])


def _linear_layer_gradient(v: Values) -> Values:
    r = _linear_layer_residual(v)
    return {"W": np.outer(r, v["x"]), "x": v["W"].T @ r, "b": r, "y_true": -r}


def _linear_layer_hessian(v: Values) -> Blocks:
    W, x, r = v["W"], v["x"], _linear_layer_residual(v)
    outputs, inputs = np.eye(W.shape[0]), np.eye(W.shape[1])
    by_w_and_b = np.einsum("ik,j->ijk", outputs, x)
    return {
        ("W", "W"): np.einsum("ik,j,l->ijkl", outputs, x, x),
        ("W", "x"): np.einsum("il,j->ijl", W, x) + np.einsum("i,jl->ijl", r, inputs),
        ("W", "b"): by_w_and_b,
        ("W", "y_true"): -by_w_and_b,
        ("x", "x"): W.T @ W,
        ("x", "b"): W.T,
        ("x", "y_true"): -W.T,
        ("b", "b"): outputs,
        ("b", "y_true"): -outputs,
        ("y_true", "y_true"): outputs,
    }


def _mse_hessian(v: Values) -> Blocks:
    block = 2 / v["targets"].size * np.eye(v["targets"].size)
    return {
        ("predictions", "predictions"): block,
        ("predictions", "targets"): -block,
        ("targets", "targets"): block,
    }


def _huber_value(v: Values, n: int = 0) -> float:
    """The n-th derivative by delta, or the value."""
    size, delta = np.abs(v["predictions"] - v["targets"]), v["delta"]
    outside = (delta * (size - delta / 2), size - delta, -np.ones_like(size))
    if n > 2:
        return 0.0
    return float(np.mean(np.where(size > delta, outside[n], size**2 / 2 if n == 0 else 0.0)))


def _huber_gradient(v: Values) -> dict[str, Array]:
    error = v["predictions"] - v["targets"]
    clipped = np.clip(error, -v["delta"], v["delta"]) / error.size
    return {"predictions": clipped, "targets": -clipped, "delta": np.asarray(_huber_value(v, 1))}


def _huber_hessian(v: Values) -> dict[tuple[str, str], Array]:
    error = v["predictions"] - v["targets"]
    outside = np.abs(error) > v["delta"]
    inner = np.diag(~outside / error.size)
    mixed = outside * np.sign(error) / error.size
    return {
        ("predictions", "predictions"): inner,
        ("predictions", "targets"): -inner,
        ("predictions", "delta"): mixed,
        ("targets", "targets"): inner,
        ("targets", "delta"): -mixed,
        ("delta", "delta"): np.asarray(_huber_value(v, 2)),
    }


def _cross_entropy_hessian(v: Values) -> Blocks:
    rows = v["labels"].size
    each = np.stack([softmax_jacobian(row) for row in v["logits"]]) / rows
    return {("logits", "logits"): np.einsum("ik,ijl->ijkl", np.eye(rows), each)}


SCENARIOS: tuple[Scenario, ...] = (
    of_scalar_value(
        "linear_layer_loss",
        [
            point(W=[[1.0, 2.0, -0.5], [0.5, -1.0, 3.0]], x=[1.0, 0.5, 2.0], b=[0.25, -0.5], y_true=[2.0, 1.0]),
            point(W=[[0.25, -2.0, 1.5], [1.0, 0.75, -1.0]], x=[-1.5, 2.0, 0.25], b=[1.0, 0.5], y_true=[-1.0, 0.5]),
            point(W=[[2.0, 1.0, 1.0], [-0.5, 0.5, 2.5]], x=[0.75, -1.0, 3.0], b=[-0.5, 2.0], y_true=[1.5, 3.0]),
        ],
        value=lambda v: np.sum(_linear_layer_residual(v) ** 2) / 2,
        gradient=_linear_layer_gradient,
        hessian=_linear_layer_hessian,
    ),
    of_scalar_value(
        "mse",
        [
            point(predictions=[1.0, 2.0, -0.5, 0.25], targets=[0.5, 2.5, 1.0, -1.0]),
            point(predictions=[0.75, -1.5, 3.0, 1.0], targets=[1.0, 0.5, 2.0, 0.25]),
            point(predictions=[-2.0, 0.5, 1.25, 0.0], targets=[0.0, 1.0, 1.0, 3.0]),
        ],
        value=lambda v: np.mean((v["predictions"] - v["targets"]) ** 2),
        gradient=lambda v: {
            "predictions": 2 * (v["predictions"] - v["targets"]) / v["targets"].size,
            "targets": 2 * (v["targets"] - v["predictions"]) / v["targets"].size,
        },
        hessian=_mse_hessian,
    ),
    of_scalar_value(
        "huber",
        [
            point(predictions=[1.0, 2.0, -0.5, 0.25], targets=[0.5, 0.5, 1.5, -0.5], delta=1.0),
            point(predictions=[0.75, -1.5, 3.0, 1.0], targets=[1.0, 0.5, 1.5, 0.5], delta=0.75),
            point(predictions=[-2.0, 0.5, 1.25, 0.0], targets=[0.5, 1.0, 1.0, 3.0], delta=2.0),
        ],
        value=_huber_value,
        gradient=_huber_gradient,
        hessian=_huber_hessian,
        derivative=_huber_value,
    ),
    of_scalar_value(
        "binary_cross_entropy",
        [
            point(logits=[0.5, -1.0, 2.0, 0.25], labels=[1, 0, 1, 0]),
            point(logits=[-2.0, 1.5, 0.75, -0.5], labels=[0, 0, 1, 1]),
            point(logits=[3.0, 1.0, -1.25, 2.5], labels=[0, 1, 0, 1]),
        ],
        value=lambda v: np.mean(binary_cross_entropy_terms(v["logits"], v["labels"])),
        gradient=lambda v: {"logits": (sigmoid(v["logits"]) - v["labels"]) / v["labels"].size},
        hessian=lambda v: {
            ("logits", "logits"): np.diag(sigmoid(v["logits"]) * sigmoid(-v["logits"])) / v["labels"].size
        },
    ),
    of_scalar_value(
        "softmax_cross_entropy",
        [
            point(logits=[[0.5, -1.0, 2.0], [1.0, 0.25, -0.5]], labels=[2, 1]),
            point(logits=[[1.5, 0.75, 0.0], [-2.0, 1.0, 0.5]], labels=[0, 0]),
            point(logits=[[-0.5, 3.0, 1.0], [0.25, 0.25, 1.25]], labels=[1, 2]),
        ],
        value=lambda v: cross_entropy(v["logits"], v["labels"]),
        gradient=lambda v: {"logits": (softmax(v["logits"]) - np.eye(3)[v["labels"]]) / v["labels"].size},
        hessian=_cross_entropy_hessian,
    ),
)
