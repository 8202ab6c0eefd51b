"""A registered function: plain JAX-traceable Python with a name, a version and a signature."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from numpy.typing import ArrayLike

from nablad.errors import FunctionFailed
from nablad.v1 import function_pb2
from nablad_server.functions.black_box import BlackBox
from nablad_server.functions.foreign import Foreign, traced
from nablad_server.functions.precision import canonical, precision_of
from nablad_server.functions.signature import ArraySpec, Signature, flatten_outputs

NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,127}")
MAX_KNOWN_SHAPES = 1024
"""For so many combinations of input shapes a function remembers its outputs."""


DIFFERENCED_SCALARS = (function_pb2.OPERATOR_GRADIENT, function_pb2.OPERATOR_HESSIAN, function_pb2.OPERATOR_HVP)
"""The operators of scalar outputs that finite differences serve."""

Declare = Callable[[Mapping[str, int]], tuple[ArrayLike, ArrayLike]]
"""Gives the elements of a matrix of derivatives that can be other than zero, as their rows and their columns.

It is called with the size of each symbol of the signature. The rows of a Jacobian are the elements of all outputs that
can be differentiated, one output after the other as the signature has them, each in row-major order; the columns are
those of all such inputs. Of a Hessian both are the inputs; an element's mirror image need not be listed. The elements
may come in any order, and more than once.
"""


@dataclass(frozen=True)
class Warm:
    """A program to compile before the server says that it is ready.

    Attributes:
        operator: the RPC's name in lower case, such as `gradient` or `directional_derivative`.
        sizes: a size for each symbol of the signature.
        dtype: of the floating-point inputs, such as `float64`.
        points: how many points at once; each is rounded up to a bucket.
    """

    operator: str
    sizes: Mapping[str, int]
    dtype: str = "float64"
    points: Sequence[int] = (1,)


@dataclass(frozen=True, eq=False)
class Function:
    """A function that can be asked for.

    Compared by identity: two versions, or two loads of one file, are two functions.

    Attributes:
        name: letters, digits, `_`, `-` and `.`, at most 128.
        version: 1, 2, …
        call: the Python function; takes the arguments of the signature.
        signature: its inputs and outputs.
        documentation: its docstring.
        source: where it came from.
        warm: the programs to compile before readiness.
        sparsity: the patterns declared for `jacobian` and `hessian`; see `Declare`.
        black_box: what runs it if it is no JAX but plain Python; then it is not traced.
        sizes: example sizes for symbols, where it declares some.
        foreign: what runs and differentiates it if it is another engine's; to JAX it is one operation.
    """

    name: str
    version: int
    call: Callable[..., Any]
    signature: Signature
    documentation: str = ""
    source: str = ""
    warm: tuple[Warm, ...] = ()
    sparsity: Mapping[str, Declare] = field(default_factory=dict)
    black_box: BlackBox | None = None
    foreign: Foreign | None = None
    sizes: Mapping[str, int] = field(default_factory=dict)
    _outputs: dict[tuple[ArraySpec, ...], tuple[tuple[str, ArraySpec], ...]] = field(
        default_factory=dict, init=False, repr=False
    )

    @property
    def reference(self) -> str:
        """`name@version`."""
        return f"{self.name}@{self.version}"

    @property
    def engine(self) -> str:
        """What computes it: `jax`, `torch` or `python`."""
        if self.black_box is not None:
            return "python"
        return "jax" if self.foreign is None else self.foreign.engine

    def flat(self, leaves: Sequence[Any]) -> tuple[Any, ...]:
        """The function from input leaves to output leaves, to be traced by JAX."""
        specs = tuple(ArraySpec(leaf.shape, np.dtype(leaf.dtype)) for leaf in leaves)
        if self.black_box is not None:
            return self.black_box.traced(leaves, self.outputs_at(specs))
        if self.foreign is not None:
            return traced(self.foreign.call, leaves, [spec for _, spec in self.outputs_at(specs)])
        return tuple(leaf for _, leaf in self._results(leaves))

    def outputs_at(self, inputs: tuple[ArraySpec, ...]) -> tuple[tuple[str, ArraySpec], ...]:
        """The names, shapes and dtypes of the outputs for given inputs; without running anything, if it can be traced.

        Raises:
            FunctionFailed: the function raised an error while it was traced.
        """
        found = self._outputs.get(inputs)
        if found is None:
            if len(self._outputs) >= MAX_KNOWN_SHAPES:
                self._outputs.clear()
            if self.foreign is not None:
                outputs = self.foreign.outputs_at
            else:
                outputs = self._traced_outputs if self.black_box is None else self._declared_outputs
            found = self._outputs[inputs] = outputs(inputs)
        return found

    def _traced_outputs(self, inputs: tuple[ArraySpec, ...]) -> tuple[tuple[str, ArraySpec], ...]:
        names: list[str] = []

        def traced(*leaves: Any) -> tuple[Any, ...]:
            pairs = self._results(leaves)
            names.extend(name for name, _ in pairs)
            return tuple(leaf for _, leaf in pairs)

        with precision_of(inputs):
            try:
                shapes = jax.eval_shape(traced, *(jax.ShapeDtypeStruct(spec.shape, spec.dtype) for spec in inputs))
            except Exception as error:
                raise function_failed(self.reference, inputs, error) from error
        if not shapes:
            raise FunctionFailed(f"{self.reference} returns no array", metadata={"function": self.reference})
        return tuple(
            (name, ArraySpec(shape.shape, np.dtype(shape.dtype))) for name, shape in zip(names, shapes, strict=True)
        )

    def _declared_outputs(self, inputs: tuple[ArraySpec, ...]) -> tuple[tuple[str, ArraySpec], ...]:
        """Outputs as they are declared: floating-point ones as wide as the inputs, if they may be."""
        sizes = self.signature.sizes(inputs)
        floating = [spec.dtype for spec in inputs if spec.differentiable]
        widest = max(floating, key=lambda dtype: dtype.itemsize, default=np.dtype(np.float64))
        return tuple(
            (spec.name, ArraySpec(
                tuple(sizes[dim] if isinstance(dim, str) else int(dim or 0) for dim in spec.shape or ()),
                canonical(widest if widest in spec.dtypes else spec.dtypes[-1], inputs),
            ))
            for spec in self.signature.outputs or ()
        )  # fmt: skip

    def _results(self, leaves: Sequence[Any]) -> list[tuple[str, Any]]:
        """The output leaves with their names. Plain Python numbers in a result are outputs too, and become arrays."""
        result = self.call(*self.signature.unflatten(leaves))
        return [(name, jax.numpy.asarray(leaf)) for name, leaf in flatten_outputs(result)]

    def operators(self) -> tuple[function_pb2.Operator.ValueType, ...]:
        """The operators that the signature allows."""
        inputs = [spec for spec in self.signature.inputs if spec.differentiable]
        outputs = self.signature.outputs
        smooth = outputs is None or any(spec.differentiable for spec in outputs)
        scalar = outputs is None or any(spec.differentiable and spec.scalar for spec in outputs)
        allowed = [function_pb2.OPERATOR_EVALUATE]
        if self.black_box is not None:  # by finite differences
            first = (function_pb2.OPERATOR_JACOBIAN, function_pb2.OPERATOR_JVP) if inputs and smooth else ()
            second = DIFFERENCED_SCALARS if inputs and scalar else ()
            return tuple(sorted((*allowed, *first, *second)))
        if inputs and scalar:
            allowed += [
                function_pb2.OPERATOR_GRADIENT,
                function_pb2.OPERATOR_HESSIAN,
                function_pb2.OPERATOR_HVP,
                function_pb2.OPERATOR_DIRECTIONAL_DERIVATIVE,
                function_pb2.OPERATOR_LAPLACIAN,
            ]
        if inputs and smooth:
            allowed += [
                function_pb2.OPERATOR_JACOBIAN,
                function_pb2.OPERATOR_JVP,
                function_pb2.OPERATOR_VJP,
                function_pb2.OPERATOR_DERIVATIVE,
            ]
        return tuple(sorted(allowed))


def function_failed(reference: str, inputs: Sequence[ArraySpec], error: Exception) -> FunctionFailed:
    """The error for a function that raised one of its own; only the first lines of its text are passed on."""
    text = "\n".join(str(error).strip().splitlines()[:4])
    given = ", ".join(str(spec) for spec in inputs)
    return FunctionFailed(
        f"{reference} raised {type(error).__name__} for inputs ({given}): {text}",
        metadata={"function": reference, "exception": type(error).__name__},
    )
