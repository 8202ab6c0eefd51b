"""Classical test functions of optimisation, with their origin, usual domain and known minimum.

Their definitions are also collected in Jamil and Yang (2013), A literature survey of benchmark functions for global
optimisation problems. The simplest of them, the sphere, is sum_of_squares.
"""

# jaxtyping writes shapes as strings, which are not forward references:
# ruff: noqa: F722, F821

import math

import jax.numpy as jnp
from jaxtyping import Array, Float


def rosenbrock(x: Float[Array, "n"]) -> Float[Array, ""]:
    """The Rosenbrock valley Σᵢ 100(xᵢ₊₁ − xᵢ²)² + (1 − xᵢ)².

    n ≥ 2 variables, usually in [−5, 10]. Minimum: 0 at (1, …, 1), along a narrow curved valley.
    Source: Rosenbrock (1960), An automatic method for finding the greatest or least value of a function.
    """
    return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


def himmelblau(x: Float[Array, "2"]) -> Float[Array, ""]:
    """Himmelblau's function (x₀² + x₁ − 11)² + (x₀ + x₁² − 7)².

    Two variables, usually in [−5, 5]. Four minima of 0, one of them at (3, 2), the others near (−2.8051, 3.1313),
    (−3.7793, −3.2832) and (3.5844, −1.8481).
    Source: Himmelblau (1972), Applied Nonlinear Programming.
    """
    return (x[0] ** 2 + x[1] - 11) ** 2 + (x[0] + x[1] ** 2 - 7) ** 2


def beale(x: Float[Array, "2"]) -> Float[Array, ""]:
    """Beale's function (1.5 − x₀ + x₀x₁)² + (2.25 − x₀ + x₀x₁²)² + (2.625 − x₀ + x₀x₁³)².

    Two variables, usually in [−4.5, 4.5]. Minimum: 0 at (3, 0.5).
    Source: Beale (1958), On an iterative method for finding a local minimum of a function of more than one variable.
    """
    first, second = x[0], x[1]
    return (
        (1.5 - first + first * second) ** 2
        + (2.25 - first + first * second**2) ** 2
        + (2.625 - first + first * second**3) ** 2
    )


def booth(x: Float[Array, "2"]) -> Float[Array, ""]:
    """Booth's function (x₀ + 2x₁ − 7)² + (2x₀ + x₁ − 5)².

    Two variables, usually in [−10, 10]. Minimum: 0 at (1, 3). Hessian: [[10, 8], [8, 10]] everywhere.
    Source: attributed to Booth; in Jamil and Yang (2013).
    """
    return (x[0] + 2 * x[1] - 7) ** 2 + (2 * x[0] + x[1] - 5) ** 2


def matyas(x: Float[Array, "2"]) -> Float[Array, ""]:
    """Matyas's function 0.26(x₀² + x₁²) − 0.48x₀x₁.

    Two variables, usually in [−10, 10]. Minimum: 0 at the origin. Hessian: [[0.52, −0.48], [−0.48, 0.52]] everywhere.
    Source: attributed to Matyas; in Jamil and Yang (2013).
    """
    return 0.26 * (x[0] ** 2 + x[1] ** 2) - 0.48 * x[0] * x[1]


def rastrigin(x: Float[Array, "n"]) -> Float[Array, ""]:
    """Rastrigin's function 10n + Σᵢ (xᵢ² − 10 cos 2πxᵢ).

    n variables, usually in [−5.12, 5.12]. Minimum: 0 at the origin, among a lattice of local ones.
    Source: Rastrigin (1974), Systems of extremal control.
    """
    return 10 * x.size + jnp.sum(x**2 - 10 * jnp.cos(2 * math.pi * x))


def ackley(x: Float[Array, "n"]) -> Float[Array, ""]:
    """Ackley's function −20 exp(−0.2 √(Σᵢ xᵢ²/n)) − exp(Σᵢ cos(2πxᵢ)/n) + 20 + e.

    n variables, usually in [−32.768, 32.768]. Minimum: 0 at the origin, where it has a kink and no gradient.
    Source: Ackley (1987), A Connectionist Machine for Genetic Hillclimbing.
    """
    radius = jnp.sqrt(jnp.mean(x**2))
    return -20 * jnp.exp(-0.2 * radius) - jnp.exp(jnp.mean(jnp.cos(2 * math.pi * x))) + 20 + math.e


def styblinski_tang(x: Float[Array, "n"]) -> Float[Array, ""]:
    """The Styblinski-Tang function ½ Σᵢ (xᵢ⁴ − 16xᵢ² + 5xᵢ).

    n variables, usually in [−5, 5]. Minimum: about −39.16617 n at xᵢ ≈ −2.903534.
    Source: Styblinski and Tang (1990), Experiments in nonconvex optimization.
    """
    return 0.5 * jnp.sum(x**4 - 16 * x**2 + 5 * x)


def griewank(x: Float[Array, "n"]) -> Float[Array, ""]:
    """Griewank's function 1 + Σᵢ xᵢ²/4000 − Πᵢ cos(xᵢ/√i), with i from 1.

    n variables, usually in [−600, 600]. Minimum: 0 at the origin.
    Source: Griewank (1981), Generalized descent for global optimization.
    """
    index = jnp.arange(1, x.size + 1, dtype=x.dtype)
    return 1 + jnp.sum(x**2) / 4000 - jnp.prod(jnp.cos(x / jnp.sqrt(index)))


def levy(x: Float[Array, "n"]) -> Float[Array, ""]:
    """Levy's function sin²(πw₁) + Σᵢ₌₁ⁿ⁻¹ (wᵢ−1)²(1 + 10 sin²(πwᵢ+1)) + (wₙ−1)²(1 + sin²(2πwₙ)), wᵢ = 1 + (xᵢ−1)/4.

    n variables, usually in [−10, 10]. Minimum: 0 at (1, …, 1).
    Source: Levy and Montalvo (1985), The tunneling algorithm for the global minimization of functions.
    """
    w = 1 + (x - 1) / 4
    inner = (w[:-1] - 1) ** 2 * (1 + 10 * jnp.sin(math.pi * w[:-1] + 1) ** 2)
    last = (w[-1] - 1) ** 2 * (1 + jnp.sin(2 * math.pi * w[-1]) ** 2)
    return jnp.sin(math.pi * w[0]) ** 2 + jnp.sum(inner) + last


def goldstein_price(x: Float[Array, "2"]) -> Float[Array, ""]:
    """The Goldstein-Price function, a product of two polynomials of the fourth degree in two variables.

    (1 + (x₀ + x₁ + 1)²(19 − 14x₀ + 3x₀² − 14x₁ + 6x₀x₁ + 3x₁²)) ·
    (30 + (2x₀ − 3x₁)²(18 − 32x₀ + 12x₀² + 48x₁ − 36x₀x₁ + 27x₁²)), both variables usually in [−2, 2].
    Minimum: 3 at (0, −1); values reach 10⁶, beyond float16.
    Source: Goldstein and Price (1971), On descent from local minima.
    """
    a, b = x[0], x[1]
    first = 1 + (a + b + 1) ** 2 * (19 - 14 * a + 3 * a**2 - 14 * b + 6 * a * b + 3 * b**2)
    second = 30 + (2 * a - 3 * b) ** 2 * (18 - 32 * a + 12 * a**2 + 48 * b - 36 * a * b + 27 * b**2)
    return first * second


def three_hump_camel(x: Float[Array, "2"]) -> Float[Array, ""]:
    """The three-hump camel 2x₀² − 1.05x₀⁴ + x₀⁶/6 + x₀x₁ + x₁².

    Two variables, usually in [−5, 5]. Minimum: 0 at the origin, between two local ones.
    Source: in Dixon and Szegő (1978), Towards Global Optimisation 2.
    """
    return 2 * x[0] ** 2 - 1.05 * x[0] ** 4 + x[0] ** 6 / 6 + x[0] * x[1] + x[1] ** 2


def six_hump_camel(x: Float[Array, "2"]) -> Float[Array, ""]:
    """The six-hump camel (4 − 2.1x₀² + x₀⁴/3)x₀² + x₀x₁ + (4x₁² − 4)x₁².

    x₀ usually in [−3, 3], x₁ in [−2, 2]. Minimum: about −1.0316285 at ±(0.0898, −0.7126), among six local ones.
    Source: in Dixon and Szegő (1978), Towards Global Optimisation 2.
    """
    return (4 - 2.1 * x[0] ** 2 + x[0] ** 4 / 3) * x[0] ** 2 + x[0] * x[1] + (4 * x[1] ** 2 - 4) * x[1] ** 2


def easom(x: Float[Array, "2"]) -> Float[Array, ""]:
    """Easom's function −cos x₀ cos x₁ exp(−(x₀ − π)² − (x₁ − π)²).

    Two variables, usually in [−100, 100]. Minimum: −1 at (π, π), the bottom of a narrow well in a plain.
    Source: Easom (1990), A survey of global optimization techniques.
    """
    return -jnp.cos(x[0]) * jnp.cos(x[1]) * jnp.exp(-((x[0] - math.pi) ** 2) - (x[1] - math.pi) ** 2)


def mccormick(x: Float[Array, "2"]) -> Float[Array, ""]:
    """McCormick's function sin(x₀ + x₁) + (x₀ − x₁)² − 1.5x₀ + 2.5x₁ + 1.

    x₀ usually in [−1.5, 4], x₁ in [−3, 4]. Minimum: about −1.9132230 at (−0.54720, −1.54720).
    Source: attributed to McCormick; in Jamil and Yang (2013).
    """
    return jnp.sin(x[0] + x[1]) + (x[0] - x[1]) ** 2 - 1.5 * x[0] + 2.5 * x[1] + 1


def zakharov(x: Float[Array, "n"]) -> Float[Array, ""]:
    """Zakharov's function Σᵢ xᵢ² + s² + s⁴, with s = Σᵢ i xᵢ/2 and i from 1.

    n variables, usually in [−5, 10]. Minimum: 0 at the origin, the only one.
    Source: attributed to Zakharov; in Jamil and Yang (2013).
    """
    s = 0.5 * jnp.sum(jnp.arange(1, x.size + 1, dtype=x.dtype) * x)
    return jnp.sum(x**2) + s**2 + s**4


def dixon_price(x: Float[Array, "n"]) -> Float[Array, ""]:
    """The Dixon-Price function (x₁ − 1)² + Σᵢ₌₂ⁿ i(2xᵢ² − xᵢ₋₁)².

    n ≥ 2 variables, usually in [−10, 10]. Minimum: 0 at xᵢ = 2^(2^(1−i) − 1), that is (1, 0.7071, 0.5946, …).
    Source: Dixon and Price (1989), Truncated Newton method for sparse unconstrained optimization using automatic
    differentiation.
    """
    index = jnp.arange(2, x.size + 1, dtype=x.dtype)
    return (x[0] - 1) ** 2 + jnp.sum(index * (2 * x[1:] ** 2 - x[:-1]) ** 2)
