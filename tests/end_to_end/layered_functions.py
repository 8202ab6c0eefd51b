# ruff: noqa: F722, F821 - jaxtyping's shapes are strings, not forward references
"""Networks through which gradients vanish, explode or keep their size, and functions whose Hessians are known."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from nablad_server import function


@function
def tanh_layers(weights: Float[Array, "layers n n"], x: Float[Array, "n"]) -> Float[Array, ""]:
    """The sum of tanh(Wₖ tanh(Wₖ₋₁ … tanh(W₁ x)))."""
    for weight in weights:
        x = jnp.tanh(weight @ x)
    return jnp.sum(x)


@function
def residual_layers(weights: Float[Array, "layers n n"], x: Float[Array, "n"]) -> Float[Array, ""]:
    """Layers x + tanh(W x), one after the other."""
    for weight in weights:
        x = x + jnp.tanh(weight @ x)
    return jnp.sum(x)


@function
def recurrent(weight: Float[Array, "n n"], xs: Float[Array, "t n"]) -> Float[Array, ""]:
    """The sum of the last state of a recurrent network, which is a scan."""

    def step(state: Array, x: Array) -> tuple[Array, None]:
        return jnp.tanh(weight @ state + x), None

    state, _ = jax.lax.scan(step, jnp.zeros(weight.shape[:1], weight.dtype), xs)
    return jnp.sum(state)


@function
def rectified(bias: Float[Array, "n"], x: Float[Array, ""]) -> Float[Array, ""]:
    """The sum of relu(x + biasᵢ)²."""
    return jnp.sum(jax.nn.relu(x + bias) ** 2)


@function
def two_outputs(x: Float[Array, "n"]) -> dict[str, Array]:
    """The sum of tanh x, and that of the sigmoids of x."""
    return {"tanh": jnp.sum(jnp.tanh(x)), "sigmoid": jnp.sum(jax.nn.sigmoid(x))}


@function
def root_of_tanh(x: Float[Array, ""]) -> Float[Array, ""]:
    """√tanh x, whose gradient with respect to tanh x is infinite at 0."""
    return jnp.sqrt(jnp.tanh(x))


@function(sizes={"t": 4})
def long_chain(xs: Float[Array, "t"]) -> Float[Array, ""]:
    """As many tanh one after the other as there are elements."""
    last, _ = jax.lax.scan(lambda state, x: (jnp.tanh(state + x), None), jnp.zeros((), xs.dtype), xs)
    return last


@function(differentiable=False)
def opaque(x: Float[np.ndarray, "n"]) -> Float[np.ndarray, ""]:
    """The sum of tanh x, of NumPy."""
    return np.asarray(np.sum(np.tanh(x)))


@function
def quadratic(A: Float[Array, "n n"], x: Float[Array, "n"]) -> Float[Array, ""]:
    """½ xᵀAx."""
    return 0.5 * x @ A @ x


@function
def product_of_two(a: Float[Array, ""], b: Float[Array, "m"], mask: Bool[Array, "m"]) -> Float[Array, ""]:
    """a times the sum of the b that the mask lets through."""
    return a * jnp.sum(jnp.where(mask, b, 0.0))


@jax.custom_jvp
def _crossed(x: Any) -> Any:
    """x₀x₁, with a derivative that is not symmetric: 3x₁ by x₀ and x₀ by x₁."""
    return x[0] * x[1]


@_crossed.defjvp
def _(primals: tuple[Any], tangents: tuple[Any]) -> tuple[Any, Any]:
    (x,), (tangent,) = primals, tangents
    return _crossed(x), 3 * x[1] * tangent[0] + x[0] * tangent[1]


@function(sizes={"n": 2})
def crossed(x: Float[Array, "n"]) -> Float[Array, ""]:
    """x₀x₁ with a wrong derivative."""
    return _crossed(x)


@function
def square_root(x: Float[Array, ""]) -> Float[Array, ""]:
    """√x, whose second derivative at 0 is infinite."""
    return jnp.sqrt(x)
