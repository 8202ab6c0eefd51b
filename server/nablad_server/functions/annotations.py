"""Type annotations → tensor specifications: how a signature is read off a plain Python function."""

import dataclasses
import inspect
import sys
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import AbstractArray

from nablad.tensors import NUMBERS
from nablad_server.functions.signature import Dim, Signature, TensorSpec


def signature_of(call: Callable[..., Any], inputs: Mapping[str, Any] | None, outputs: Any) -> Signature:
    """The signature of a function, from its annotations and what explicit specifications say instead.

    Parameters with a default are not inputs: they stay what they are. A parameter without annotation takes one array of
    any dtype and shape.

    Args:
        call: the function.
        inputs: for some or all parameters, a tree of specifications (`spec`) that replaces the annotation.
        outputs: a tree of specifications for the result, instead of the return annotation; None to use that.

    Raises:
        ValueError: an annotation says nothing of shapes that the wire could carry; the message names it.
    """
    try:
        hints = typing.get_type_hints(call)
    except Exception as error:  # annotations that are text are code, run now
        raise ValueError(f"its annotations cannot be read: {type(error).__name__}: {error}") from error
    explicit = dict(inputs or {})
    arguments: dict[str, Any] = {}
    for parameter in inspect.signature(call).parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise ValueError(f"parameter *{parameter.name}: an input needs a name of its own; list the parameters")
        if parameter.default is not parameter.empty:
            continue
        annotation = explicit.pop(parameter.name, hints.get(parameter.name, Any))
        try:
            arguments[parameter.name] = spec(annotation)
        except ValueError as error:
            raise ValueError(f"parameter {parameter.name!r}: {error}") from error
    if explicit:
        raise ValueError(f"inputs= names {sorted(explicit)}, which are not parameters without a default")
    if not arguments:
        raise ValueError("it has no inputs: every parameter has a default")
    return Signature.of(arguments, _result(hints.get("return", Any)) if outputs is None else _declared(outputs))


def takes_tensors(call: Callable[..., Any], inputs: Mapping[str, Any] | None, outputs: Any) -> bool:
    """Whether some annotation, or what stands for one, is of PyTorch's tensors: then it is a function of PyTorch."""
    torch = sys.modules.get("torch")  # if it is not there, nothing is annotated with its tensors
    if torch is None:
        return False
    annotations = [*typing.get_type_hints(call).values(), *(inputs or {}).values(), outputs]
    return any(
        isinstance(array.array_type, type) and issubclass(array.array_type, torch.Tensor)
        for annotation in annotations
        for array in _arrays(annotation)
    )


def _arrays(annotation: Any) -> Iterator[type[AbstractArray]]:
    """The jaxtyping arrays in an annotation that `spec` understands."""
    if isinstance(annotation, type) and issubclass(annotation, AbstractArray):
        yield annotation
        return
    parts: Iterable[Any] = ()
    if typing.get_origin(annotation) is tuple:
        parts = typing.get_args(annotation)
    elif isinstance(annotation, Mapping):
        parts = annotation.values()
    elif isinstance(annotation, list | tuple):
        parts = annotation
    elif isinstance(annotation, type) and (hasattr(annotation, "_fields") or dataclasses.is_dataclass(annotation)):
        parts = typing.get_type_hints(annotation).values()
    for part in parts:
        yield from _arrays(part)


def _declared(outputs: Any) -> Any:
    try:
        return spec(outputs)
    except ValueError as error:
        raise ValueError(f"what it returns: {error}") from error


def _result(annotation: Any) -> Any:
    """What a return annotation says; None if it says nothing of shapes, as `jax.Array` does: tracing will tell."""
    try:
        return None if annotation is Any else spec(annotation)
    except ValueError:
        return None


def spec(annotation: Any) -> Any:
    """The tree of TensorSpec that an annotation, or a tree of annotations, describes.

    Understood: jaxtyping arrays; named tuples and dataclasses with such fields; `tuple[A, B]`; dictionaries, lists and
    tuples of these; TensorSpec; `Any` for one array of any dtype and shape.

    Raises:
        ValueError: anything else, with what to write instead.
    """
    if annotation is Any:
        return TensorSpec()
    if isinstance(annotation, TensorSpec):
        return annotation
    if isinstance(annotation, type) and issubclass(annotation, AbstractArray):
        return TensorSpec(_dtypes(annotation), _shape(annotation))
    if typing.get_origin(annotation) is tuple and Ellipsis not in typing.get_args(annotation):
        return tuple(spec(part) for part in typing.get_args(annotation))
    if isinstance(annotation, Mapping):
        return {key: spec(part) for key, part in annotation.items()}
    if isinstance(annotation, Sequence) and not isinstance(annotation, str):
        return type(annotation)(spec(part) for part in annotation)  # type: ignore[call-arg]  # a list or a tuple
    if isinstance(annotation, type) and (hasattr(annotation, "_fields") or dataclasses.is_dataclass(annotation)):
        return annotation(**{name: spec(part) for name, part in typing.get_type_hints(annotation).items()})
    raise ValueError(
        f"{annotation!r} does not say what arrays it holds; annotate it with jaxtyping, for example "
        "Float[Array, 'n 3'], or give a tree of such specifications in @function(inputs={...})"
    )


def _dtypes(annotation: type[AbstractArray]) -> tuple[np.dtype[Any], ...]:
    names: Any = annotation.dtypes
    if not isinstance(names, tuple | list):  # jaxtyping's Shaped: any dtype
        return ()
    known = {dtype.name: dtype for dtype in NUMBERS}
    dtypes = tuple(known[str(name)] for name in names if str(name) in known)
    if not dtypes:
        raise ValueError(f"{annotation.__name__}: none of the dtypes {list(names)} can be sent")
    return dtypes


def _shape(annotation: type[AbstractArray]) -> tuple[Dim, ...] | None:
    words = annotation.dim_str.split()
    if words == ["..."]:
        return None
    dims: list[Dim] = []
    for word in words:
        text = word.split("=", 1)[-1] if "=" in word and word.split("=", 1)[-1].isdigit() else word
        if text.isdigit():
            dims.append(int(text))
        elif text.isidentifier():
            dims.append(None if text.startswith("_") else text)
        else:
            raise ValueError(
                f"{annotation.__name__}: the size {word!r} is neither a number, a name nor _; "
                "give it a name of its own and check the relation in the function"
            )
    return tuple(dims)
