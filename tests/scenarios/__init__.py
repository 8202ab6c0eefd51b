"""Every function of the catalogue at three points, with its values and derivatives in closed form.

One table for all floors: operators, programs, the server and both clients are checked against it, one point at a time
and in batches. It is plain NumPy, written by hand from the textbook formulas; no JAX and no automatic differentiation.
"""

from . import activations, elementary, losses, matrix, models, multivariate, optimisation
from .scenario import ALL_DTYPES, Array, Blocks, Scenario, Values

__all__ = ["ALL_DTYPES", "SCENARIOS", "Array", "Blocks", "Scenario", "Values"]

SCENARIOS: tuple[Scenario, ...] = (
    *elementary.SCENARIOS,
    *activations.SCENARIOS,
    *multivariate.SCENARIOS,
    *matrix.SCENARIOS,
    *losses.SCENARIOS,
    *models.SCENARIOS,
    *optimisation.SCENARIOS,
)
