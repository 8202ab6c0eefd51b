"""Questions whose right answers are known in closed form: Rosenbrock's function and its gradient."""

import numpy as np
from numpy.typing import NDArray

from nablad.tensors import to_array, to_tensor
from nablad.v1 import differentiation_pb2 as pb
from nablad.v1.tensor_pb2 import NamedTensor

GRADIENT = "/nablad.v1.DifferentiationService/Gradient"


def gradient_of_rosenbrock(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """∇ Σ 100 (xᵢ₊₁ - xᵢ²)² + (1 - xᵢ)², float64[n] for x float64[n]."""
    head, tail = x[:-1], x[1:]
    gradient = np.zeros_like(x)
    gradient[:-1] += -400.0 * head * (tail - head**2) - 2.0 * (1.0 - head)
    gradient[1:] += 200.0 * (tail - head**2)
    return gradient


def question(x: NDArray[np.float64]) -> bytes:
    """The request for that gradient."""
    inputs = [NamedTensor(name="x", tensor=to_tensor(x))]
    return pb.GradientRequest(function="rosenbrock", inputs=inputs).SerializeToString()


def is_right(x: NDArray[np.float64], response: bytes) -> bool:
    """Whether the response is the gradient at x and not at some other point."""
    answer = pb.GradientResponse.FromString(response)
    if len(answer.gradients) != 1:
        return False
    return np.allclose(to_array(answer.gradients[0].tensor), gradient_of_rosenbrock(x), rtol=1e-10, atol=1e-10)
