"""Statistical models, small networks and two chains."""

import math

import mpmath
import numpy as np

from .elementary import logarithm
from .losses import binary_cross_entropy_terms, cross_entropy, cross_entropy_slope, sigmoid
from .scenario import (
    Array,
    Blocks,
    Scenario,
    Values,
    arrays,
    blocks,
    complex_step,
    numerically,
    of_one_variable,
    of_scalar_value,
    point,
)


def _ten_sigmoids(x: mpmath.mpf) -> mpmath.mpf:
    for _ in range(10):
        x = 1 / (1 + mpmath.exp(-x))
    return x


def _doublings(x: float, n: int) -> float:
    return 2.0**100 * (x, 1.0)[n] if n < 2 else 0.0


def _logistic(v: Values, n: int = 0) -> float:
    """The n-th derivative by the precision, or the value."""
    w, precision = v["w"], float(v["precision"])
    total = -w.size / 2 * logarithm(precision, n) + float(w @ w) / 2 * (precision, 1.0, 0.0)[min(n, 2)]
    if n == 0:
        total += w.size / 2 * math.log(2 * math.pi) + float(binary_cross_entropy_terms(v["X"] @ w, v["y"]).sum())
    return total


def _logistic_gradient(v: Values) -> Values:
    error = sigmoid(v["X"] @ v["w"]) - v["y"]
    return {
        "w": v["X"].T @ error + v["precision"] * v["w"],
        "X": np.outer(error, v["w"]),
        "precision": np.asarray(_logistic(v, 1)),
    }


def _logistic_hessian(v: Values) -> Blocks:
    w, X = v["w"], v["X"]
    s = sigmoid(X @ w)
    error, slope = s - v["y"], s * (1 - s)
    points, features = np.eye(v["y"].size), np.eye(w.size)
    return {
        ("w", "w"): X.T @ np.diag(slope) @ X + v["precision"] * features,
        ("w", "X"): np.einsum("k,kj,l->jkl", slope, X, w) + np.einsum("k,jl->jkl", error, features),
        ("w", "precision"): w,
        ("X", "X"): np.einsum("i,ik,j,l->ijkl", slope, points, w, w),
        ("X", "precision"): np.zeros_like(X),
        ("precision", "precision"): np.asarray(_logistic(v, 2)),
    }


def _gaussian(v: Values) -> float:
    d, cov = v["x"] - v["mean"], v["cov"]
    normaliser = np.log(np.linalg.det(cov)) + d.size * math.log(2 * math.pi)
    return float(-(d @ np.linalg.solve(cov, d) + normaliser) / 2)


def _gaussian_gradient(v: Values) -> Values:
    inverse = np.linalg.inv(v["cov"])
    u = inverse @ (v["x"] - v["mean"])
    return {"x": -u, "mean": u, "cov": (np.outer(u, u) - inverse) / 2}


def _gaussian_hessian(v: Values) -> Blocks:
    """As a function of the symmetric part of the covariance, since nothing else counts."""
    P = np.linalg.inv(v["cov"])
    u = P @ (v["x"] - v["mean"])
    by_x_and_cov = (np.einsum("ik,l->ikl", P, u) + np.einsum("il,k->ikl", P, u)) / 2
    # −uᵀ U P V u + ½ tr(P U P V), with U and V the symmetric parts of the unit matrices (i, j) and (k, l).
    plain = np.einsum("ki,lj->ijkl", P, P) / 2 - np.einsum("i,jk,l->ijkl", u, P, u)
    half = (plain + plain.transpose(1, 0, 2, 3)) / 2
    return {
        ("x", "x"): -P,
        ("x", "mean"): P,
        ("x", "cov"): by_x_and_cov,
        ("mean", "mean"): -P,
        ("mean", "cov"): -by_x_and_cov,
        ("cov", "cov"): (half + half.transpose(0, 1, 3, 2)) / 2,
    }


def _layers(v: Values) -> tuple[Array, Array]:
    """The hidden layer and the logits of the network."""
    hidden = np.tanh(v["x"] @ v["params.hidden.w"] + v["params.hidden.b"])
    return hidden, hidden @ v["params.output.w"] + v["params.output.b"]


def _mlp_gradient(v: Values) -> Values:
    """Backpropagation by hand."""
    hidden, logits = _layers(v)
    by_logits = cross_entropy_slope(logits, v["labels"])
    by_sum = by_logits @ v["params.output.w"].T * (1 - hidden**2)
    return {
        "params.hidden.w": v["x"].T @ by_sum,
        "params.hidden.b": by_sum.sum(axis=0),
        "params.output.w": hidden.T @ by_logits,
        "params.output.b": by_logits.sum(axis=0),
        "x": by_sum @ v["params.hidden.w"].T,
    }


def _eighths(*shape: int, start: int) -> Array:
    """Different multiples of 1/8 in [−1.5, 1.5], the same every time."""
    return np.asarray(((np.arange(math.prod(shape)) * 7 + start) % 25 - 12) / 8).reshape(shape)


def _mlp_point(start: int, labels: list[int]) -> Values:
    """Two features, three hidden units, two classes, four rows."""
    return {
        "params.hidden.w": _eighths(2, 3, start=start),
        "params.hidden.b": _eighths(3, start=start + 3),
        "params.output.w": _eighths(3, 2, start=start + 11),
        "params.output.b": _eighths(2, start=start + 5),
        "x": _eighths(4, 2, start=start + 17),
        "labels": np.array(labels),
    }


def _classifier_point(start: int, labels: list[int]) -> Values:
    """Two features, three classes, four rows."""
    return {
        "w": _eighths(2, 3, start=start),
        "b": _eighths(3, start=start + 4),
        "x": _eighths(4, 2, start=start + 9),
        "labels": np.array(labels),
    }


def _classifier_logits(v: Values) -> Array:
    return np.asarray(v["x"] @ v["w"] + v["b"])


def _classifier_gradient(v: Values) -> Values:
    e = cross_entropy_slope(_classifier_logits(v), v["labels"])
    return {"w": v["x"].T @ e, "b": e.sum(axis=0), "x": e @ v["w"].T}


def _classifier(v: Values) -> Values:
    logits, labels = _classifier_logits(v), v["labels"]
    hits = np.argmax(logits, axis=1) == labels
    return arrays({"loss": cross_entropy(logits, labels), "correct": np.sum(hits, dtype=np.int32)})


SCENARIOS: tuple[Scenario, ...] = (
    # Its gradients, around 1e-7, are below the normal numbers of float16.
    of_one_variable(
        "deep_sigmoid", [-2.0, 0.5, 1.5], numerically(_ten_sigmoids), dtypes=("float64", "float32", "bfloat16")
    ),
    # 2¹⁰⁰ overflows float16.
    of_one_variable("doubling_chain", [-1.5, 0.25, 3.0], _doublings, dtypes=("float64", "float32", "bfloat16")),
    of_scalar_value(
        "logistic_regression",
        [
            point(w=[0.5, -1.0], X=[[1.0, 2.0], [0.5, -1.5], [-2.0, 0.25]], y=[1, 0, 1], precision=0.5),
            point(w=[1.5, 0.25], X=[[-0.5, 1.0], [2.0, 0.75], [0.25, -1.0]], y=[0, 1, 1], precision=2.0),
            point(w=[-0.75, 2.0], X=[[0.5, 0.5], [-1.25, 1.0], [1.5, 0.5]], y=[0, 0, 1], precision=1.25),
        ],
        value=_logistic,
        gradient=_logistic_gradient,
        hessian=_logistic_hessian,
        derivative=_logistic,
    ),
    # Cholesky's factorisation exists for these dtypes only.
    of_scalar_value(
        "gaussian_logpdf",
        [
            point(x=[1.0, -0.5, 2.0], mean=[0.5, 0.5, 1.0], cov=[[2.0, 0.5, 0.0], [0.5, 1.5, 0.25], [0.0, 0.25, 1.0]]),
            point(
                x=[0.0, 1.5, -1.0], mean=[1.0, 0.0, 0.5], cov=[[1.0, 0.25, 0.5], [0.25, 2.0, -0.5], [0.5, -0.5, 3.0]]
            ),
            point(
                x=[0.75, 0.5, 0.25], mean=[0.0, 1.0, 2.0], cov=[[0.5, 0.0, 0.125], [0.0, 1.0, 0.5], [0.125, 0.5, 1.5]]
            ),
        ],
        value=_gaussian,
        gradient=_gaussian_gradient,
        hessian=_gaussian_hessian,
        dtypes=("float64", "float32"),
    ),
    of_scalar_value(
        "mlp_loss",
        [_mlp_point(0, [0, 1, 1, 0]), _mlp_point(8, [1, 1, 0, 0]), _mlp_point(16, [0, 0, 1, 0])],
        value=lambda v: cross_entropy(_layers(v)[1], v["labels"]),
        gradient=_mlp_gradient,
    ),
    Scenario(
        "linear_classifier",
        (_classifier_point(0, [0, 2, 1, 0]), _classifier_point(7, [1, 1, 0, 2]), _classifier_point(15, [2, 0, 1, 1])),
        value=_classifier,
        jacobian=lambda v: blocks({("loss", name): array for name, array in _classifier_gradient(v).items()}),
        hessian=lambda v: complex_step(_classifier_gradient, v),
    ),
)
