"""What calls return. Arrays are numpy's; where a function takes or gives nested structures, so do the results.

A result with respect to one argument is bare: an array, or the argument's own structure with an array for each leaf.
With respect to several it is a dictionary by argument. A value is an array if the function returns one array, else the
structure that the function returns, in dictionaries and lists.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

from nablad.sparse import SparseMatrix
from nablad.tensors import Array


@dataclass(frozen=True, slots=True)
class Execution:
    """How an answer came about.

    Attributes:
        function: the function and version that answered, `name@version`.
        batch_points: how many points, other callers' included, ran together with this call's.
        queue_seconds: from the arrival of the call to the start of its execution, compilation included.
        compile_seconds: of the compilation that the call waited for; 0 if the program was ready.
        compute_seconds: of the execution, shared with whoever rode in it.
    """

    function: str
    batch_points: int
    queue_seconds: float
    compile_seconds: float
    compute_seconds: float


@dataclass(frozen=True, slots=True)
class Result:
    """What all results have.

    Attributes:
        value: the value of what was differentiated, [points?] + output shape.
        non_finite: whether some element of the answer is NaN or infinite.
        execution: how the answer came about.
    """

    value: Any
    non_finite: bool
    execution: Execution


@dataclass(frozen=True, slots=True)
class Evaluation(Result):
    """The function itself."""


@dataclass(frozen=True, slots=True)
class NonFinite:
    """An element that is NaN or infinite.

    Attributes:
        field: the field of the response that it is in, such as `values[0]` or `gradients[1]`.
        name: the output or the input that the tensor there is named by.
        index: the element, an index for each axis, that of the point included.
        among: of an answer about many points the field, the name and the array of all that it is the first of.
    """

    field: str
    name: str
    index: tuple[int, ...]
    among: tuple[tuple[str, str, Array], ...] = dataclasses.field(default=(), repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Gradient(Result):
    """∇f.

    Attributes:
        gradient: [points?] + input shape; within the bound of a call with `clip_norm` or `clip_value`.
        errors: of finite differences estimates of the errors of ∇f before clipping, in the form of `gradient`; None of
            others.
        norm: the L2 norm of ∇f over all inputs, before clipping: a number, or for many points an array of them.
        norms: those of the single inputs, in the form of `gradient`.
        first_non_finite: the first element of `value` or else of `gradient` that is NaN or infinite; None if all are
            finite.
    """

    gradient: Any
    errors: Any = None
    norm: Any = None
    norms: Any = None
    first_non_finite: NonFinite | None = None


@dataclass(frozen=True, slots=True)
class Jacobian(Result):
    """∂f/∂x.

    Attributes:
        jacobian: [points?] + output shape + input shape; for several outputs nested by output, then input. Of a call
            with `sparse=True` one `scipy.sparse.csr_array` over all outputs and inputs, or a list of them for many
            points; without SciPy the same as `sparse`.
        sparse: the matrix of a call with `sparse=True`; None of others.
        errors: of finite differences estimates of the errors of `jacobian`, in the same form; None of others.
    """

    jacobian: Any
    sparse: SparseMatrix | None = None
    errors: Any = None


@dataclass(frozen=True, slots=True)
class Hessian(Result):
    """∂²f/∂x².

    Attributes:
        gradient: [points?] + row input shape.
        hessian: [points?] + row input shape + column input shape, nested by row, then column; for a diagonal
            [points?] + input shape. Of a call with `sparse=True` one `scipy.sparse.csr_array` over all inputs, or a
            list of them for many points; without SciPy the same as `sparse`.
        standard_error: of an estimated diagonal, in the same form; None if it is exact.
        sparse: the matrix of a call with `sparse=True`; None of others.
        errors: of finite differences estimates of the errors of `hessian`, in the same form; None of others.
    """

    gradient: Any
    hessian: Any
    standard_error: Any = None
    sparse: SparseMatrix | None = None
    errors: Any = None


@dataclass(frozen=True, slots=True)
class Hvp(Result):
    """Hessian times tangent.

    Attributes:
        gradient: [points?] + input shape.
        hvp: [points?] + [k?] + input shape.
        errors: of finite differences estimates of the errors of `hvp`, in the same form; None of others.
    """

    gradient: Any
    hvp: Any
    errors: Any = None


@dataclass(frozen=True, slots=True)
class Jvp(Result):
    """Jacobian times tangent.

    Attributes:
        jvp: [points?] + [k?] + output shape.
        errors: of finite differences estimates of the errors of `jvp`, in the same form; None of others.
    """

    jvp: Any
    errors: Any = None


@dataclass(frozen=True, slots=True)
class Vjp(Result):
    """Cotangent times Jacobian. `vjp`: [points?] + [k?] + input shape."""

    vjp: Any


@dataclass(frozen=True, slots=True)
class DirectionalDerivative(Result):
    """The rate of change along a unit direction.

    Attributes:
        derivative: ∇f · u, [points?].
        steepest_ascent: ∇f / ‖∇f‖, [points?] + input shape; zero where the gradient is.
        max_rate: ‖∇f‖, [points?].
    """

    derivative: Array
    steepest_ascent: Any
    max_rate: Array


@dataclass(frozen=True, slots=True)
class Derivative(Result):
    """Derivatives of orders 1 to n. `derivatives`: [points?] + [n] + output shape; index k holds order k + 1."""

    derivatives: Any


@dataclass(frozen=True, slots=True)
class Laplacian(Result):
    """Δf, the trace of the Hessian.

    Attributes:
        gradient: [points?] + input shape.
        laplacian: [points?].
        standard_error: of an estimate, [points?]; None if it is exact.
    """

    gradient: Any
    laplacian: Array
    standard_error: Array | None = None


@dataclass(frozen=True, slots=True)
class RowBlock:
    """Some rows of a matrix, one after the other.

    Attributes:
        first_row: the number of the first of them in the matrix.
        array: the elements, [rows, columns].
        non_finite: whether an element is NaN or infinite.
    """

    first_row: int
    array: Array
    non_finite: bool


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """What one input takes or one output gives, for one point.

    Attributes:
        name: its name on the wire, such as `x` or `params.hidden.w`.
        dtypes: the dtypes accepted, by numpy's names; empty for any.
        shape: for each axis a size, a symbol, or None for any size; None for any shape.
        differentiable: whether it can be differentiated.
        domain: the lowest and the highest element that it is meant to have; None if that is not declared.
    """

    name: str
    dtypes: tuple[str, ...]
    shape: tuple[int | str | None, ...] | None
    differentiable: bool
    domain: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class FunctionInfo:
    """A function, as the catalogue describes it.

    Attributes:
        name: without the version.
        version: 1, 2, …
        summary: the first sentence of the documentation.
        documentation: all of it; empty in listings.
        source: where the server has it from.
        inputs: in the order of the function's arguments.
        outputs: empty if they depend on what the function is given.
        operators: what can be asked: `gradient`, `hessian`, …
        engine: what computes it: `jax`, `torch`, or `python` for a black box.
    """

    name: str
    version: int
    summary: str
    documentation: str
    source: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    operators: tuple[str, ...]
    engine: str = "jax"

    @property
    def reference(self) -> str:
        """`name@version`."""
        return f"{self.name}@{self.version}"


@dataclass(frozen=True, slots=True)
class Cost:
    """What one execution takes.

    Attributes:
        flops: floating-point operations, as the compiler counts them: the body of a loop once.
        accessed_bytes: bytes read and written, likewise.
        seconds: measured at a point of all ones; 0 if the function cannot be run there.
        memory_bytes: arguments, results and what lies between.
    """

    flops: float
    accessed_bytes: float
    seconds: float
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class ProgramInfo:
    """One compiled program.

    Attributes:
        points: how many points it takes at once.
        strategy: how it goes about them: `single`, `vmap` (all at once) or `loop` (one after the other).
        cost: of one execution.
        compile_seconds: what compiling it took.
    """

    points: int
    strategy: str
    cost: Cost
    compile_seconds: float


@dataclass(frozen=True, slots=True)
class Explanation:
    """How a call would be answered.

    Attributes:
        function: the function and version, `name@version`.
        operator: what is asked of it.
        mode: how derivatives are accumulated, such as `forward over reverse`.
        reason: why so.
        function_cost: of the function itself, at one point.
        cost: of what was asked for, at one point.
        result_bytes: bytes of the result for one point.
        programs: those ready for different numbers of points.
        nonzeros: of a sparse matrix, how many elements are kept; None of others.
        colors: likewise, from how many products.
    """

    function: str
    operator: str
    mode: str
    reason: str
    function_cost: Cost
    cost: Cost
    result_bytes: int
    programs: tuple[ProgramInfo, ...]
    nonzeros: int | None = None
    colors: int | None = None

    @property
    def flops_ratio(self) -> float:
        """Floating-point operations of the derivative over those of the function; NaN if those are not known."""
        return self.cost.flops / self.function_cost.flops if self.function_cost.flops else float("nan")

    @property
    def seconds_ratio(self) -> float:
        """Time of the derivative over that of the function; NaN if that is not known."""
        return self.cost.seconds / self.function_cost.seconds if self.function_cost.seconds else float("nan")
