"""Small functions of several variables, with one output or several."""

# jaxtyping writes shapes as strings, which are not forward references:
# ruff: noqa: F722, F821

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from nablad_server.functions.registration import function


def x2y_3xy2(x: Float[Array, ""], y: Float[Array, ""]) -> Float[Array, ""]:
    """The polynomial x²y + 3xy² in two variables.

    Two scalars. Partial derivatives: ∂/∂x = 2xy + 3y² and ∂/∂y = x² + 6xy.
    """
    return x**2 * y + 3 * x * y**2


def sum_of_squares(x: Float[Array, "n"]) -> Float[Array, ""]:
    """The sum of squares Σ xᵢ², also known as the sphere function.

    A vector of any length. Gradient: 2x; Hessian: 2I. Minimum: 0 at the origin.
    """
    return jnp.sum(jnp.square(x))


def masked_sum_of_squares(x: Float[Array, "n"], mask: Bool[Array, "n"]) -> Float[Array, ""]:
    """The sum of squares of the entries that a mask selects, Σ xᵢ² over the i with maskᵢ.

    Two vectors of one length, the mask of booleans. Gradient: 2xᵢ where maskᵢ, else 0.
    """
    return jnp.sum(jnp.square(x), where=mask)


def quadratic_product(x: Float[Array, "2"]) -> Float[Array, "2"]:
    """The vector [x₀² + x₁, x₀x₁].

    A vector of two. Jacobian: [[2x₀, 1], [x₁, x₀]], at (1, 2) equal to [[2, 1], [2, 1]].
    """
    return jnp.stack([x[0] ** 2 + x[1], x[0] * x[1]])


@function(outputs={"x": Float[Array, ""], "y": Float[Array, ""]})
def polar_to_cartesian(r: Float[Array, ""], theta: Float[Array, ""]) -> dict[str, Array]:
    """Cartesian coordinates of a point in polar ones: x = r cos θ and y = r sin θ.

    Two scalars, the angle in radians. Jacobian: [[cos θ, −r sin θ], [sin θ, r cos θ]], with determinant r.
    """
    return {"x": r * jnp.cos(theta), "y": r * jnp.sin(theta)}


@function(outputs={"polynomial": Float[Array, ""], "slope": Float[Array, ""]})
def polynomial_and_slope(coefficients: Float[Array, "k"], x: Float[Array, ""]) -> dict[str, Array]:
    """A polynomial Σᵢ cᵢ xᵏ⁻¹⁻ⁱ and its slope Σᵢ (k−1−i) cᵢ xᵏ⁻²⁻ⁱ at x.

    The k ≥ 2 coefficients, that of the highest power first, and a scalar. Derivatives of the polynomial: its slope
    by x, and the power xᵏ⁻¹⁻ⁱ by cᵢ.
    """
    return {
        "polynomial": jnp.polyval(coefficients, x),
        "slope": jnp.polyval(jnp.polyder(coefficients), x),
    }
