"""A registered function: plain JAX-traceable Python with a name, a version and a signature."""

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar, overload

import jax
import numpy as np

from nablad.errors import FunctionFailed
from nablad.v1 import function_pb2
from nablad_server.functions.annotations import signature_of
from nablad_server.functions.precision import precision_of
from nablad_server.functions.signature import ArraySpec, Signature, TensorSpec, describe_shape, flatten_outputs

NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,127}")
MARK = "__nablad_function__"
"""The attribute by which `@function` leaves its options on a function."""

MAX_KNOWN_SHAPES = 1024
"""For so many combinations of input shapes a function remembers its outputs."""

_F = TypeVar("_F", bound=Callable[..., Any])


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
    """

    name: str
    version: int
    call: Callable[..., Any]
    signature: Signature
    documentation: str = ""
    source: str = ""
    warm: tuple[Warm, ...] = ()
    _outputs: dict[tuple[ArraySpec, ...], tuple[tuple[str, ArraySpec], ...]] = field(
        default_factory=dict, init=False, repr=False
    )

    @property
    def reference(self) -> str:
        """`name@version`."""
        return f"{self.name}@{self.version}"

    def flat(self, leaves: Sequence[Any]) -> tuple[Any, ...]:
        """The function from input leaves to output leaves, to be traced by JAX."""
        # Plain Python numbers in a result are outputs too: they become arrays here.
        result = self.call(*self.signature.unflatten(leaves))
        return tuple(jax.numpy.asarray(leaf) for _, leaf in flatten_outputs(result))

    def outputs_at(self, inputs: tuple[ArraySpec, ...]) -> tuple[tuple[str, ArraySpec], ...]:
        """The names, shapes and dtypes of the outputs for given inputs, without running anything.

        Raises:
            FunctionFailed: the function raised an error while it was traced.
        """
        found = self._outputs.get(inputs)
        if found is None:
            if len(self._outputs) >= MAX_KNOWN_SHAPES:
                self._outputs.clear()
            found = self._outputs[inputs] = self._traced_outputs(inputs)
        return found

    def _traced_outputs(self, inputs: tuple[ArraySpec, ...]) -> tuple[tuple[str, ArraySpec], ...]:
        names: list[str] = []

        def traced(*leaves: Any) -> tuple[Any, ...]:
            result = self.call(*self.signature.unflatten(leaves))
            pairs = flatten_outputs(result)
            names.extend(name for name, _ in pairs)
            return tuple(jax.numpy.asarray(leaf) for _, leaf in pairs)

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

    def operators(self) -> tuple[function_pb2.Operator.ValueType, ...]:
        """The operators that the signature allows."""
        inputs = [spec for spec in self.signature.inputs if spec.differentiable]
        outputs = self.signature.outputs
        smooth = outputs is None or any(spec.differentiable for spec in outputs)
        scalar = outputs is None or any(spec.differentiable and spec.scalar for spec in outputs)
        allowed = [function_pb2.OPERATOR_EVALUATE]
        if inputs and scalar:
            allowed += [
                function_pb2.OPERATOR_GRADIENT,
                function_pb2.OPERATOR_HESSIAN,
                function_pb2.OPERATOR_HVP,
                function_pb2.OPERATOR_DIRECTIONAL_DERIVATIVE,
            ]
        if inputs and smooth:
            allowed += [function_pb2.OPERATOR_JACOBIAN, function_pb2.OPERATOR_JVP, function_pb2.OPERATOR_VJP]
            if any(spec.scalar for spec in inputs):
                allowed.append(function_pb2.OPERATOR_DERIVATIVE)
        return tuple(sorted(allowed))


def function_failed(reference: str, inputs: Sequence[ArraySpec], error: Exception) -> FunctionFailed:
    """The error for a function that raised one of its own; only the first lines of its text are passed on."""
    text = "\n".join(str(error).strip().splitlines()[:4])
    given = ", ".join(str(spec) for spec in inputs)
    return FunctionFailed(
        f"{reference} raised {type(error).__name__} for inputs ({given}): {text}",
        metadata={"function": reference, "exception": type(error).__name__},
    )


@dataclass(frozen=True)
class _Options:
    name: str | None
    version: int
    inputs: Mapping[str, Any] | None
    outputs: Any
    sizes: Mapping[str, int]
    warm: tuple[Warm, ...]


@overload
def function(call: _F, /) -> _F: ...
@overload
def function(
    *,
    name: str | None = None,
    version: int = 1,
    inputs: Mapping[str, Any] | None = None,
    outputs: Any = None,
    sizes: Mapping[str, int] | None = None,
    warm: Sequence[Warm] = (),
) -> Callable[[_F], _F]: ...
def function(
    call: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    version: int = 1,
    inputs: Mapping[str, Any] | None = None,
    outputs: Any = None,
    sizes: Mapping[str, int] | None = None,
    warm: Sequence[Warm] = (),
) -> Any:
    """Marks a function for registration; it stays an ordinary function.

    Args:
        call: the function, when used without parentheses.
        name: instead of the function's own name.
        version: 1, 2, …; raise it when the function changes.
        inputs: for some or all parameters, a specification instead of the annotation: a jaxtyping array, or a tree of
            them, such as `{"params": {"w": Float[Array, "d h"]}}`.
        outputs: likewise for the result.
        sizes: example sizes for the symbols, for functions that cannot be traced at small arbitrary ones.
        warm: programs to compile before the server says that it is ready.
    """
    options = _Options(name, version, inputs, outputs, dict(sizes or {}), tuple(warm))

    def mark(marked: Callable[..., Any]) -> Callable[..., Any]:
        setattr(marked, MARK, options)
        return marked

    return mark if call is None else mark(call)


def build(call: Callable[..., Any], source: str) -> Function:
    """Makes a Function of a Python function, marked or not, and checks what can be checked without running it.

    Raises:
        ValueError: the name, version, annotations or result do not fit; the message names the function and the reason.
    """
    options: _Options = getattr(call, MARK, _Options(None, 1, None, None, {}, ()))
    name = str(options.name or getattr(call, "__name__", ""))
    try:
        if not NAME.fullmatch(name):
            raise ValueError("the name is not a letter followed by letters, digits, '_', '-' or '.'; give name=")
        if options.version < 1:
            raise ValueError(f"version={options.version}; expected 1 or more")
        signature = signature_of(call, options.inputs, options.outputs)
        built = Function(
            name, options.version, call, signature, inspect.getdoc(call) or "", source, options.warm
        )  # fmt: skip
        return replace(built, signature=replace(signature, outputs=_outputs(built, options.sizes)))
    except ValueError as error:
        raise ValueError(f"{source}: function {name or call!r}: {error}") from error
    except FunctionFailed as error:
        hint = "; if the sizes are the reason, give sizes={...} to @function" if signature.symbols else ""
        raise ValueError(f"{source}: {error.message}{hint}") from error


def _outputs(built: Function, sizes: Mapping[str, int]) -> tuple[TensorSpec, ...] | None:
    """The outputs' specifications, as seen by tracing at two sets of sizes; checked against the declared ones."""
    signature = built.signature
    declared = signature.outputs
    if not signature.closed:
        return declared
    unknown = set(sizes) - set(signature.symbols)
    if unknown:
        raise ValueError(f"sizes= names {sorted(unknown)}; the symbols are {list(signature.symbols)}")
    free = [symbol for symbol in signature.symbols if symbol not in sizes]
    # Different steps, so that an output of size n + 1 is not taken for one of the next symbol's size.
    trials = [
        {symbol: start + step * index for index, symbol in enumerate(free)} | dict(sizes)
        for start, step in ((3, 1), (13, 2))
    ]
    float64 = np.dtype(np.float64)
    seen = [built.outputs_at(signature.at(trial, float64)) for trial in trials]
    inferred = []
    for index, (name, first) in enumerate(seen[0]):
        second = seen[1][index][1]
        dims = zip(first.shape, second.shape, strict=True)
        shape = tuple(
            next((symbol for symbol in free if (trials[0][symbol], trials[1][symbol]) == pair), None)
            if pair[0] != pair[1] else next((symbol for symbol in sizes if sizes[symbol] == pair[0]), pair[0])
            for pair in dims
        )  # fmt: skip
        dtypes = _floats_of(signature) if first.differentiable else (first.dtype,)
        inferred.append(TensorSpec(dtypes, shape, name))
    if declared is None:
        return tuple(inferred)
    _agree(declared, seen[0], trials[0])
    return declared


def _floats_of(signature: Signature) -> tuple[np.dtype[Any], ...]:
    """The floating-point dtypes that results can have: those that inputs can have."""
    found = {dtype: None for spec in signature.inputs if spec.differentiable for dtype in spec.dtypes}
    return tuple(dtype for dtype in found if ArraySpec((), dtype).differentiable)


def _agree(declared: Sequence[TensorSpec], seen: Sequence[tuple[str, ArraySpec]], sizes: Mapping[str, int]) -> None:
    if [spec.name for spec in declared] != [name for name, _ in seen]:
        names = [name for name, _ in seen]
        raise ValueError(f"it is declared to return {[spec.name for spec in declared]} but returns {names}")
    for spec, (name, array) in zip(declared, seen, strict=True):
        shape = spec.shape
        bound = None if shape is None else [sizes.get(dim, dim) if isinstance(dim, str) else dim for dim in shape]
        fits = bound is None or (
            len(bound) == len(array.shape)
            and all(
                want in (None, have) or isinstance(want, str) for want, have in zip(bound, array.shape, strict=True)
            )
        )
        if not fits:
            raise ValueError(
                f"output {name!r} is declared as {describe_shape(shape)} but has the shape {list(array.shape)} "
                f"when {', '.join(f'{symbol}={size}' for symbol, size in sizes.items()) or 'traced'}"
            )
        if spec.dtypes and not any(jax.numpy.issubdtype(array.dtype, d) or array.dtype == d for d in spec.dtypes):
            raise ValueError(f"output {name!r} is declared as {spec} but is {array.dtype.name}")
