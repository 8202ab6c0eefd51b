"""What is asked and what must come back: requests as bytes and, by closed forms, their answers. Without JAX."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np

from benchmarks.data import FEATURES, LABELS, LAYERS, PRIOR_PRECISION, ROWS, TARGETS, Array
from nablad.tensors import to_array, to_tensor
from nablad.v1 import differentiation_pb2 as pb
from nablad.v1 import tensor_pb2

SERVICE = "/nablad.v1.DifferentiationService"
TOLERANCE = 1e-10
"""Of the largest element; sums of a million terms are within it in any order."""

Arrays = tuple[Array, ...]


@dataclass(frozen=True)
class Workload:
    """One operator of one function at one size.

    Attributes:
        title: for people.
        operator: the RPC's name.
        function: the function's name.
        argument: the name of its one argument, a vector.
        size: the length of that vector.
        closed_form: from the arguments, each [points, size], to what the response holds, in its order: values,
            gradients, and the products or blocks if the operator gives some.
        batches: of points, that the executable in process is tried with.
    """

    title: str
    operator: str
    function: str
    argument: str
    size: int
    closed_form: Callable[..., Arrays]
    batches: tuple[int, ...] = (1, 64, 512, 4096)

    @property
    def method(self) -> str:
        """The RPC's path."""
        return f"{SERVICE}/{self.operator}"

    def points(self, count: int, seed: int = 0) -> Arrays:
        """The arguments at `count` points, each [count, size]: the vector and, for an HVP, the tangent."""
        random = np.random.default_rng(seed)
        vectors = 2 if self.operator == "Hvp" else 1
        return tuple(random.uniform(-0.5, 0.5, (count, self.size)) for _ in range(vectors))

    def warm(self, *points: int) -> str:
        """The `--warm` option that compiles this workload at these numbers of points."""
        size = f" n={self.size}" if self.function == "rosenbrock" else ""
        return f"{self.operator.lower()} {self.function}{size} points={','.join(map(str, points))}"


@dataclass(frozen=True)
class Exchange:
    """A request and the arrays that its response must hold."""

    workload: Workload
    request: bytes
    expected: Arrays

    @property
    def array_bytes(self) -> int:
        """The bytes of all arrays in the response: those expected, and of a gradient two norms a point."""
        value, *_ = self.expected
        norms = 2 * value.nbytes if self.workload.operator == "Gradient" else 0
        return norms + sum(array.nbytes for array in self.expected)

    def flaw(self, response: bytes) -> str | None:
        """What is wrong with the response, or None."""
        return flaw(self.expected, answer(self.workload.operator, response))


def exchanges(workload: Workload, count: int, batch: int | None = None) -> list[Exchange]:
    """`count` distinct requests of one point each, or of `batch` points, with their answers."""
    found = []
    for seed in range(count):
        points = workload.points(batch or 1, seed)
        expected = workload.closed_form(*points)
        if batch is None:
            points, expected = tuple(p[0] for p in points), tuple(e[0] for e in expected)
        found.append(Exchange(workload, message(workload, *points, batched=batch is not None), expected))
    return found


def request(workload: Workload, *arrays: Array, batched: bool = False) -> Any:
    """The request at these arguments."""
    named = [
        tensor_pb2.NamedTensor(name=workload.argument, tensor=to_tensor(array), batched=batched) for array in arrays
    ]
    made = getattr(pb, f"{workload.operator}Request")(function=workload.function, inputs=named[:1])
    if len(named) > 1:
        made.tangents.extend(named[1:])
    return made


def message(workload: Workload, *arrays: Array, batched: bool = False) -> bytes:
    """The same, serialized."""
    serialized: bytes = request(workload, *arrays, batched=batched).SerializeToString()
    return serialized


def answer(operator: str, response: bytes) -> Arrays:
    """The arrays of a serialized response, in the order of its fields."""
    return arrays_of(getattr(pb, f"{operator}Response").FromString(response))


def arrays_of(response: Any) -> Arrays:
    """The arrays of a response, in the order of its fields."""
    return tuple(
        to_array(item.tensor)
        for field, items in response.ListFields()
        if field.name in ("values", "gradients", "products", "blocks")
        for item in items
    )


def flaw(expected: Arrays, found: Arrays) -> str | None:
    """How the arrays found differ from those expected, or None."""
    if len(found) != len(expected):
        return f"{len(found)} arrays came back, {len(expected)} were expected"
    for position, (right, given) in enumerate(zip(expected, found, strict=True)):
        if given.shape != right.shape:
            return f"array {position} has shape {given.shape}, expected {right.shape}"
        error = float(np.max(np.abs(given - right), initial=0.0))
        allowed = TOLERANCE * max(1.0, float(np.max(np.abs(right), initial=0.0)))
        if not error <= allowed:  # NaN is wrong too
            return f"array {position} is off by {error:.3g}, allowed is {allowed:.3g}"
    return None


def _rosenbrock(x: Array) -> Arrays:
    valley, slope = x[:, 1:] - x[:, :-1] ** 2, 1 - x[:, :-1]
    gradient = np.zeros_like(x)
    gradient[:, :-1] = -400 * x[:, :-1] * valley - 2 * slope
    gradient[:, 1:] += 200 * valley
    return np.sum(100 * valley**2 + slope**2, axis=1), gradient


def rosenbrock_hessian_parts(x: Array) -> tuple[Array, Array]:
    """The diagonal and the one beside it; all else is zero."""
    diagonal = np.zeros_like(x)
    diagonal[:, :-1] = 1200 * x[:, :-1] ** 2 - 400 * x[:, 1:] + 2
    diagonal[:, 1:] += 200
    return diagonal, -400 * x[:, :-1]


def _rosenbrock_hvp(x: Array, tangent: Array) -> Arrays:
    diagonal, beside = rosenbrock_hessian_parts(x)
    product = diagonal * tangent
    product[:, :-1] += beside * tangent[:, 1:]
    product[:, 1:] += beside * tangent[:, :-1]
    return *_rosenbrock(x), product


def _rosenbrock_hessian(x: Array) -> Arrays:
    diagonal, beside = rosenbrock_hessian_parts(x)
    hessian = np.zeros((*x.shape, x.shape[1]))
    k = np.arange(x.shape[1])
    hessian[:, k, k] = diagonal
    hessian[:, k[1:], k[:-1]] = hessian[:, k[:-1], k[1:]] = beside
    return *_rosenbrock(x), hessian


def _logistic_posterior(weights: Array) -> Arrays:
    logits = weights @ FEATURES.T
    value = np.sum(np.logaddexp(0, logits) - LABELS * logits, axis=1)
    gradient = (1 / (1 + np.exp(-logits)) - LABELS) @ FEATURES
    return value + PRIOR_PRECISION / 2 * np.sum(weights**2, axis=1), gradient + PRIOR_PRECISION * weights


def _perceptron_loss(parameters: Array) -> Arrays:
    both = [_perceptron_loss_at(point) for point in parameters]
    return np.array([value for value, _ in both]), np.array([gradient for _, gradient in both])


def _perceptron_loss_at(parameters: Array) -> tuple[float, Array]:
    """Backpropagation by hand at one point."""
    layers = list(_layers(parameters))
    activations = [ROWS]
    for weights, biases in layers[:-1]:
        activations.append(np.tanh(activations[-1] @ weights + biases))
    weights, biases = layers[-1]
    residual = (activations[-1] @ weights + biases)[:, 0] - TARGETS
    delta = residual[:, None] / len(TARGETS)
    gradients: list[Array] = []
    for (weights, _), activation in zip(reversed(layers), reversed(activations), strict=True):
        gradients[:0] = [(activation.T @ delta).ravel(), delta.sum(axis=0)]
        delta = (delta @ weights.T) * (1 - activation**2)
    return float(np.mean(residual**2) / 2), np.concatenate(gradients)


def _layers(parameters: Array) -> Iterator[tuple[Array, Array]]:
    start = 0
    for before, width in pairwise(LAYERS):
        end = start + before * width
        yield parameters[start:end].reshape(before, width), parameters[end : end + width]
        start = end + width


WORKLOADS = {
    "W1": Workload("gradient of Rosenbrock, n = 100", "Gradient", "rosenbrock", "x", 100, _rosenbrock),
    "W2": Workload("HVP of Rosenbrock, n = 100", "Hvp", "rosenbrock", "x", 100, _rosenbrock_hvp),
    "W3": Workload(
        "gradient of a logistic posterior, 2,000 × 50", "Gradient", "logistic_posterior", "weights", 50,
        _logistic_posterior,
    ),
    "W4": Workload(
        "gradient of a perceptron's loss, 2,017 parameters", "Gradient", "perceptron_loss", "parameters", 2017,
        _perceptron_loss, batches=(1, 8, 64),
    ),
    "W5": Workload(
        "gradient of Rosenbrock, n = 1,000,000", "Gradient", "rosenbrock", "x", 1_000_000, _rosenbrock, batches=(1,)
    ),
    "W6": Workload(
        "Hessian of Rosenbrock, n = 1,000", "Hessian", "rosenbrock", "x", 1000, _rosenbrock_hessian, batches=(1,)
    ),
}  # fmt: skip
"""By the short names that the claims use."""


@lru_cache(maxsize=8)
def prepared(name: str, batch: int | None = None) -> tuple[Exchange, ...]:
    """The exchanges that one process uses again and again: 64, or 2 of large messages."""
    workload = WORKLOADS[name]
    large = workload.size * (batch or 1) > 100_000 or workload.operator == "Hessian"
    return tuple(exchanges(workload, 2 if large else 64, batch))
