"""Functions of whose derivatives something is to be said."""

# jaxtyping writes shapes as strings, which are not forward references:
# ruff: noqa: F722, F821

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from nablad_server import function


@jax.custom_vjp
def _reverse_only(x: Any) -> Any:
    return jnp.sum(x**3)


_reverse_only.defvjp(lambda x: (_reverse_only(x), x), lambda x, c: (3 * c * x**2,))


@function
def cubes_in_reverse(x: Float[Array, "n"]) -> Float[Array, ""]:
    """Σ xᵢ³, whose rule is for reverse mode alone."""
    return _reverse_only(x)


@function
def halved_until_small(x: Float[Array, ""]) -> Float[Array, ""]:
    """x² halved until it is below 1: a loop of unknown length, for forward mode alone."""
    return jax.lax.while_loop(lambda y: y >= 1, lambda y: y / 2, x**2)


@jax.custom_jvp
def _transposed_hessian(x: Any) -> Any:
    return jnp.sum(jnp.sin(x))


@_transposed_hessian.defjvp
def _(primals: Any, tangents: Any) -> Any:
    # The slope is right, and what it says of itself is not.
    slope = jnp.cos(jax.lax.stop_gradient(primals[0]))
    return _transposed_hessian(primals[0]), jnp.sum(slope * tangents[0])


@function
def right_gradient_wrong_hessian(x: Float[Array, "n"]) -> Float[Array, ""]:
    """Σ sin xᵢ, whose Hessian is said to be 0."""
    return _transposed_hessian(x)


@function(domain={"x": (2.0, 5.0), "k": (1, 3)})
def in_its_domain(x: Float[Array, "n"], k: Int[Array, ""]) -> Float[Array, ""]:
    """k Σ ln(x − 1), which is NaN at and below 1."""
    return k * jnp.sum(jnp.log(x - 1))


@function(domain={"params": (1.0, 2.0)}, inputs={"params": {"w": Float[Array, "n"], "b": Float[Array, ""]}})
def tree(params: Any, x: Float[Array, "n"]) -> Float[Array, ""]:
    """√(Σ wᵢ xᵢ² + b), for positive parameters."""
    return jnp.sqrt(params["w"] @ x**2 + params["b"])


@function
def mixed_precision(x: Float[Array, "n"]) -> Float[Array, ""]:
    """Σ sin xᵢ, by way of float32."""
    return jnp.sum(jnp.sin(x.astype(jnp.float32))).astype(x.dtype)


@function
def any_shape(x: Float[Array, "..."]) -> Float[Array, ""]:
    """Σ xᵢ² over an array of any shape."""
    return jnp.sum(x**2)


@function(domain={"x": lambda random, _: random.standard_normal(7)})
def homeless(x: Float[Array, "n"]) -> Float[Array, ""]:
    """Σ xᵢ², with a domain that takes no notice of the shape."""
    return jnp.sum(x**2)


@function(differentiable=False)
def black_box(x: Float[np.ndarray, ""]) -> Float[np.ndarray, ""]:
    """x², and nobody can look inside."""
    return np.square(x)
