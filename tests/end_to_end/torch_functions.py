# jaxtyping writes shapes as strings, which are not forward references:
# ruff: noqa: F722, F821
"""Functions of PyTorch, most of them twins of built-in ones, and some that are difficult."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int

from nablad_server.functions.registration import function


def _tridiagonal(sizes: Mapping[str, int]) -> tuple[Any, Any]:
    every = np.arange(sizes["n"])
    return np.concatenate([every, every[1:]]), np.concatenate([every, every[:-1]])


@function(sparsity={"hessian": _tridiagonal})
def torch_rosenbrock(x: Float[torch.Tensor, "n"]) -> Float[torch.Tensor, ""]:
    """Rosenbrock's function, a valley that bends."""
    return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()


@function
def torch_softmax(x: Float[torch.Tensor, "n"]) -> Float[torch.Tensor, "n"]:
    """Probabilities proportional to the exponentials."""
    return torch.softmax(x, 0)


@function
def torch_logsumexp(x: Float[torch.Tensor, "n"]) -> Float[torch.Tensor, ""]:
    """The logarithm of the sum of the exponentials."""
    return torch.logsumexp(x, 0)


@function
def torch_sin(x: Float[torch.Tensor, ""]) -> Float[torch.Tensor, ""]:
    """The sine."""
    return torch.sin(x)


@function
def torch_quadratic_form(x: Float[torch.Tensor, "n"], A: Float[torch.Tensor, "n n"]) -> Float[torch.Tensor, ""]:
    """xᵀAx."""
    return x @ A @ x


@function
def torch_gaussian_logpdf(
    x: Float[torch.Tensor, "n"], mean: Float[torch.Tensor, "n"], cov: Float[torch.Tensor, "n n"]
) -> Float[torch.Tensor, ""]:
    """The logarithm of a normal distribution's density."""
    lower = torch.linalg.cholesky((cov + cov.T) / 2)  # PyTorch's derivatives of it are for symmetric matrices alone
    white = torch.linalg.solve_triangular(lower, (x - mean)[:, None], upper=False)[:, 0]
    return -0.5 * (white @ white + len(x) * math.log(2 * math.pi)) - torch.log(lower.diagonal()).sum()


@function(
    engine="torch",
    inputs={
        "params": {
            "hidden": {"w": Float[torch.Tensor, "d h"], "b": Float[torch.Tensor, "h"]},
            "output": {"w": Float[torch.Tensor, "h c"], "b": Float[torch.Tensor, "c"]},
        }
    },
)
def torch_mlp_loss(params: Any, x: Float[torch.Tensor, "b d"], labels: Int[torch.Tensor, "b"]) -> Any:
    """The mean cross-entropy of a network with one hidden layer; labels are classes."""
    hidden = torch.tanh(x @ params["hidden"]["w"] + params["hidden"]["b"])
    logits = hidden @ params["output"]["w"] + params["output"]["b"]
    return torch.nn.functional.cross_entropy(logits, labels)


@function
def torch_polar_to_cartesian(r: Float[torch.Tensor, ""], theta: Float[torch.Tensor, ""]) -> Any:
    """Two outputs by name."""
    return {"x": r * torch.cos(theta), "y": r * torch.sin(theta)}


@function
def fragile(x: Float[torch.Tensor, ""]) -> Float[torch.Tensor, ""]:
    """√x; an error for negative numbers, which no batch can look for at once."""
    if x < 0:
        raise ArithmeticError("a negative number")
    return torch.sqrt(x)


class _Cube(torch.autograd.Function):  # type: ignore[misc]  # PyTorch is not looked into
    """x³, without a rule for forward mode."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Any) -> Any:
        return x**3

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:  # noqa: ARG004 - PyTorch gives it
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, cotangent: Any) -> Any:
        return 3 * ctx.saved_tensors[0] ** 2 * cotangent


@function
def reverse_alone(x: Float[torch.Tensor, "n"]) -> Float[torch.Tensor, ""]:
    """(Σ xᵢ³)², by an operation without a rule for forward mode."""
    return _Cube.apply(x).sum() ** 2


@function
def distances(x: Float[torch.Tensor, "n"]) -> Float[torch.Tensor, ""]:
    """Σ |xᵢ − xⱼ|³, by an operation with a first derivative in reverse mode, and no other."""
    return (torch.cdist(x[:, None], x[:, None]) ** 3).sum()


@function
def changes_its_mind(x: Float[torch.Tensor, "n"]) -> Any:
    """The positive elements: how many there are cannot be known."""
    return x[x > 0]


@function
def in_place(x: Float[torch.Tensor, "n"]) -> Float[torch.Tensor, ""]:
    """Σ (2xᵢ)², having doubled what it was given."""
    x.mul_(2)
    return (x * x).sum()


_LAYER = torch.nn.Linear(3, 1).double()


@function
def network(x: Float[torch.Tensor, "3"]) -> Float[torch.Tensor, ""]:
    """tanh(w · x + b) with parameters of its own, in double precision whatever x is."""
    return torch.tanh(_LAYER(x.double()))[0]


@function
def length(x: Float[torch.Tensor, "n"]) -> Any:
    """A tensor and two of Python's numbers."""
    return {"count": len(x), "half": 0.5, "norm": torch.linalg.norm(x)}
