"""Matrix calculus.

A Jacobian has the axes of the output first, then those of the input. Texts that put the input first (the gradient, or
denominator, layout) show the transpose: ∂(Ax)/∂x = Aᵀ there, A here.
"""

# jaxtyping writes shapes as strings, which are not forward references:
# ruff: noqa: F722, F821

import jax.numpy as jnp
from jaxtyping import Array, Float

from nablad_server.functions.domains import positive_definite
from nablad_server.functions.registration import function


def matvec(A: Float[Array, "m n"], x: Float[Array, "n"]) -> Float[Array, "m"]:
    """The matrix-vector product Ax.

    A is m × n, x has length n. Jacobian by x: A (its transpose in the gradient layout).
    """
    return A @ x


def vecmat(x: Float[Array, "m"], A: Float[Array, "m n"]) -> Float[Array, "n"]:
    """The vector-matrix product xᵀA.

    x has length m, A is m × n. Jacobian by x: Aᵀ (A itself in the gradient layout).
    """
    return x @ A


def quadratic_form(x: Float[Array, "n"], A: Float[Array, "n n"]) -> Float[Array, ""]:
    """The quadratic form xᵀAx.

    x has length n, A is n × n and need not be symmetric. Gradients: (A + Aᵀ)x by x and x xᵀ by A; Hessian by x: A + Aᵀ.
    """
    return x @ A @ x


def trace_product(A: Float[Array, "m n"], B: Float[Array, "n m"]) -> Float[Array, ""]:
    """The trace of a product, tr(AB).

    A is m × n and B n × m. Gradients: Bᵀ by A and Aᵀ by B.
    """
    return jnp.trace(A @ B)


@function(domain={"A": positive_definite})
def det(A: Float[Array, "n n"]) -> Float[Array, ""]:
    """The determinant |A|.

    A is n × n. Gradient: |A| A⁻ᵀ, the matrix of cofactors. Beyond 3 × 3 it goes through an LU factorisation, which
    exists for float64 and float32 only.
    """
    determinant: Array = jnp.linalg.det(A)
    return determinant


@function(domain={"A": positive_definite})
def logdet(A: Float[Array, "n n"]) -> Float[Array, ""]:
    """The logarithm of the absolute determinant, ln |det A|.

    A is n × n and not singular; float64 or float32, since it goes through an LU factorisation. Gradient: A⁻ᵀ.
    """
    logarithm: Array = jnp.linalg.slogdet(A).logabsdet
    return logarithm


@function(domain={"A": positive_definite})
def inverse(A: Float[Array, "n n"]) -> Float[Array, "n n"]:
    """The inverse matrix A⁻¹.

    A is n × n and not singular; float64 or float32, since it goes through an LU factorisation. Differential:
    d(A⁻¹) = −A⁻¹ dA A⁻¹.
    """
    inverted: Array = jnp.linalg.inv(A)
    return inverted
