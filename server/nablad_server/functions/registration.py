"""Registration: from a plain Python function, marked or not, to a checked Function."""

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar, overload

import jax
import numpy as np

from nablad.errors import FunctionFailed
from nablad_server.functions.annotations import signature_of, takes_tensors
from nablad_server.functions.black_box import BlackBox
from nablad_server.functions.domains import with_domains
from nablad_server.functions.foreign import Foreign
from nablad_server.functions.function import NAME, Declare, Function, Warm
from nablad_server.functions.signature import ArraySpec, Domain, Signature, TensorSpec, describe_shape

MARK = "__nablad_function__"
"""The attribute by which `@function` leaves its options on a function."""

FILE_PREFIX = "nablad_functions_"
"""What the names of modules begin with that are files given by their path."""

ENGINES = ("jax", "torch")
"""What can compute and differentiate a function."""

_F = TypeVar("_F", bound=Callable[..., Any])


@dataclass(frozen=True)
class _Options:
    name: str | None
    version: int
    inputs: Mapping[str, Any] | None
    outputs: Any
    sizes: Mapping[str, int]
    warm: tuple[Warm, ...]
    sparsity: Mapping[str, Declare]
    differentiable: bool = True
    engine: str | None = None
    domain: Mapping[str, Any] = field(default_factory=dict)


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
    sparsity: Mapping[str, Declare] | None = None,
    differentiable: bool = True,
    engine: str | None = None,
    domain: Mapping[str, Domain] | None = None,
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
    sparsity: Mapping[str, Declare] | None = None,
    differentiable: bool = True,
    engine: str | None = None,
    domain: Mapping[str, Domain] | None = None,
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
        sparsity: for `"jacobian"`, `"hessian"` or both, what gives the elements that can be other than zero, where the
            function's operations do not show it: `{"hessian": lambda sizes: (rows, columns)}`, with `sizes["n"]` for
            the symbol n; see `Declare`. Results are wrong if an element is missing that is not zero.
        differentiable: False for a black box: plain Python or NumPy, which is run in a process of its own, and whose
            derivatives are finite differences. What it returns must be declared.
        engine: `"jax"`, or `"torch"` for a function of PyTorch's tensors; None: PyTorch if an annotation says so, as
            `Float[torch.Tensor, "n"]` does, else JAX.
        domain: where it is meant to be evaluated, for some or all inputs, by name: the lowest and the highest element,
            or a function of a `numpy.random.Generator` and a shape that gives an input. Its derivatives are checked at
            random points of it; other points are taken too.
    """
    options = _Options(
        name, version, inputs, outputs, dict(sizes or {}), tuple(warm), dict(sparsity or {}), differentiable,
        engine, dict(domain or {}),
    )  # fmt: skip

    def mark(marked: Callable[..., Any]) -> Callable[..., Any]:
        setattr(marked, MARK, options)
        return marked

    return mark if call is None else mark(call)


def build(call: Callable[..., Any], source: str) -> Function:
    """Makes a Function of a Python function, marked or not, and checks what can be checked without running it.

    Raises:
        ValueError: the name, version, annotations or result do not fit; the message names the function and the reason.
    """
    options: _Options = getattr(call, MARK, _Options(None, 1, None, None, {}, (), {}))
    name = str(options.name or getattr(call, "__name__", ""))
    try:
        if not NAME.fullmatch(name):
            raise ValueError("the name is not a letter followed by letters, digits, '_', '-' or '.'; give name=")
        if options.version < 1:
            raise ValueError(f"version={options.version}; expected 1 or more")
        if not set(options.sparsity) <= {"jacobian", "hessian"} or not all(map(callable, options.sparsity.values())):
            raise ValueError(
                f"sparsity={dict(options.sparsity)!r}; expected a function of the sizes for 'jacobian', 'hessian' or "
                "both"
            )
        signature = with_domains(signature_of(call, options.inputs, options.outputs), options.domain)
        engine = _engine(call, options)
        if not options.differentiable:
            return _black_box(name, call, options, signature, source)
        foreign = _torch(f"{name}@{options.version}", call, signature) if engine == "torch" else None
        built = Function(
            name, options.version, call, signature, inspect.getdoc(call) or "", source, options.warm, options.sparsity,
            foreign=foreign, sizes=options.sizes,
        )  # fmt: skip
        return replace(built, signature=replace(signature, outputs=_outputs(built, options.sizes)))
    except ValueError as error:
        raise ValueError(f"{source}: function {name or call!r}: {error}") from error
    except FunctionFailed as error:
        hint = "; if the sizes are the reason, give sizes={...} to @function" if signature.symbols else ""
        raise ValueError(f"{source}: {error.message}{hint}") from error


def signature_for(call: Callable[..., Any]) -> Signature:
    """The signature of a function, marked or not, without running it. Raises ValueError as `build` does."""
    options: _Options | None = getattr(call, MARK, None)
    return signature_of(call, options.inputs, options.outputs) if options else signature_of(call, None, None)


def _engine(call: Callable[..., Any], options: _Options) -> str:
    """What computes it. Raises ValueError if that is no engine, or none for a black box."""
    if options.engine is None:
        return "torch" if takes_tensors(call, options.inputs, options.outputs) else "jax"
    if options.engine not in ENGINES:
        raise ValueError(f"engine={options.engine!r}; expected {' or '.join(map(repr, ENGINES))}, or none to find out")
    if not options.differentiable:
        raise ValueError(
            f"engine={options.engine!r} differentiates it, and differentiable=False says not to; leave one of them out"
        )
    return options.engine


def _torch(reference: str, call: Callable[..., Any], signature: Signature) -> Foreign:
    try:
        from nablad_server.functions.torch_function import TorchFunction  # noqa: PLC0415 - PyTorch is an extra, and large
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise ValueError(
            "it is a function of PyTorch, which is not installed; install it with: pip install 'nablad[server,torch]'"
        ) from error
    return TorchFunction(reference, call, signature)


def _black_box(name: str, call: Callable[..., Any], options: _Options, signature: Signature, source: str) -> Function:
    """A function that is not traced. Raises ValueError if its outputs, or where it is to be found, are not known."""
    advice = "a black box is not traced: declare what it returns, by its annotation or outputs="
    if options.sparsity or options.sizes:
        raise ValueError("a black box has no use for sparsity= and sizes=, which tracing needs; leave them out")
    if not signature.outputs:
        raise ValueError(f"nothing says what it returns; {advice}")
    for spec in signature.outputs:
        known = all(isinstance(dim, int) or dim in signature.symbols for dim in spec.shape or ())
        if spec.shape is None or not known or not spec.dtypes:
            raise ValueError(
                f"output {spec.name!r} is declared as {spec}, whose shape and dtype do not follow from the inputs; "
                f"{advice}"
            )
    module = sys.modules.get(call.__module__)
    if module is None or getattr(module, call.__name__, None) is not call or module.__name__ == "__main__":
        raise ValueError("a black box is imported by a process of its own: define it at the top of a file or a module")
    given_by_path = module.__name__.startswith(FILE_PREFIX) and module.__file__ is not None
    target = str(Path(str(module.__file__)).resolve()) if given_by_path else module.__name__
    box = BlackBox(f"{name}@{options.version}", target, call.__name__, Path(str(module.__file__)))
    return Function(
        name, options.version, call, signature, inspect.getdoc(call) or "", f"{source} (black box)", options.warm,
        black_box=box,
    )  # fmt: skip


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
