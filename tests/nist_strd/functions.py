# ruff: noqa: F722, F821 -- the strings in annotations are shapes, as jaxtyping has them
"""The models of the 27 nonlinear regression problems of NIST's Statistical Reference Datasets.

A file as a user of nablad writes it: plain JAX functions, annotated with the shapes of their arrays, to be served with

    nablad serve tests/nist_strd/functions.py

Each is called like its problem, in lower case, and takes the parameters b and the predictor x of n observations. Its
documentation is the formula, then the level of difficulty that NIST gives its problem.
"""

import math

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float


def misra1a(b: Float[Array, "2"], x: Float[Array, "n"]) -> Float[Array, "n"]:
    """y = b1 (1 − exp(−b2 x)). Lower level of difficulty."""
    return b[0] * (1 - jnp.exp(-b[1] * x))


def misra1b(b: Float[Array, "2"], x: Float[Array, "n"]) -> Float[Array, "n"]:
    """y = b1 (1 − (1 + b2 x / 2)^−2). Lower level of difficulty."""
    return b[0] * (1 - (1 + b[1] * x / 2) ** -2)


def misra1c(b: Float[Array, "2"], x: Float[Array, "n"]) -> Float[Array, "n"]:
    """y = b1 (1 − (1 + 2 b2 x)^−½). Average level of difficulty."""
    return b[0] * (1 - (1 + 2 * b[1] * x) ** -0.5)


def misra1d(b: Float[Array, "2"], x: Float[Array, "n"]) -> Float[Array, "n"]:
    """y = b1 b2 x / (1 + b2 x). Average level of difficulty."""
    return b[0] * b[1] * x / (1 + b[1] * x)


def chwirut1(b: Float[Array, "3"], x: Float[Array, "n"]) -> Float[Array, "n"]:
    """y = exp(−b1 x) / (b2 + b3 x). Lower level of difficulty."""
    return jnp.exp(-b[0] * x) / (b[1] + b[2] * x)


def chwirut2(b: Float[Array, "3"], x: Float[Array, "n"]) -> Float[Array, "n"]:
    """y = exp(−b1 x) / (b2 + b3 x), as Chwirut1 for fewer observations. Lower level of difficulty."""
    return jnp.exp(-b[0] * x) / (b[1] + b[2] * x)


def lanczos1(b: Float[Array, "6"], x: Float[Array, "n"]) -> Float[Array, "n"]:
    """y = b1 exp(−b2 x) + b3 exp(−b4 x) + b5 exp(−b6 x), data to 14 digits. Average level of difficulty."""
    return b[0] * jnp.exp(-b[1] * x) + b[2] * jnp.exp(-b[3] * x) + b[4] * jnp.exp(-b[5] * x)


def lanczos2(b: Float[Array, "6"], x: Float[Array, "n"]) -> Float[Array, "n"]:
    """y = b1 exp(−b2 x) + b3 exp(−b4 x) + b5 exp(−b6 x), data to 6 digits. Average level of difficulty."""
    return b[0] * jnp.exp(-b[1] * x) + b[2] * jnp.exp(-b[3] * x) + b[4] * jnp.exp(-b[5] * x)


def lanczos3(b: Float[Array, "6"], x: Float[Array, "n"]) -> Float[Array, "n"]:
    """y = b1 exp(−b2 x) + b3 exp(−b4 x) + b5 exp(−b6 x), data to 5 digits. Lower level of difficulty."""
    return b[0] * jnp.exp(-b[1] * x) + b[2] * jnp.exp(-b[3] * x) + b[4] * jnp.exp(-b[5] * x)


def gauss1(b: Float[Array, "8"], x: Float[Array, "n"]) -> Float[Array, "n"]:
    """y = b1 exp(−b2 x) + b3 exp(−(x − b4)² / b5²) + b6 exp(−(x − b7)² / b8²), two well-separated peaks.

    Lower level of difficulty.
    """
    return _peaks(b, x)


def gauss2(b: Float[Array, "8"], x: Float[Array, "n"]) -> Float[Array, "n"]:
    """y = b1 exp(−b2 x) + b3 exp(−(x − b4)² / b5²) + b6 exp(−(x − b7)² / b8²), two slightly blended peaks.

    Lower level of difficulty.
    """
    return _peaks(b, x)


def gauss3(b: Float[Array, "8"], x: Float[Array, "n"]) -> Float[Array, "n"]:
    """y = b1 exp(−b2 x) + b3 exp(−(x − b4)² / b5²) + b6 exp(−(x − b7)² / b8²), two strongly blended peaks.

    Average level of difficulty.
    """
    return _peaks(b, x)


def _peaks(b: Array, x: Array) -> Array:
    first = b[2] * jnp.exp(-((x - b[3]) ** 2) / b[4] ** 2)
    second = b[5] * jnp.exp(-((x - b[6]) ** 2) / b[7] ** 2)
    return b[0] * jnp.exp(-b[1] * x) + first + second


def danwood(b: Float[Array, "2"], x: Float[Array, "n"]) -> Float[Array, "n"]:
    """y = b1 x^b2. Lower level of difficulty."""
    return b[0] * x ** b[1]


def kirby2(b: Float[Array, "5"], x: Float[Array, "n"]) -> Float[Array, "n"]:
    """y = (b1 + b2 x + b3 x²) / (1 + b4 x + b5 x²). Average level of difficulty."""
    return (b[0] + b[1] * x + b[2] * x**2) / (1 + b[3] * x + b[4] * x**2)


def hahn1(b: Float[Array, "7"], x: Float[Array, "n"]) -> Float[Array, "n"]:
    """y = (b1 + b2 x + b3 x² + b4 x³) / (1 + b5 x + b6 x² + b7 x³). Average level of difficulty."""
    return (b[0] + b[1] * x + b[2] * x**2 + b[3] * x**3) / (1 + b[4] * x + b[5] * x**2 + b[6] * x**3)


def thurber(b: Float[Array, "7"], x: Float[Array, "n"]) -> Float[Array, "n"]:
    """y = (b1 + b2 x + b3 x² + b4 x³) / (1 + b5 x + b6 x² + b7 x³). Higher level of difficulty."""
    return (b[0] + b[1] * x + b[2] * x**2 + b[3] * x**3) / (1 + b[4] * x + b[5] * x**2 + b[6] * x**3)


def nelson(b: Float[Array, "3"], x: Float[Array, "n 2"]) -> Float[Array, "n"]:
    """log y = b1 − b2 x1 exp(−b3 x2). Average level of difficulty."""
    return b[0] - b[1] * x[:, 0] * jnp.exp(-b[2] * x[:, 1])


def mgh09(b: Float[Array, "4"], x: Float[Array, "n"]) -> Float[Array, "n"]:
    """y = b1 (x² + b2 x) / (x² + b3 x + b4). Higher level of difficulty."""
    return b[0] * (x**2 + b[1] * x) / (x**2 + b[2] * x + b[3])


def mgh10(b: Float[Array, "3"], x: Float[Array, "n"]) -> Float[Array, "n"]:
    """y = b1 exp(b2 / (x + b3)). Higher level of difficulty."""
    return b[0] * jnp.exp(b[1] / (x + b[2]))


def mgh17(b: Float[Array, "5"], x: Float[Array, "n"]) -> Float[Array, "n"]:
    """y = b1 + b2 exp(−b4 x) + b3 exp(−b5 x). Average level of difficulty."""
    return b[0] + b[1] * jnp.exp(-b[3] * x) + b[2] * jnp.exp(-b[4] * x)


def roszman1(b: Float[Array, "4"], x: Float[Array, "n"]) -> Float[Array, "n"]:
    """y = b1 − b2 x − arctan(b3 / (x − b4)) / π. Average level of difficulty."""
    return b[0] - b[1] * x - jnp.arctan(b[2] / (x - b[3])) / math.pi


def enso(b: Float[Array, "9"], x: Float[Array, "n"]) -> Float[Array, "n"]:
    """y = b1 + Σ over three periods T of a cos(2π x / T) + c sin(2π x / T).

    The periods are 12, b4 and b7; their (a, c) are (b2, b3), (b5, b6) and (b8, b9). Average level of difficulty.
    """
    yearly, first, second = (2 * math.pi * x / period for period in (12, b[3], b[6]))
    return (
        b[0]
        + b[1] * jnp.cos(yearly) + b[2] * jnp.sin(yearly)
        + b[4] * jnp.cos(first) + b[5] * jnp.sin(first)
        + b[7] * jnp.cos(second) + b[8] * jnp.sin(second)
    )  # fmt: skip


def boxbod(b: Float[Array, "2"], x: Float[Array, "n"]) -> Float[Array, "n"]:
    """y = b1 (1 − exp(−b2 x)). Higher level of difficulty."""
    return b[0] * (1 - jnp.exp(-b[1] * x))


def rat42(b: Float[Array, "3"], x: Float[Array, "n"]) -> Float[Array, "n"]:
    """y = b1 / (1 + exp(b2 − b3 x)). Higher level of difficulty."""
    return b[0] / (1 + jnp.exp(b[1] - b[2] * x))


def rat43(b: Float[Array, "4"], x: Float[Array, "n"]) -> Float[Array, "n"]:
    """y = b1 / (1 + exp(b2 − b3 x))^(1 / b4). Higher level of difficulty."""
    return b[0] / (1 + jnp.exp(b[1] - b[2] * x)) ** (1 / b[3])


def eckerle4(b: Float[Array, "3"], x: Float[Array, "n"]) -> Float[Array, "n"]:
    """y = (b1 / b2) exp(−½ ((x − b3) / b2)²). Higher level of difficulty."""
    return b[0] / b[1] * jnp.exp(-0.5 * ((x - b[2]) / b[1]) ** 2)


def bennett5(b: Float[Array, "3"], x: Float[Array, "n"]) -> Float[Array, "n"]:
    """y = b1 (b2 + x)^(−1 / b3). Higher level of difficulty."""
    return b[0] * (b[1] + x) ** (-1 / b[2])
