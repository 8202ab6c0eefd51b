"""Functions of one real variable: powers, exponentials, logarithms, trigonometry and the rules that combine them."""

# jaxtyping writes shapes as strings, which are not forward references:
# ruff: noqa: F722

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from nablad_server.functions.registration import function


@function(domain={"x": (0.1, 3.0), "n": (-3.0, 3.0)})
def power(x: Float[Array, ""], n: Float[Array, ""]) -> Float[Array, ""]:
    """The power xⁿ with a real exponent.

    Two scalars; x > 0, since a real power of a negative number is not real. Power rule: ∂/∂x xⁿ = n xⁿ⁻¹; by the
    exponent, ∂/∂n xⁿ = xⁿ ln x. For whole exponents and any x, see integer_power.
    """
    return jnp.power(x, n)


@function(domain={"x": (0.1, 3.0), "n": (-3, 4)})
def integer_power(x: Float[Array, ""], n: Int[Array, ""]) -> Float[Array, ""]:
    """The power xⁿ with a whole exponent, for x of either sign.

    Two scalars, n an integer and therefore never differentiated; a negative n needs x ≠ 0. Power rule:
    d/dx xⁿ = n xⁿ⁻¹, and the k-th derivative is n (n−1) … (n−k+1) xⁿ⁻ᵏ.
    """
    return jnp.power(x, n)


def cubic(x: Float[Array, ""]) -> Float[Array, ""]:
    """The cubic polynomial x³ − 2x + 1.

    A scalar, any real x. Derivative: 3x² − 2; second 6x; third 6; all further ones vanish. Roots: 1 and (−1 ± √5)/2.
    """
    return x**3 - 2 * x + 1


def exp(x: Float[Array, ""]) -> Float[Array, ""]:
    """The exponential eˣ.

    A scalar, any real x. Every derivative is eˣ again.
    """
    return jnp.exp(x)


@function(domain={"a": (0.1, 4.0)})
def exponential(a: Float[Array, ""], x: Float[Array, ""]) -> Float[Array, ""]:
    """The exponential aˣ with a base of one's choice.

    Two scalars; a > 0. Derivatives: ∂/∂x aˣ = aˣ ln a and ∂/∂a aˣ = x aˣ⁻¹.
    """
    return jnp.power(a, x)


@function(domain={"x": (0.01, 100.0)})
def ln(x: Float[Array, ""]) -> Float[Array, ""]:
    """The natural logarithm ln x.

    A scalar; x > 0. Derivative: 1/x; the n-th is (−1)ⁿ⁻¹ (n−1)! x⁻ⁿ.
    """
    return jnp.log(x)


@function(domain={"a": (1.5, 10.0), "x": (0.01, 100.0)})
def log(a: Float[Array, ""], x: Float[Array, ""]) -> Float[Array, ""]:
    """The logarithm of x to the base a, ln x / ln a.

    Two scalars; x > 0, a > 0, a ≠ 1. Derivatives: ∂/∂x = 1/(x ln a) and ∂/∂a = −ln x/(a ln² a).
    """
    return jnp.log(x) / jnp.log(a)


def sin(x: Float[Array, ""]) -> Float[Array, ""]:
    """The sine sin x.

    A scalar, in radians. Derivative: cos x; the n-th is sin(x + nπ/2).
    """
    return jnp.sin(x)


def cos(x: Float[Array, ""]) -> Float[Array, ""]:
    """The cosine cos x.

    A scalar, in radians. Derivative: −sin x; the n-th is cos(x + nπ/2).
    """
    return jnp.cos(x)


@function(domain={"x": (-1.5, 1.5)})
def tan(x: Float[Array, ""]) -> Float[Array, ""]:
    """The tangent tan x.

    A scalar, in radians; not defined at π/2 + kπ. Derivative: sec² x = 1 + tan² x.
    """
    return jnp.tan(x)


def constant(x: Float[Array, ""]) -> Float[Array, ""]:
    """The constant 5, whatever x is.

    A scalar, any real x. Constant rule: d/dx c = 0.
    """
    return jnp.full_like(x, 5.0)


def constant_multiple(x: Float[Array, ""]) -> Float[Array, ""]:
    """The constant multiple 3 sin x.

    A scalar, any real x. Constant multiple rule: d/dx c f(x) = c f′(x), here 3 cos x.
    """
    return 3 * jnp.sin(x)


def sum_rule(x: Float[Array, ""]) -> Float[Array, ""]:
    """The sum x² + sin x.

    A scalar, any real x. Sum rule: d/dx (f(x) + g(x)) = f′(x) + g′(x), here 2x + cos x.
    """
    return x**2 + jnp.sin(x)


def difference_rule(x: Float[Array, ""]) -> Float[Array, ""]:
    """The difference eˣ − x³.

    A scalar, any real x. Difference rule: d/dx (f(x) − g(x)) = f′(x) − g′(x), here eˣ − 3x².
    """
    return jnp.exp(x) - x**3


def product_rule(x: Float[Array, ""]) -> Float[Array, ""]:
    """The product x² sin x.

    A scalar, any real x. Product rule: d/dx f(x) g(x) = f′(x) g(x) + f(x) g′(x), here 2x sin x + x² cos x.
    """
    return x**2 * jnp.sin(x)


def quotient_rule(x: Float[Array, ""]) -> Float[Array, ""]:
    """The quotient x / (1 + x²).

    A scalar, any real x. Quotient rule: d/dx f(x)/g(x) = (f′(x) g(x) − f(x) g′(x))/g(x)², here (1 − x²)/(1 + x²)².
    """
    return x / (1 + x**2)


def chain_rule(x: Float[Array, ""]) -> Float[Array, ""]:
    """The composition sin(x²).

    A scalar, any real x. Chain rule: d/dx f(g(x)) = f′(g(x)) g′(x), here 2x cos(x²).
    """
    return jnp.sin(x**2)
