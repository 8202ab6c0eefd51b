"""Fits a problem with derivatives from a server or from this process, and says how many digits are right.

Both go the same way, so that what differs is only where values and Jacobians come from.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
import numpy as np
from scipy.linalg import solve_triangular
from scipy.optimize import least_squares

import nablad
from nist_strd import functions
from nist_strd.problems import Floats, Problem

Model: TypeAlias = Callable[[Floats, Floats], tuple[Floats, Floats]]
"""From parameters and predictor to the model's values [observations] and Jacobian [observations, parameters]."""

PARAMETER_DIGITS = 6.0
"""So many digits of each certified parameter make a fit a success, with `deviation_digits` of their deviations."""

_DEVIATION_DIGITS = 4.0
_MOST_DIGITS = 11.0
"""More are not certified."""

_TOLERANCE = 1e-15
_MOST_EVALUATIONS = 3000
_MOST_REFINEMENTS = 50


def deviation_digits(name: str) -> float:
    """How many digits of each certified standard deviation a fit of this problem must reach.

    Lanczos1 is exact to 14 decimals: its residuals, about 1e-13, are differences of numbers near 1 whose own spacing
    is 2e-16. They, and the standard deviations that they are the measure of, have two to three digits in float64.
    """
    return 2.0 if name == "Lanczos1" else _DEVIATION_DIGITS


@dataclass(frozen=True)
class Fit:
    """What a fit found.

    Attributes:
        parameters: the estimates.
        deviations: their standard deviations; NaN where the Jacobian at the solution does not determine them.
        rss: the residual sum of squares.
        calls: how often values and Jacobian were asked for.
    """

    parameters: Floats
    deviations: Floats
    rss: float
    calls: int


@dataclass(frozen=True)
class Digits:
    """The number of right digits of a fit, at its worst parameter, from 0 to 11."""

    parameters: float
    deviations: float
    enough: bool


def remote(client: nablad.Client, name: str) -> Model:
    """The model of this name on a server: one call for each point."""
    function = client.function(name)

    def linearised(b: Floats, x: Floats) -> tuple[Floats, Floats]:
        answer = function.jacobian(b, x, wrt="b")
        return answer.value, answer.jacobian

    return linearised


def in_process(name: str) -> Model:
    """The same model, compiled in this process."""
    call: Callable[[Any, Any], Any] = getattr(functions, name)
    compiled = jax.jit(lambda b, x: (call(b, x), jax.jacfwd(call)(b, x)))

    def linearised(b: Floats, x: Floats) -> tuple[Floats, Floats]:
        with jax.enable_x64(True):
            values, jacobian = compiled(b, x)
        return np.asarray(values), np.asarray(jacobian)

    return linearised


def fit(problem: Problem, start: int, model: Model) -> Fit:
    """Least squares from start 1 or 2.

    SciPy's trust region method with steps scaled by the Jacobian's columns goes all the way from all 54 starts; of its
    other methods, Levenberg–Marquardt ends at a local minimum from BoxBOD's first start, and dogbox from eight. Each
    of them stops once the sum of squares no longer falls, which for ENSO and Lanczos3 is after little more than six
    digits: an error δ of the parameters shows in the sum as δ². So a few Gauss–Newton steps follow, which go by the
    gradient instead (see `_refined`).
    """
    point = _Point(problem, model)
    # A step that overshoots may give infinite or NaN residuals. SciPy then shortens it, but does compute with them.
    with np.errstate(over="ignore", invalid="ignore"):
        found = least_squares(
            point.residuals, problem.starts[start - 1], point.jacobian, method="trf", x_scale="jac",
            ftol=_TOLERANCE, xtol=_TOLERANCE, gtol=_TOLERANCE, max_nfev=_MOST_EVALUATIONS,
        )  # fmt: skip
        b = _refined(point, found.x)
        residuals = point.residuals(b)
        rss = float(residuals @ residuals)
        deviations = standard_deviations(point.jacobian(b), rss / problem.degrees_of_freedom)
    return Fit(b, deviations, rss, point.calls)


def digits(problem: Problem, fitted: Fit) -> Digits:
    """How well a fit agrees with what NIST certifies."""
    parameters = right_digits(fitted.parameters, problem.parameters)
    deviations = right_digits(fitted.deviations, problem.deviations)
    enough = parameters >= PARAMETER_DIGITS and deviations >= deviation_digits(problem.name)
    return Digits(parameters, deviations, enough)


def right_digits(estimates: Floats, certified: Floats) -> float:
    """−log10 of the largest relative error, between 0 and 11; 0 if an estimate is not finite."""
    error = float(np.max(np.abs(estimates - certified) / np.abs(certified)))
    if not np.isfinite(error):
        return 0.0
    return float(np.clip(-np.log10(max(error, 10.0**-_MOST_DIGITS)), 0.0, _MOST_DIGITS))


class _Point:
    """The last point asked about: SciPy wants residuals and Jacobian there one by one, and one call gives both."""

    def __init__(self, problem: Problem, model: Model) -> None:
        self._problem = problem
        self._model = model
        self._at: Floats | None = None
        self._residuals = self._jacobian = problem.y
        self.calls = 0

    def residuals(self, b: Floats) -> Floats:
        """[observations]."""
        self._go(b)
        return self._residuals

    def jacobian(self, b: Floats) -> Floats:
        """[observations, parameters]."""
        self._go(b)
        return self._jacobian

    def _go(self, b: Floats) -> None:
        if self._at is None or not np.array_equal(self._at, b):
            values, self._jacobian = self._model(b, self._problem.x)
            self._residuals = values - self._problem.y
            self._at = b.copy()
            self.calls += 1


def standard_deviations(jacobian: Floats, variance: float) -> Floats:
    """The square roots of the diagonal of variance (JᵀJ)⁻¹; NaN if J does not have full rank.

    JᵀJ is never formed, as its condition is the square of J's, up to 1e18 here: its inverse would cost Bennett5 and
    the Lanczos problems two more digits, its pseudo-inverse Hahn1, Nelson and others all of them. With J = Q R it is
    R⁻¹ R⁻ᵀ, whose diagonal consists of the squared lengths of the rows of R⁻¹. The columns of J differ in length by up
    to eight orders of magnitude, and need no scaling to be alike: a factor of a column is a factor of all that is
    computed from it, rounding errors included.
    """
    _, r = np.linalg.qr(jacobian)
    if _singular(r):
        return np.full(len(r), np.nan)
    rows: Floats = np.linalg.norm(solve_triangular(r, np.eye(len(r))), axis=1)
    return rows * float(np.sqrt(variance))


def _refined(point: _Point, b: Floats) -> Floats:
    """The best of the points that Gauss–Newton steps lead to, as long as each is better than the one before.

    Better by the length of the residuals' projection onto the tangent space (Bates and Watts' relative offset without
    its divisor): 0 at a solution, and proportional to the distance from it, where the sum of squares rises with the
    distance's square.
    """
    best, least = b, np.inf
    for _ in range(_MOST_REFINEMENTS):
        q, r = np.linalg.qr(point.jacobian(b))
        projection = q.T @ point.residuals(b)
        offset = float(np.linalg.norm(projection))
        if not offset < least:
            break
        best, least = b, offset
        if _singular(r):
            break
        b = b - solve_triangular(r, projection)
    return best


def _singular(r: Floats) -> bool:
    return not np.all(np.isfinite(r)) or bool(np.any(np.diag(r) == 0))
