"""What a scenario is, and the few shapes in which most of them come."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import mpmath
import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[Any]
Values = Mapping[str, Array]
"""Arrays by the names of a signature: inputs such as `x` or `params.hidden.w`; outputs, `value` if there is one."""
Blocks = Mapping[tuple[str, str], Array]
"""Arrays by two names: output and input of a Jacobian, row input and column input of a Hessian."""
Nth = Callable[[float, int], float]
"""The n-th derivative of a function of one variable at x; the value for n = 0."""

ALL_DTYPES = ("float64", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Scenario:
    """A function of the catalogue, some points, and the truth about it there.

    Attributes:
        function: the registered name.
        points: three different points of the same shapes, in float64, int64 and bool. Floating-point numbers have at
            most 8 significant bits, so that they are the same numbers in every dtype.
        value: the outputs by name.
        jacobian: by (output, input), of the output's shape followed by the input's, for every floating-point output and
            input.
        hessian: by (row input, column input), for all pairs of floating-point inputs; only for functions with exactly
            one floating-point output, which is a scalar.
        derivative: the n-th derivative of the outputs by name, for functions with exactly one floating-point scalar
            among their inputs.
        tolerance: multiplies the tolerance of a test.
        dtypes: those that the function can be computed in.
    """

    function: str
    points: tuple[Values, ...]
    value: Callable[[Values], Values]
    jacobian: Callable[[Values], Blocks]
    hessian: Callable[[Values], Blocks] | None = None
    derivative: Callable[[Values, int], Values] | None = None
    tolerance: float = 1.0
    dtypes: tuple[str, ...] = ALL_DTYPES

    def __post_init__(self) -> None:
        for point in self.points:
            for name, array in point.items():
                if array.dtype.kind == "f" and np.any(np.frexp(array)[0] * 256 % 1 != 0):
                    raise ValueError(f"{self.function}: {name} has more significant bits than bfloat16 holds: {array}")


def point(**values: ArrayLike) -> Values:
    """A point: lists of float, int or bool by input name."""
    return {name: np.asarray(value) for name, value in values.items()}


def arrays(values: Mapping[str, ArrayLike]) -> Values:
    """The same with every number made an array."""
    return {name: np.asarray(value) for name, value in values.items()}


def blocks(values: Mapping[tuple[str, str], ArrayLike]) -> Blocks:
    """The same with every number made an array."""
    return {names: np.asarray(value) for names, value in values.items()}


def of_one_variable(
    function: str,
    points: Sequence[float],
    nth: Nth,
    *,
    tolerance: float = 1.0,
    dtypes: tuple[str, ...] = ALL_DTYPES,
) -> Scenario:
    """A function of one real variable x, all of whose derivatives are known."""

    def at(values: Values, n: int) -> float:
        return nth(float(values["x"]), n)

    return Scenario(
        function,
        tuple(point(x=x) for x in points),
        value=lambda v: arrays({"value": at(v, 0)}),
        jacobian=lambda v: blocks({("value", "x"): at(v, 1)}),
        hessian=lambda v: blocks({("x", "x"): at(v, 2)}),
        derivative=lambda v, n: arrays({"value": at(v, n)}),
        tolerance=tolerance,
        dtypes=dtypes,
    )


def of_scalar_value(
    function: str,
    points: Sequence[Values],
    *,
    value: Callable[[Values], ArrayLike],
    gradient: Callable[[Values], Mapping[str, ArrayLike]],
    hessian: Callable[[Values], Mapping[tuple[str, str], ArrayLike]] | None = None,
    derivative: Callable[[Values, int], float] | None = None,
    tolerance: float = 1.0,
    dtypes: tuple[str, ...] = ALL_DTYPES,
) -> Scenario:
    """A function with one output, a scalar. The Hessian may name each pair of inputs in one order only.

    Without a Hessian, `gradient` must accept complex inputs: the Hessian is its complex-step derivative.
    """

    def all_blocks(values: Values) -> Blocks:
        if hessian is None:
            return complex_step(lambda v: arrays(gradient(v)), values)
        given = blocks(hessian(values))
        mirrored = {(col, row): _transposed(block, values[row].ndim) for (row, col), block in given.items()}
        return {**mirrored, **given}

    return Scenario(
        function,
        tuple(points),
        value=lambda v: arrays({"value": value(v)}),
        jacobian=lambda v: blocks({("value", name): array for name, array in gradient(v).items()}),
        hessian=all_blocks,
        derivative=None if derivative is None else lambda v, n: arrays({"value": derivative(v, n)}),
        tolerance=tolerance,
        dtypes=dtypes,
    )


def of_vector(
    function: str,
    points: Sequence[Sequence[float]],
    *,
    value: Callable[[Array], ArrayLike],
    gradient: Callable[[Array], ArrayLike],
    hessian: Callable[[Array], ArrayLike] | None = None,
    tolerance: float = 1.0,
    dtypes: tuple[str, ...] = ALL_DTYPES,
) -> Scenario:
    """A function of one vector x to a scalar. Without a Hessian, `gradient` must accept complex numbers."""
    return of_scalar_value(
        function,
        [point(x=np.asarray(x, dtype=np.float64)) for x in points],
        value=lambda v: value(v["x"]),
        gradient=lambda v: {"x": gradient(v["x"])},
        hessian=None if hessian is None else lambda v: {("x", "x"): hessian(v["x"])},
        tolerance=tolerance,
        dtypes=dtypes,
    )


def complex_step(gradient: Callable[[Values], Values], values: Values) -> Blocks:
    """The Hessian as the derivative of a gradient in closed form: Im g(x + ih)/h, exact to the last bits for tiny h.

    No difference is taken, so nothing cancels. The gradient must be analytic: no absolute values, no conjugates.
    """
    step = 1e-30
    floating = [name for name, array in values.items() if array.dtype.kind == "f"]
    found: dict[tuple[str, str], Array] = {}
    for column in floating:
        slices: dict[str, list[Array]] = {row: [] for row in floating}
        for index in np.ndindex(values[column].shape):
            moved = values[column].astype(np.complex128)
            moved[index] += 1j * step
            slope = gradient({**values, column: moved})
            for row in floating:
                slices[row].append(np.imag(slope[row]) / step)
        for row in floating:
            stacked = np.stack(slices[row], axis=-1)
            found[row, column] = stacked.reshape(values[row].shape + values[column].shape)
    return found


def numerically(expression: Callable[[Any], Any]) -> Nth:
    """All derivatives of an expression in mpmath, which differentiates numerically with as many digits as it takes."""

    def nth(x: float, n: int) -> float:
        with mpmath.workdps(50):
            return float(mpmath.diff(expression, mpmath.mpf(x), n))

    return nth


def polynomial_in_itself(function: Callable[[float], float], rate: Sequence[float]) -> Nth:
    """All derivatives of a function with f′ = rate(f), the coefficients from the constant up.

    If f⁽ⁿ⁾ = p(f), then f⁽ⁿ⁺¹⁾ = p′(f) rate(f).
    """

    def nth(x: float, n: int) -> float:
        p = np.polynomial.Polynomial([0.0, 1.0])
        for _ in range(n):
            p = p.deriv() * np.polynomial.Polynomial(rate)
        return float(p(function(x)))

    return nth


def falling(top: float, n: int) -> float:
    """top (top − 1) … (top − n + 1), the factor in front when a power is differentiated n times."""
    product = 1.0
    for k in range(n):
        product *= top - k
    return product


def _transposed(block: Array, row_axes: int) -> Array:
    axes = list(range(block.ndim))
    return block.transpose(axes[row_axes:] + axes[:row_axes])
