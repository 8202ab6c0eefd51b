"""What diagnostics return, and what a server tells of itself: reports, rather than derivatives."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from nablad.results import Execution
from nablad.tensors import Array


@dataclass(frozen=True, slots=True, eq=False)
class InputCheck:
    """How derivatives along the elements of one input, or along random directions, compare with differences.

    Attributes:
        name: the input; empty for directions.
        verdict: the worst of their verdicts; see GradientCheck.
        moved: how many elements, or directions, were moved at each point.
        relative_error: the largest among them.
        steps: of plain central differences, in proportion to the size of what moves, largest first.
        errors: the largest relative error with each step; NaN where it led out of the function's domain.
    """

    name: str
    verdict: str
    moved: int
    relative_error: float
    steps: Array
    errors: Array


@dataclass(frozen=True, slots=True)
class Comparison:
    """One derivative by both methods.

    Attributes:
        input: the input whose element was moved; empty for a direction.
        element: which element of it, row-major; or which direction.
        output: the output; of second derivatives the input whose partial derivative was differentiated.
        output_element: which element of it, row-major.
        point: at which point.
        automatic: by automatic differentiation.
        numerical: by differences, extrapolated to the step zero.
        uncertainty: what that may be wrong by.
        relative_error: how far apart they are over the larger of the two, or over what matters at that point.
        verdict: what it comes to; see GradientCheck.
    """

    input: str
    element: int
    output: str
    output_element: int
    point: int
    automatic: float
    numerical: float
    uncertainty: float
    relative_error: float
    verdict: str


@dataclass(frozen=True, slots=True, eq=False)
class DerivativeCheck:
    """The check of the derivatives of one order in one mode.

    Attributes:
        order: 1 or 2.
        mode: `forward`, `reverse` or `auto`.
        verdict: the worst of the verdicts; see GradientCheck.
        inputs: each input, moved element by element.
        directions: all of them, moved along random directions.
        worst: what agrees least, the worst first.
    """

    order: int
    mode: str
    verdict: str
    inputs: tuple[InputCheck, ...]
    directions: InputCheck
    worst: tuple[Comparison, ...]


@dataclass(frozen=True, slots=True, eq=False)
class GradientCheck:
    """Derivatives compared with differences of values over a sweep of steps.

    Attributes:
        function: the function and version, `name@version`.
        verdict: the worst of the verdicts: `pass`, they agree, and a fault would have shown; `noisy`, differences
            cannot tell; `kink`, there is no derivative at a point; `wrong`, differences agree among themselves and not
            with automatic differentiation.
        reason: why, in words.
        checks: each order and mode that was checked.
        inputs: where it was checked, given and sampled.
        evaluations: how often the function was evaluated, gradients included.
    """

    function: str
    verdict: str
    reason: str
    checks: tuple[DerivativeCheck, ...]
    inputs: Mapping[str, Array]
    evaluations: int

    @property
    def passed(self) -> bool:
        """Whether the verdict is `pass`."""
        return self.verdict == "pass"


@dataclass(frozen=True, slots=True)
class Curvature:
    """The Hessian of a scalar output at one point, over all elements of the `wrt` inputs, in numbers.

    An eigenvalue counts as zero up to n·ε times the largest in magnitude, of n rows and the unit of rounding ε.

    Attributes:
        function: the function and version, `name@version`.
        size: rows and columns.
        asymmetry: the largest |H − Hᵀ| over the largest |H|: 0, or rounding, unless a derivative rule is wrong.
        symmetric: whether that is no more than rounding.
        definiteness: `positive_definite`, `positive_semidefinite`, `zero`, `negative_semidefinite`,
            `negative_definite`, `indefinite`, or `undefined` if an element is NaN or infinite.
        smallest_eigenvalue: of (H + Hᵀ)/2; NaN if undefined.
        largest_eigenvalue: likewise.
        condition_number: the largest magnitude of an eigenvalue over the smallest; infinite if one counts as zero, NaN
            if undefined.
        negative: how many eigenvalues are negative.
        zero: how many count as zero.
        positive: how many are positive.
        gradient_norm: of the gradient: where it is 0, a definite Hessian makes the point an extremum.
        execution: how the answer came about.
    """

    function: str
    size: int
    asymmetry: float
    symmetric: bool
    definiteness: str
    smallest_eigenvalue: float
    largest_eigenvalue: float
    condition_number: float
    negative: int
    zero: int
    positive: int
    gradient_norm: float
    execution: Execution

    @property
    def convex(self) -> bool:
        """Whether no eigenvalue is negative: the function curves down in no direction there."""
        return self.definiteness in ("positive_definite", "positive_semidefinite", "zero")

    @property
    def concave(self) -> bool:
        """Whether no eigenvalue is positive: the function curves up in no direction there."""
        return self.definiteness in ("negative_definite", "negative_semidefinite", "zero")


@dataclass(frozen=True, slots=True)
class Layer:
    """One activation. Norms are root mean squares over elements and points.

    Attributes:
        activation: its kind, such as `tanh`.
        location: where it is computed, `file.py:12`; empty if not known.
        shape: of what it gives, for one point.
        output_norm: of what it gives.
        gradient_norm: of the gradient with respect to what it gives.
        ratio: that over the one of the layer after it; 1 for the last.
        saturated_share: the share of its units whose slope is less than a hundredth of the largest that it has.
    """

    activation: str
    location: str
    shape: tuple[int, ...]
    output_norm: float
    gradient_norm: float
    ratio: float
    saturated_share: float


@dataclass(frozen=True, slots=True)
class LayerReport:
    """What becomes of a gradient on its way back through the activations of a function.

    Attributes:
        function: the function and version, `name@version`.
        flow: `steady`, `vanishing`, `exploding` or `non_finite`.
        reason: why, in words.
        ratio: the norm of the gradient at the first layer over that at the last; NaN if both are 0.
        factor_per_layer: the factor by which it changes from a layer to the one before: the geometric mean.
        layers: the activations, in the order of computation.
        inputs: the root mean square of the gradient with respect to each input, by name.
    """

    function: str
    flow: str
    reason: str
    ratio: float
    factor_per_layer: float
    layers: tuple[Layer, ...]
    inputs: dict[str, float]


@dataclass(frozen=True, slots=True)
class Histogram:
    """How often values fell between bounds.

    Attributes:
        bounds: upper bounds of the buckets, increasing.
        counts: how many values fell into each; one more, for those above all bounds.
        sum: of all values.
    """

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    sum: float

    @property
    def count(self) -> int:
        """How many values there are."""
        return sum(self.counts)

    @property
    def mean(self) -> float:
        """Their mean; NaN of none."""
        return self.sum / self.count if self.count else math.nan

    def quantile(self, share: float) -> float:
        """What so large a share of the values, such as 0.99, is no greater than: interpolated within a bucket.

        NaN of no values; the last bound if it lies above that.
        """
        wanted, below, low = share * self.count, 0, 0.0
        if not self.count:
            return math.nan
        for bound, count in zip(self.bounds, self.counts, strict=False):
            if count and below + count >= wanted:
                return low + (bound - low) * max(0.0, wanted - below) / count
            below, low = below + count, bound
        return self.bounds[-1] if self.bounds else math.nan

    def since(self, earlier: "Histogram") -> "Histogram":
        """What was added since an earlier one; all of it if that has other bounds, or more values: a server was new."""
        counts = tuple(now - then for now, then in zip(self.counts, earlier.counts, strict=False))
        if self.bounds != earlier.bounds or min(counts, default=0) < 0:
            return self
        return Histogram(self.bounds, counts, self.sum - earlier.sum)


@dataclass(frozen=True, slots=True)
class OperatorStatistics:
    """How one operator of one function was used since the server started.

    Attributes:
        function: `name@version`; empty for requests that were refused as soon as they were read.
        operator: such as `gradient`.
        requests: answered with a result.
        points: in them.
        padding_points: computed only to fill a batch.
        batch_points: points in each execution, padding not counted.
        queue_seconds: of each request, from its decoding to the start of its execution.
        compile_seconds: of each request that waited for a compilation.
        compute_seconds: of each execution.
        encode_seconds: of each request, from the end of its execution until its response was with the transport.
        request_seconds: of each request, from its decoding until then.
        rejections: requests answered with an error, by reason.
    """

    function: str
    operator: str
    requests: int
    points: int
    padding_points: int
    batch_points: Histogram
    queue_seconds: Histogram
    compile_seconds: Histogram
    compute_seconds: Histogram
    encode_seconds: Histogram
    request_seconds: Histogram
    rejections: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Reload:
    """What came of a reload. Functions are named `name@version`.

    Attributes:
        added: functions that there were not.
        replaced: functions in whose place another one is now, under the same name and version.
        removed: functions that there are no more.
        refused: why nothing was changed, by file, module or function; empty if nothing kept it from that.
        seconds: how long it took.
    """

    added: tuple[str, ...]
    replaced: tuple[str, ...]
    removed: tuple[str, ...]
    refused: Mapping[str, str]
    seconds: float
