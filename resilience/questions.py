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


def gradient_request(x: NDArray[np.float64]) -> pb.GradientRequest:
    """The request for that gradient."""
    return pb.GradientRequest(function="rosenbrock", inputs=[NamedTensor(name="x", tensor=to_tensor(x))])


def question(x: NDArray[np.float64]) -> bytes:
    """The request for that gradient as it is sent."""
    return gradient_request(x).SerializeToString()


def gradient_in(answer: pb.GradientResponse) -> NDArray[np.float64]:
    """The gradient in a response, float64[n]. Raises ValueError if it does not have exactly one."""
    (named,) = answer.gradients
    return np.asarray(to_array(named.tensor), np.float64)


def is_right(x: NDArray[np.float64], response: bytes) -> bool:
    """Whether the response, as it came, is the gradient at x and not at some other point."""
    return is_gradient(x, pb.GradientResponse.FromString(response))


def is_gradient(x: NDArray[np.float64], answer: pb.GradientResponse) -> bool:
    """Whether it is the gradient at x and not at some other point."""
    try:
        found = gradient_in(answer)
    except ValueError:
        return False
    return found.shape == x.shape and np.allclose(found, gradient_of_rosenbrock(x), rtol=1e-10, atol=1e-10)
