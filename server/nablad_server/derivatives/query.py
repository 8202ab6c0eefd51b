"""A Query says everything that decides which program is compiled, and nothing else.

Calls whose queries are equal can run in one batch. The number of points is not part of it.
"""

import enum
import functools
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from nablad.v1 import differentiation_pb2, function_pb2
from nablad_server.derivatives.pattern import Pattern
from nablad_server.functions.function import Function
from nablad_server.functions.precision import is_wide
from nablad_server.functions.signature import ArraySpec

FIRST_ROW = ArraySpec((), np.dtype(np.int32))
SEED = ArraySpec((2,), np.dtype(np.uint32))
"""The two halves of a seed of 64 bits: programs in 32-bit mode have no such numbers."""

STEP = ArraySpec((), np.dtype(np.float64))
NARROW_STEP = ArraySpec((), np.dtype(np.float32))
"""The step of finite differences, in 64-bit and in 32-bit mode; 0 for the one that suits the scheme."""

BOUND = ArraySpec((), np.dtype(np.float64))
NARROW_BOUND = ArraySpec((), np.dtype(np.float32))
"""What a gradient is clipped to, in 64-bit and in 32-bit mode."""


class Differences(NamedTuple):
    """Finite differences in place of automatic differentiation.

    Attributes:
        scheme: which values are compared; never DIFFERENCE_SCHEME_UNSPECIFIED.
        absolute: whether the step is taken as it is, not in proportion to what moves.
    """

    scheme: differentiation_pb2.DifferenceScheme.ValueType
    absolute: bool = False


class Clip(enum.Enum):
    """What of a gradient is kept within a bound."""

    GLOBAL_NORM = enum.auto()
    VALUE = enum.auto()


@dataclass(frozen=True)
class Query:
    """What to compute at each point.

    Inputs and outputs are referred to by their index in the signature.

    Attributes:
        function: the function itself, so that a query outlives a reload that replaces it.
        operator: which derivative.
        inputs: shape and dtype of every input leaf, for one point.
        outputs: the outputs that are returned (Evaluate) or differentiated.
        wrt: the inputs to differentiate with respect to.
        columns: Hessian: the inputs of the columns.
        vectors: the inputs that have a tangent, or the outputs that have a cotangent.
        stack: how many vectors are stacked; None for one without a stack axis.
        mode: a nablad.v1.Mode; never MODE_UNSPECIFIED.
        diagonal: Hessian: the diagonal alone.
        order: Derivative: the highest order.
        samples: diagonal of a Hessian, Laplacian: an estimate from so many random vectors; 0: exact.
        block_rows: Jacobian, Hessian: so many rows of the matrix over all rows and columns, beginning with a row that
            is given with the point; 0: all of it.
        differences: Gradient, Jacobian, Hessian, Hvp, Jvp: by finite differences, with a step that is given with the
            point; None: by automatic differentiation.
        clipping: Gradient: what is kept within a bound, which is given with the point; None: nothing.
        sparse: Jacobian, Hessian: only the elements that `pattern` keeps, of the one matrix over all rows and columns.
        pattern: which elements can be other than zero; None if that is not known, or of no use. The exact diagonal of
            a Hessian and its trace take fewer products with one.
        shared: for every array (inputs, vectors, extras): one for all points instead of one for each. Calls that share
            some cannot ride with others.
    """

    function: Function
    operator: function_pb2.Operator.ValueType
    inputs: tuple[ArraySpec, ...]
    outputs: tuple[int, ...]
    wrt: tuple[int, ...] = ()
    columns: tuple[int, ...] = ()
    vectors: tuple[int, ...] = ()
    stack: int | None = None
    mode: differentiation_pb2.Mode.ValueType = differentiation_pb2.MODE_AUTO
    diagonal: bool = False
    order: int = 0
    samples: int = 0
    block_rows: int = 0
    differences: Differences | None = None
    clipping: Clip | None = None
    sparse: bool = False
    pattern: Pattern | None = None
    shared: tuple[bool, ...] = ()

    def __post_init__(self) -> None:
        if not self.shared:
            count = len(self.inputs) + len(self.vectors) + len(self.extras)
            object.__setattr__(self, "shared", (False,) * count)

    def __hash__(self) -> int:
        return self._hash

    @functools.cached_property
    def _hash(self) -> int:
        # A query is hashed several times on its way and holds nested tuples: computed once.
        return hash(
            (id(self.function), self.operator, self.inputs, self.outputs, self.wrt, self.columns, self.vectors,
             self.stack, self.mode, self.diagonal, self.order, self.samples, self.block_rows, self.differences,
             self.clipping, self.sparse, self.pattern, self.shared)
        )  # fmt: skip

    @functools.cached_property
    def output_specs(self) -> tuple[ArraySpec, ...]:
        """Shape and dtype of every output of the function, chosen or not."""
        return tuple(spec for _, spec in self.function.outputs_at(self.inputs))

    @property
    def extras(self) -> tuple[ArraySpec, ...]:
        """What a program takes besides inputs and vectors: the first row of a block, a seed, a bound and a step."""
        if self.block_rows:
            return (FIRST_ROW,)
        if self.samples:
            return (SEED,)
        bound = () if self.clipping is None else (BOUND if self.wide else NARROW_BOUND,)
        return bound if self.differences is None else (*bound, STEP if self.wide else NARROW_STEP)

    @functools.cached_property
    def arrays(self) -> tuple[ArraySpec, ...]:
        """Shape and dtype of every array that a program takes, for one point: inputs, vectors, extras."""
        like = self.output_specs if self.operator == function_pb2.OPERATOR_VJP else self.inputs
        stack = () if self.stack is None else (self.stack,)
        vectors = tuple(ArraySpec(stack + like[index].shape, like[index].dtype) for index in self.vectors)
        return self.inputs + vectors + self.extras

    @functools.cached_property
    def matrix_shape(self) -> tuple[int, int]:
        """Jacobian, Hessian: rows and columns of the matrix over all elements of what is differentiated."""
        rows = self.output_specs if self.operator == function_pb2.OPERATOR_JACOBIAN else self.inputs
        across = self.columns or self.wrt
        chosen = self.outputs if self.operator == function_pb2.OPERATOR_JACOBIAN else self.wrt
        return sum(rows[index].size for index in chosen), sum(self.inputs[index].size for index in across)

    @functools.cached_property
    def argument_bytes(self) -> int:
        """The bytes of the arrays that each point has of its own."""
        pairs = zip(self.arrays, self.shared, strict=True)
        return sum(spec.bytes for spec, common in pairs if not common)

    @functools.cached_property
    def wide(self) -> bool:
        """Whether the program runs in 64-bit mode."""
        return is_wide(self.inputs)

    def __str__(self) -> str:
        operator = function_pb2.Operator.Name(self.operator).removeprefix("OPERATOR_").lower()
        return f"{operator} of {self.function.reference}({', '.join(str(spec) for spec in self.inputs)})"
