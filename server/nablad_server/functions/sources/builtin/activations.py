"""Activation functions of neural networks."""

# jaxtyping writes shapes as strings, which are not forward references:
# ruff: noqa: F722, F821

import jax
from jaxtyping import Array, Float

from nablad_server.functions.registration import function


def sigmoid(x: Float[Array, ""]) -> Float[Array, ""]:
    """The logistic sigmoid σ(x) = 1/(1 + e⁻ˣ).

    A scalar, any real x. Derivative: σ(x)(1 − σ(x)), at most 1/4 and about 4.5·10⁻⁵ at ±10: the vanishing gradient.
    """
    return jax.nn.sigmoid(x)


def tanh(x: Float[Array, ""]) -> Float[Array, ""]:
    """The hyperbolic tangent tanh x.

    A scalar, any real x. Derivative: 1 − tanh² x.
    """
    return jax.nn.tanh(x)


def relu(x: Float[Array, ""]) -> Float[Array, ""]:
    """The rectified linear unit max(x, 0).

    A scalar, any real x. Derivative: 1 for x > 0, else 0; the corner at 0 is given the derivative 0.
    """
    return jax.nn.relu(x)


@function(domain={"alpha": (0.0, 0.5)})
def leaky_relu(x: Float[Array, ""], alpha: Float[Array, ""]) -> Float[Array, ""]:
    """The leaky rectified linear unit: x for x ≥ 0, else αx.

    Two scalars. Derivatives: ∂/∂x is 1 for x ≥ 0, else α; ∂/∂α is 0 for x ≥ 0, else x.
    Source: Maas, Hannun and Ng (2013).
    """
    return jax.nn.leaky_relu(x, alpha)


def softplus(x: Float[Array, ""]) -> Float[Array, ""]:
    """The smooth rectifier ln(1 + eˣ).

    A scalar, any real x, without overflow. Derivative: the sigmoid σ(x). Source: Dugas et al. (2001).
    """
    return jax.nn.softplus(x)


def gelu(x: Float[Array, ""]) -> Float[Array, ""]:
    """The Gaussian error linear unit xΦ(x), exact, with Φ the standard normal distribution function.

    A scalar, any real x. Derivative: Φ(x) + xφ(x), with φ the standard normal density.
    Source: Hendrycks and Gimpel (2016).
    """
    return jax.nn.gelu(x, approximate=False)


def softmax(x: Float[Array, "n"]) -> Float[Array, "n"]:
    """The softmax sᵢ = exp(xᵢ) / Σⱼ exp(xⱼ).

    A vector of any length; stable for large entries, since the largest is subtracted first. Jacobian: diag(s) − s sᵀ.
    """
    return jax.nn.softmax(x)


def log_softmax(x: Float[Array, "n"]) -> Float[Array, "n"]:
    """The logarithm of the softmax, xᵢ − ln Σⱼ exp(xⱼ).

    A vector of any length; stable for large entries. Jacobian: I − 1 sᵀ, with s the softmax of x.
    """
    return jax.nn.log_softmax(x)


def logsumexp(x: Float[Array, "n"]) -> Float[Array, ""]:
    """The smooth maximum ln Σᵢ exp(xᵢ).

    A vector of any length; stable for large entries. Gradient: the softmax s of x; Hessian: diag(s) − s sᵀ.
    """
    return jax.nn.logsumexp(x)
