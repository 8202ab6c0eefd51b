"""Functions with a fault planted into a derivative, as they happen: CheckGradient must pass none of them.

Values are right; what is wrong is what automatic differentiation makes of them. Where a fault is in a rule of the
function's own, the rule is written out, right but for the fault.
"""

# jaxtyping writes shapes as strings, which are not forward references:

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from nablad_server import function

Scalar = Float[Array, ""]
Vector = Float[Array, "n"]
Matrix = Float[Array, "n n"]

FAULTS: dict[str, str] = {}
"""The kind of fault of each function, by its name."""


def fault(kind: str, **options: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Marks a function with a fault of some kind; `options` are those of `@function`."""

    def mark(call: Callable[..., Any]) -> Callable[..., Any]:
        FAULTS[call.__name__] = kind
        return function(**options)(call) if options else function(call)

    return mark


def with_slope(value: Callable[[Any], Any], slope: Callable[[Any], Any]) -> Callable[[Any], Array]:
    """A function of one array, elementwise, whose derivative is said to be `slope`."""
    ruled = jax.custom_jvp(lambda x: value(x))  # noqa: PLW0108 - JAX looks at the parameters, which a ufunc hides
    ruled.defjvp(lambda primals, tangents: (value(*primals), slope(*primals) * tangents[0]))
    return ruled


def with_gradient(value: Callable[..., Any], back: Callable[..., tuple[Any, ...]]) -> Callable[..., Array]:
    """A function whose cotangents are said to be `back(*arguments, cotangent)`."""
    ruled = jax.custom_vjp(lambda *arguments: value(*arguments))  # noqa: PLW0108 - likewise
    ruled.defvjp(lambda *arguments: (value(*arguments), arguments), lambda kept, cotangent: back(*kept, cotangent))
    return ruled


# One part in a hundred. ---------------------------------------------------------------------------------------------

ELEMENTARY: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "sin": (jnp.sin, jnp.cos),
    "cos": (jnp.cos, lambda x: -jnp.sin(x)),
    "exp": (jnp.exp, jnp.exp),
    "tanh": (jnp.tanh, lambda x: 1 - jnp.tanh(x) ** 2),
    "logistic": (jax.nn.sigmoid, lambda x: jax.nn.sigmoid(x) * jax.nn.sigmoid(-x)),
    "softplus": (jax.nn.softplus, jax.nn.sigmoid),
    "cube": (lambda x: x**3, lambda x: 3 * x**2),
    "reciprocal_of_1_x2": (lambda x: 1 / (1 + x**2), lambda x: -2 * x / (1 + x**2) ** 2),
    "arctan": (jnp.arctan, lambda x: 1 / (1 + x**2)),
    "sqrt_1_x2": (lambda x: jnp.sqrt(1 + x**2), lambda x: x / jnp.sqrt(1 + x**2)),
}
"""Functions of one real variable, with their derivatives."""


def _planted(kind: str, suffix: str, wrong: Callable[[Callable[[Any], Any], Any], Any]) -> None:
    """A function of each elementary one whose slope is wrong, summed over a vector."""
    for name, (value, slope) in ELEMENTARY.items():
        globals()[f"{name}_{suffix}"] = fault(kind)(_total(f"{name}_{suffix}", value, functools.partial(wrong, slope)))


def _total(name: str, value: Callable[[Any], Any], slope: Callable[[Any], Any]) -> Callable[..., Any]:
    ruled = with_slope(value, slope)

    def total(x: Vector) -> Scalar:
        return jnp.sum(ruled(x))

    total.__name__ = name
    return total


_planted("one percent", "one_percent_steep", lambda slope, x: 1.01 * slope(x))


@fault("one percent")
def matvec_one_percent(A: Matrix, x: Vector) -> Vector:
    """Ax, with a derivative by A that is 1 % too small."""
    product = with_gradient(lambda A, x: A @ x, lambda A, x, c: (0.99 * jnp.outer(c, x), A.T @ c))
    return product(A, x)


@fault("one percent")
def logsumexp_one_percent_in_one_element(x: Vector) -> Scalar:
    """ln Σ exp(xᵢ), with one element of the gradient 1 % too large."""
    ruled = with_gradient(jax.nn.logsumexp, lambda x, c: (c * jax.nn.softmax(x).at[1].multiply(1.01),))
    return ruled(x)


@fault("one percent")
def one_percent_deep_inside(x: Vector) -> Scalar:
    """A chain of ten layers, one of which has a slope that is 1 % too large."""
    steep = with_slope(jnp.tanh, lambda x: 1.01 * (1 - jnp.tanh(x) ** 2))
    for layer in range(10):
        x = (steep if layer == 4 else jnp.sin)(x) + x / 2
    return jnp.sum(x)


@fault("one percent", sizes={"n": 40})
def one_percent_in_one_of_many(x: Vector) -> Scalar:
    """A sum over forty elements; the partial derivative by one of them is 1 % too large."""
    ruled = with_gradient(lambda x: jnp.sum(jnp.sin(x)), lambda x, c: (c * jnp.cos(x).at[17].multiply(1.01),))
    return ruled(x)


# The wrong sign. ----------------------------------------------------------------------------------------------------

_planted("wrong sign", "wrong_sign", lambda slope, x: -slope(x))


@fault("wrong sign")
def difference_wrong_sign(x: Vector, y: Vector) -> Scalar:
    """½‖x − y‖², with the gradient of x for y."""
    ruled = with_gradient(lambda x, y: jnp.sum((x - y) ** 2) / 2, lambda x, y, c: (c * (x - y), c * (x - y)))
    return ruled(x, y)


@fault("wrong sign")
def inverse_wrong_sign(x: Vector) -> Scalar:
    """1ᵀ(I + diag x²)⁻¹1, with +A⁻¹ dA A⁻¹ for the derivative of the inverse."""
    ruled = with_gradient(jnp.linalg.inv, lambda A, c: (jnp.linalg.inv(A).T @ c @ jnp.linalg.inv(A).T,))
    return jnp.sum(ruled(jnp.eye(len(x)) + jnp.diag(x**2) + 0.1))


# A missing term. ----------------------------------------------------------------------------------------------------


@fault("missing term")
def product_without_second_term(x: Scalar) -> Scalar:
    """x² sin x, differentiated as if the sine were constant."""
    return with_slope(lambda x: x**2 * jnp.sin(x), lambda x: 2 * x * jnp.sin(x))(x)


@fault("missing term")
def quotient_without_denominator(x: Scalar) -> Scalar:
    """x / (1 + x²), without the derivative of the denominator."""
    return with_slope(lambda x: x / (1 + x**2), lambda x: 1 / (1 + x**2))(x)


@fault("missing term")
def chain_without_inner_slope(x: Scalar) -> Scalar:
    """sin(x²) with the derivative cos(x²)."""
    return with_slope(lambda x: jnp.sin(x**2), lambda x: jnp.cos(x**2))(x)


@fault("missing term")
def softmax_without_coupling(x: Vector) -> Vector:
    """Softmax with the Jacobian diag(s), without − s sᵀ."""
    return with_gradient(jax.nn.softmax, lambda x, c: (jax.nn.softmax(x) * c,))(x)


@fault("missing term")
def quadratic_form_of_a_symmetric_matrix(x: Vector, A: Matrix) -> Scalar:
    """xᵀAx with the gradient 2Ax, right only for symmetric A."""
    ruled = with_gradient(lambda x, A: x @ A @ x, lambda x, A, c: (2 * c * A @ x, c * jnp.outer(x, x)))
    return ruled(x, A)


@fault("missing term")
def rosenbrock_without_neighbour(x: Vector) -> Scalar:
    """Rosenbrock's function, its gradient without what an element does as the neighbour of the one before."""

    def value(x: Any) -> Any:
        return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)

    def back(x: Any, c: Any) -> tuple[Any]:
        own = -400 * x[:-1] * (x[1:] - x[:-1] ** 2) - 2 * (1 - x[:-1])
        return (c * jnp.append(own, 0.0),)

    return with_gradient(value, back)(x)


@fault("missing term")
def penalty_without_gradient(x: Vector) -> Scalar:
    """A loss whose small penalty, a thousandth of it, is not differentiated."""
    ruled = with_gradient(lambda x: jnp.sum(x**2) + 1e-3 * jnp.sum(x**4), lambda x, c: (2 * c * x,))
    return ruled(x)


@fault("missing term")
def batch_mean_held_fixed(x: Vector) -> Scalar:
    """Σ sin(xᵢ − x̄)², with the mean held fixed in the derivative."""
    value = lambda x: jnp.sum(jnp.sin(x - jnp.mean(x)) ** 2)
    ruled = with_gradient(value, lambda x, c: (c * jnp.sin(2 * (x - jnp.mean(x))),))
    return ruled(x) + jnp.sum(jnp.cos(ruled(2 * x) + x))


# The transposed Jacobian. -------------------------------------------------------------------------------------------


@fault("transposed")
def matvec_transposed(A: Matrix, x: Vector) -> Vector:
    """Ax, with Ac for Aᵀc."""
    return with_gradient(lambda A, x: A @ x, lambda A, x, c: (jnp.outer(c, x), A @ c))(A, x)


@fault("transposed")
def vecmat_transposed(A: Matrix, x: Vector) -> Vector:
    """xᵀA, with the outer product the wrong way round."""
    return with_gradient(lambda A, x: x @ A, lambda A, x, c: (jnp.outer(c, x), A @ c))(A, x)


@fault("transposed", domain={"A": lambda random, shape: random.standard_normal(shape) + 3 * jnp.eye(shape[0])})
def solve_transposed(A: Matrix, b: Vector) -> Vector:
    """A⁻¹b, its cotangent found with A for Aᵀ."""

    def back(A: Any, b: Any, c: Any) -> tuple[Any, Any]:
        found = jnp.linalg.solve(A, c)
        return -jnp.outer(found, jnp.linalg.solve(A, b)), found

    return with_gradient(jnp.linalg.solve, back)(A, b)


@fault("transposed")
def rotation_transposed(x: Float[Array, "2"]) -> Float[Array, "2"]:
    """A rotation of the plane, turned the same way for cotangents."""
    turn = jnp.asarray([[0.6, -0.8], [0.8, 0.6]], x.dtype)
    return with_gradient(lambda x: turn @ x, lambda _, c: (turn @ c,))(x)


@fault("transposed")
def bilinear_transposed(x: Vector, A: Matrix, y: Vector) -> Scalar:
    """xᵀAy, with y xᵀ for the derivative by A."""
    back = lambda x, A, y, c: (c * A @ y, c * jnp.outer(y, x), c * A.T @ x)
    return with_gradient(lambda x, A, y: x @ A @ y, back)(x, A, y)


@fault("transposed")
def polar_jacobian_transposed(p: Float[Array, "2"]) -> Float[Array, "2"]:
    """(r, θ) to (x, y), with J for Jᵀ."""

    def back(p: Any, c: Any) -> tuple[Any]:
        r, theta = p
        jacobian = jnp.array([[jnp.cos(theta), -r * jnp.sin(theta)], [jnp.sin(theta), r * jnp.cos(theta)]])
        return (jacobian @ c,)

    return with_gradient(lambda p: p[0] * jnp.array([jnp.cos(p[1]), jnp.sin(p[1])]), back)(p)


# Off by one. --------------------------------------------------------------------------------------------------------


@fault("off by one")
def gradient_shifted(x: Vector) -> Scalar:
    """Σ sin xᵢ, each partial derivative in its neighbour's place."""
    return with_gradient(lambda x: jnp.sum(jnp.sin(x)), lambda x, c: (c * jnp.roll(jnp.cos(x), 1),))(x)


@fault("off by one")
def cumulative_sum_without_itself(x: Vector) -> Vector:
    """Partial sums, with the cotangent of an element's own sum left out."""
    return with_gradient(jnp.cumsum, lambda _, c: (jnp.cumsum(c[::-1])[::-1] - c,))(x)


@fault("off by one")
def power_of_wrong_order(x: Scalar) -> Scalar:
    """x⁵ with the derivative 5x⁵."""
    return with_slope(lambda x: x**5, lambda x: 5 * x**5)(x)


@fault("off by one")
def polynomial_coefficient_shifted(x: Scalar) -> Scalar:
    """1 + x + x² + x³, its derivative with coefficients 0, 1, 2 for 1, 2, 3."""
    return with_slope(lambda x: 1 + x + x**2 + x**3, lambda x: x + 2 * x**2)(x)


@fault("off by one")
def mean_over_one_too_few(x: Vector) -> Scalar:
    """The mean of squares, its gradient divided by n − 1."""
    return with_gradient(lambda x: jnp.mean(x**2), lambda x, c: (2 * c * x / (len(x) - 1),))(x)


@fault("off by one")
def last_element_forgotten(x: Vector) -> Scalar:
    """Σ eˣⁱ, without a gradient for the last element."""
    return with_gradient(lambda x: jnp.sum(jnp.exp(x)), lambda x, c: (c * jnp.exp(x).at[-1].set(0.0),))(x)


@fault("off by one")
def moving_difference_shifted(x: Vector) -> Scalar:
    """Σ sin(xᵢ₊₁ − xᵢ), with the cotangent of one neighbour shifted by one."""
    back = lambda _, c: (jnp.append(c, 0.0) - jnp.append(c, 0.0) + jnp.append(0.0, c),)
    return jnp.sum(jnp.sin(with_gradient(lambda x: x[1:] - x[:-1], back)(x)))


@fault("off by one")
def loop_with_one_step_too_few(x: Vector) -> Scalar:
    """Ten steps of x ↦ sin x + x/2, differentiated as nine."""

    def steps(x: Any, count: int) -> Any:
        for _ in range(count):
            x = jnp.sin(x) + x / 2
        return x

    ruled = jax.custom_jvp(lambda x: steps(x, 10))
    ruled.defjvp(lambda p, t: (steps(p[0], 10), jax.jvp(lambda x: steps(x, 9), p, t)[1]))
    return jnp.sum(ruled(x))


# A gradient that is stopped. ----------------------------------------------------------------------------------------


@fault("stopped")
def product_with_one_factor_stopped(x: Scalar, y: Scalar) -> Scalar:
    """xy with y held fixed."""
    return x * lax.stop_gradient(y)


@fault("stopped")
def normalised_with_norm_stopped(x: Vector) -> Vector:
    """x / ‖x‖, as if the norm did not depend on x."""
    return jnp.asarray(x / lax.stop_gradient(jnp.linalg.norm(x)))


@fault("stopped")
def softmax_with_total_stopped(x: Vector) -> Vector:
    """Softmax with its denominator stopped."""
    return jnp.exp(x) / lax.stop_gradient(jnp.sum(jnp.exp(x)))


@fault("stopped")
def residual_with_branch_stopped(x: Vector) -> Scalar:
    """Σ (x + sin x), with the sine stopped."""
    return jnp.sum(x + lax.stop_gradient(jnp.sin(x)))


@fault("stopped")
def variance_with_mean_stopped_in_a_sum(x: Vector) -> Scalar:
    """Σ (xᵢ − x̄)³ with the mean stopped."""
    return jnp.sum((x - lax.stop_gradient(jnp.mean(x))) ** 3)


@fault("stopped")
def weights_stopped(x: Vector) -> Scalar:
    """A weighted sum of squares whose weights depend on x and are stopped."""
    return jnp.sum(lax.stop_gradient(jax.nn.softmax(x)) * x**2)


@fault("stopped")
def step_size_stopped(x: Vector) -> Scalar:
    """The value after a step of steepest descent with an exact step size, which is stopped."""
    gradient = 2 * x * jnp.arange(1, len(x) + 1)
    size = lax.stop_gradient(jnp.sum(gradient**2) / jnp.sum(2 * jnp.arange(1, len(x) + 1) * gradient**2))
    return jnp.sum(jnp.arange(1, len(x) + 1) * (x - 0.7 * size * gradient) ** 2)


@fault("stopped")
def first_layer_stopped(x: Vector, w: Matrix) -> Scalar:
    """Two layers, of which the first is not trained."""
    return jnp.sum(jnp.tanh(w @ lax.stop_gradient(jnp.tanh(w @ x))))


@fault("stopped")
def rounding_with_straight_through(x: Vector) -> Scalar:
    """⌊x⌉², differentiated as if rounding were the identity."""
    return jnp.sum((x + lax.stop_gradient(jnp.round(x) - x)) ** 2)


# Float32 inside float64. --------------------------------------------------------------------------------------------


def _narrow(x: Any) -> Any:
    return x.astype(jnp.float32)


@fault("float32 leak")
def sin_in_float32(x: Vector) -> Scalar:
    """Σ sin xᵢ, computed in float32."""
    return jnp.sum(jnp.sin(_narrow(x))).astype(x.dtype)


@fault("float32 leak")
def slope_in_float32(x: Vector) -> Scalar:
    """Σ tanh xᵢ, with its slope computed in float32."""
    slope = lambda x: (1 - jnp.tanh(_narrow(x)) ** 2).astype(x.dtype)
    return jnp.sum(with_slope(jnp.tanh, slope)(x))


@fault("float32 leak")
def gradient_stored_in_float32(x: Vector) -> Scalar:
    """Σ exp(xᵢ), with a gradient that was kept in float32."""
    return with_gradient(lambda x: jnp.sum(jnp.exp(x)), lambda x, c: (c * _narrow(jnp.exp(x)).astype(x.dtype),))(x)


@fault("float32 leak")
def one_term_in_float32(x: Vector) -> Scalar:
    """Σ xᵢ² + a hundredth of Σ cos xᵢ in float32."""
    return jnp.sum(x**2) + 0.01 * jnp.sum(jnp.cos(_narrow(x))).astype(x.dtype)


@fault("float32 leak")
def matrix_in_float32(A: Matrix, x: Vector) -> Vector:
    """Ax with A rounded to float32."""
    return jnp.asarray(_narrow(A).astype(A.dtype) @ x)


@fault("float32 leak")
def jacobian_in_float32(x: Vector) -> Vector:
    """Softmax with a Jacobian in float32."""

    def back(x: Any, c: Any) -> tuple[Any]:
        s = _narrow(jax.nn.softmax(x))
        return ((s * (c - jnp.sum(s * c))).astype(x.dtype),)

    return with_gradient(jax.nn.softmax, back)(x)


@fault("float32 leak")
def layer_in_float32(x: Vector, w: Matrix) -> Scalar:
    """Two layers, the second in float32."""
    return jnp.sum(jnp.tanh(_narrow(w) @ _narrow(jnp.tanh(w @ x)))).astype(x.dtype)


@fault("float32 leak")
def constant_through_float32(x: Vector) -> Scalar:
    """Σ (πxᵢ)², with a slope that has π in float32."""
    wrong = jnp.float32(jnp.pi).astype(jnp.float64)
    return jnp.sum(with_slope(lambda x: (jnp.pi * x) ** 2, lambda x: 2 * wrong.astype(x.dtype) ** 2 * x)(x))


# Others. ------------------------------------------------------------------------------------------------------------


@fault("factor of 2")
def square_without_factor(x: Vector) -> Scalar:
    """‖x‖² with the gradient of its half."""
    return with_gradient(lambda x: jnp.sum(x**2), lambda x, c: (c * x,))(x)


@fault("undefined")
def root_behind_a_where(x: Vector) -> Scalar:
    """Σ √max(xᵢ, 0), whose branch not taken makes the gradient NaN."""
    return jnp.sum(jnp.where(x > 0, jnp.sqrt(x), 0.0))


@fault("clipped", domain={"x": (1.5, 3.0)})
def gradient_clipped_inside(x: Vector) -> Scalar:
    """Σ xᵢ², with a gradient clipped to 1."""
    return with_gradient(lambda x: jnp.sum(x**2), lambda x, c: (jnp.clip(2 * c * x, -1, 1),))(x)


@fault("degrees")
def sine_of_degrees(x: Vector) -> Scalar:
    """sin of an angle in degrees, with the cosine for its derivative."""
    return jnp.sum(with_slope(lambda x: jnp.sin(jnp.deg2rad(x)), lambda x: jnp.cos(jnp.deg2rad(x)))(x))


@fault("natural logarithm")
def logarithm_to_base_ten(x: Vector) -> Scalar:
    """log₁₀ of 1 + x², with the derivative of ln."""
    return jnp.sum(with_slope(lambda x: jnp.log10(1 + x**2), lambda x: 2 * x / (1 + x**2))(x))
