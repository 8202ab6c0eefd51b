# ruff: noqa: F722, F821 - jaxtyping's shapes are strings, not forward references
"""A user's file of functions for the numerical policy: each has a point where floating-point numbers are awkward."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

Scalar = Float[Array, ""]


def absolute(x: Scalar) -> Scalar:
    """|x|."""
    return jnp.abs(x)


def root(x: Scalar) -> Scalar:
    """√x."""
    return jnp.sqrt(x)


def norm(x: Float[Array, "n"]) -> Scalar:
    """‖x‖, by its formula."""
    return jnp.sqrt(jnp.sum(x**2))


def safe_norm(x: Float[Array, "n"]) -> Scalar:
    """‖x‖, with the subgradient 0 at 0: the square root never sees the 0 whose slope is infinite."""
    squared = jnp.sum(x**2)
    positive = squared > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, squared, 1)), 0)


def guarded_root(x: Scalar) -> Scalar:
    """√x for x > 0, else 0, with one `where`: right in value, wrong in slope for x ≤ 0."""
    return jnp.where(x > 0, jnp.sqrt(x), 0)


def twice_guarded_root(x: Scalar) -> Scalar:
    """√x for x > 0, else 0, with two: the inner one keeps the root that is not taken where it is smooth."""
    positive = x > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1)), 0)


def reciprocal(x: Scalar) -> Scalar:
    """1/x."""
    return 1 / x


def quotient(x: Scalar, y: Scalar) -> Scalar:
    """x/y."""
    return x / y


def whole_quotient(x: Int[Array, ""], y: Int[Array, ""]) -> Int[Array, ""]:
    """x // y, of integers."""
    return x // y


def product(x: Scalar, y: Scalar) -> Scalar:
    """xy."""
    return x * y


def larger(x: Scalar, y: Scalar) -> Scalar:
    """max(x, y)."""
    return jnp.maximum(x, y)


def square(x: Scalar) -> Scalar:
    """x²."""
    return x**2


def nothing_to_the_zero(x: Scalar) -> Scalar:
    """x⁰, the exponent a constant."""
    return x**0


def same(x: Scalar) -> Scalar:
    """x."""
    return x


def half(x: Scalar) -> Scalar:
    """½x."""
    return x / 2


def naive_logsumexp(x: Float[Array, "n"]) -> Scalar:
    """ln Σ exp(xᵢ), by its formula: it overflows where the stable one does not."""
    return jnp.log(jnp.sum(jnp.exp(x)))


def carried(x: Float[Array, "n"], times: Int[Array, ""], keep: Bool[Array, "n"]) -> Scalar:
    """times · Σ xᵢ² over the elements to keep."""
    return times * jnp.sum(x**2, where=keep)


def whole_product(x: Int[Array, ""], y: Int[Array, ""]) -> Int[Array, ""]:
    """xy, of integers."""
    return x * y


def stepped(x: Scalar) -> Scalar:
    """The whole part of x."""
    return jnp.floor(x)


def total(x: Float[Array, "n"]) -> Scalar:
    """Σ xᵢ."""
    return jnp.sum(x)
