"""Softmax regression on handwritten digits: the data, the model, and training by whatever gives gradients."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits

Array = NDArray[Any]


class Weights(NamedTuple):
    """Of softmax regression: w (64 × 10) and b (10)."""

    w: Array
    b: Array


class Digits(NamedTuple):
    """Images (n × 64, from 0 to 1) and labels (n, from 0 to 9)."""

    images: Array
    labels: Array


Gradient = Callable[[Weights, Array, Array], tuple[float, Weights]]
"""From weights and a minibatch to the mean loss and its gradient."""


def load() -> tuple[Digits, Digits]:
    """1,347 digits to learn from and 450 to be judged by: every fourth."""
    images, labels = load_digits(return_X_y=True)
    judged = np.arange(labels.size) % 4 == 0
    return Digits(images[~judged] / 16, labels[~judged]), Digits(images[judged] / 16, labels[judged])


def probabilities(weights: Weights, images: Array) -> Array:
    """Of each label for each image: n × 10."""
    logits = images @ weights.w + weights.b
    likely = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(likely / likely.sum(axis=1, keepdims=True))


def in_process(weights: Weights, images: Array, labels: Array) -> tuple[float, Weights]:
    """By hand: with e = p − onehot(labels), imagesᵀe/n by w and the column means of e by b."""
    likely, n = probabilities(weights, images), labels.size
    errors = likely - np.eye(10)[labels]
    return float(-np.log(likely[np.arange(n), labels]).mean()), Weights(images.T @ errors / n, errors.mean(axis=0))


def accuracy(weights: Weights, digits: Digits) -> float:
    """The share of digits whose likeliest label is theirs."""
    return float(np.mean(np.argmax(digits.images @ weights.w + weights.b, axis=1) == digits.labels))


def train(
    gradient: Gradient, digits: Digits, *, epochs: int = 30, minibatch: int = 128, rate: float = 1.0
) -> tuple[list[Weights], list[float]]:
    """The weights from zeros to the last step, and the loss before each step; each epoch in an order of its own."""
    path, losses, random = [Weights(np.zeros((64, 10)), np.zeros(10))], [], np.random.default_rng(0)
    for _ in range(epochs):
        order = random.permutation(digits.labels.size)
        for first in range(0, order.size - minibatch + 1, minibatch):
            chosen = order[first : first + minibatch]
            loss, slope = gradient(path[-1], digits.images[chosen], digits.labels[chosen])
            losses.append(loss)
            path.append(Weights(path[-1].w - rate * slope.w, path[-1].b - rate * slope.b))
    return path, losses
