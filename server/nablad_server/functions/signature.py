"""What a function takes and gives, and whether given tensors fit: the one place that compares shapes and dtypes."""

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np

from nablad import trees
from nablad.errors import WrongDtype, WrongShape
from nablad.tensors import NUMBERS

Dim = int | str | None
"""The size of one axis: fixed, a symbol shared across the signature, or anything."""

Domain = tuple[float, float] | Callable[[np.random.Generator, tuple[int, ...]], Any]
"""Where a function is meant to be evaluated: the lowest and the highest element of an input, or what gives random
elements of a shape."""

SINGLE_OUTPUT = "value"
"""The name of the output of a function that returns one array."""


@dataclass(frozen=True)
class ArraySpec:
    """The shape and dtype of one concrete array."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def size(self) -> int:
        """How many elements it has."""
        return math.prod(self.shape)

    @functools.cached_property
    def bytes(self) -> int:
        """How many bytes it has."""
        return self.size * self.dtype.itemsize

    @property
    def differentiable(self) -> bool:
        """Whether its dtype is a floating-point one: complex numbers and integers are carried only."""
        return bool(jnp.issubdtype(self.dtype, jnp.floating))

    @property
    def wide(self) -> bool:
        """Whether its dtype is a floating-point or complex one that only a 64-bit program can hold."""
        return self.dtype in (np.dtype(np.float64), np.dtype(np.complex128))

    def __str__(self) -> str:
        return f"{self.dtype.name}{list(self.shape)}"


@dataclass(frozen=True)
class TensorSpec:
    """What one input takes or one output gives, for one point.

    Attributes:
        dtypes: the dtypes accepted; empty for any.
        shape: the axes; None for any number of axes.
        name: the path of the leaf, filled in by the signature.
        domain: where the function is meant to be evaluated; None if that is not declared.
    """

    dtypes: tuple[np.dtype[Any], ...] = ()
    shape: tuple[Dim, ...] | None = None
    name: str = field(default="", compare=False)
    domain: Domain | None = field(default=None, compare=False)

    @property
    def differentiable(self) -> bool:
        """Whether some accepted dtype is a floating-point one."""
        return not self.dtypes or any(jnp.issubdtype(dtype, jnp.floating) for dtype in self.dtypes)

    @property
    def scalar(self) -> bool:
        """Whether it can be a scalar."""
        return self.shape in (None, ())

    def __str__(self) -> str:
        names = [dtype.name for dtype in self.dtypes]
        floats = {"float64", "float32", "bfloat16", "float16"}
        kind = "any dtype" if not names else "float" if set(names) == floats else "|".join(names)
        return f"{kind}{describe_shape(self.shape)}"


def describe_shape(shape: Sequence[Dim] | None) -> str:
    """`[n, 3]`, or `[…]` for any shape."""
    if shape is None:
        return "[…]"
    return "[" + ", ".join("_" if dim is None else str(dim) for dim in shape) + "]"


@dataclass(frozen=True)
class Signature:
    """The inputs of a function, leaf by leaf, the structure that they are leaves of, and its outputs.

    Attributes:
        arguments: the names of the function's parameters, in order.
        inputs: the leaves of all arguments, in order.
        structures: for each argument, how many leaves it has and the tree they make.
        outputs: the leaves of what it returns; None if that depends on what it is given.
    """

    arguments: tuple[str, ...]
    inputs: tuple[TensorSpec, ...]
    structures: tuple[jtu.PyTreeDef, ...]
    outputs: tuple[TensorSpec, ...] | None = None

    @classmethod
    def of(cls, arguments: Mapping[str, Any], outputs: Any = None) -> "Signature":
        """Builds it from a tree of TensorSpec for each argument, and one for the result.

        Raises:
            ValueError: two leaves would have the same name, or a leaf is not a TensorSpec.
        """
        inputs: list[TensorSpec] = []
        structures: list[jtu.PyTreeDef] = []
        for argument, tree in arguments.items():
            named, structure = flatten(argument, tree)
            inputs += [_named(path, leaf) for path, leaf in named]
            structures.append(structure)
        seen: set[str] = set()
        for spec in inputs:
            if spec.name in seen:
                raise ValueError(f"two inputs would both be called {spec.name!r}; rename a parameter or a key")
            seen.add(spec.name)
        found = None if outputs is None else tuple(_named(path, leaf) for path, leaf in flatten_outputs(outputs))
        return cls(tuple(arguments), tuple(inputs), tuple(structures), found)

    @property
    def symbols(self) -> tuple[str, ...]:
        """The symbolic sizes of the inputs, in order of appearance."""
        dims = (dim for spec in self.inputs for dim in spec.shape or ())
        return tuple(dict.fromkeys(dim for dim in dims if isinstance(dim, str)))

    @property
    def closed(self) -> bool:
        """Whether every input's shape is known once the symbols are."""
        return all(spec.shape is not None and None not in spec.shape for spec in self.inputs)

    def sizes(self, inputs: Sequence[ArraySpec]) -> dict[str, int]:
        """The sizes of the symbols, for inputs that fit."""
        return {
            dim: size
            for spec, given in zip(self.inputs, inputs, strict=True)
            for dim, size in zip(spec.shape or (), given.shape, strict=False)
            if isinstance(dim, str)
        }

    def unflatten(self, leaves: Sequence[Any]) -> tuple[Any, ...]:
        """The arguments that the leaves are the leaves of."""
        arguments, start = [], 0
        for structure in self.structures:
            arguments.append(jtu.tree_unflatten(structure, leaves[start : start + structure.num_leaves]))
            start += structure.num_leaves
        return tuple(arguments)

    def at(self, sizes: Mapping[str, int], dtype: np.dtype[Any]) -> tuple[ArraySpec, ...]:
        """Concrete inputs for given symbol sizes, floating-point ones of `dtype` where they may be."""
        return tuple(
            ArraySpec(
                tuple(sizes[dim] if isinstance(dim, str) else 1 if dim is None else dim for dim in spec.shape or ()),
                dtype if not spec.dtypes or dtype in spec.dtypes else _widest(spec.dtypes),
            )
            for spec in self.inputs
        )

    def check(self, given: Sequence[ArraySpec], fields: Sequence[str], where: str) -> None:
        """Raises WrongDtype or WrongShape if one point's arrays do not fit.

        `fields` are the request paths of the tensors, for the error; `where` names the function.
        """
        sizes: dict[str, tuple[int, str]] = {}
        for spec, array, path in zip(self.inputs, given, fields, strict=True):
            if spec.dtypes and array.dtype not in spec.dtypes:
                raise WrongDtype(
                    f"input {spec.name!r} of {where} is {array.dtype.name}; expected {_listed(spec.dtypes)}",
                    field=f"{path}.tensor.dtype",
                    metadata={"input": spec.name, "dtype": array.dtype.name},
                )
            reason = _mismatch(spec, array.shape, sizes)
            if reason:
                raise WrongShape(
                    f"input {spec.name!r} of {where} has the shape {list(array.shape)} for one point; expected "
                    f"{describe_shape(spec.shape)}: {reason}. If the first axis runs over points, mark the tensor "
                    "as batched",
                    field=f"{path}.tensor.shape",
                    metadata={"input": spec.name, "shape": str(list(array.shape))},
                )


def _mismatch(spec: TensorSpec, shape: tuple[int, ...], sizes: dict[str, tuple[int, str]]) -> str:
    """Why a shape does not fit, or the empty string; binds new symbols in `sizes`."""
    if spec.shape is None:
        return ""
    if len(shape) != len(spec.shape):
        return f"{len(spec.shape)} axes, not {len(shape)}"
    for axis, (dim, size) in enumerate(zip(spec.shape, shape, strict=True)):
        if isinstance(dim, int) and dim != size:
            return f"axis {axis} is {dim}, not {size}"
        if isinstance(dim, str):
            known, source = sizes.setdefault(dim, (size, spec.name))
            if known != size:
                return f"axis {axis} is {dim}, which input {source!r} says is {known}, not {size}"
    return ""


def flatten(root: str, tree: Any) -> tuple[list[tuple[str, Any]], jtu.PyTreeDef]:
    """The leaves of a JAX pytree with their names, and its structure."""
    pairs, structure = jtu.tree_flatten_with_path(tree)
    return [(trees.name(root, [_step(key) for key in path]), leaf) for path, leaf in pairs], structure


def flatten_outputs(tree: Any) -> list[tuple[str, Any]]:
    """The leaves of a function's result with their names: `value` for one array, else the path from the top."""
    pairs, _ = flatten("", tree)
    return [(path or SINGLE_OUTPUT, leaf) for path, leaf in pairs]


def _step(key: Any) -> trees.Step:
    match key:
        case jtu.SequenceKey(idx=index) | jtu.FlattenedIndexKey(key=index):
            return int(index)
        case jtu.DictKey(key=step):
            return step if isinstance(step, int) else str(step)
        case jtu.GetAttrKey(name=step):
            return str(step)
        case _:
            raise ValueError(f"cannot name the pytree key {key!r}; use dictionaries, lists, tuples or dataclasses")


def _named(path: str, leaf: Any) -> TensorSpec:
    if not isinstance(leaf, TensorSpec):
        raise ValueError(  # noqa: TRY004 - registration reports every misfit as one kind of error
            f"{path!r} is {leaf!r}; expected a jaxtyping annotation such as Float[Array, 'n'], or a TensorSpec"
        )
    return replace(leaf, name=path)


def _widest(dtypes: Iterable[np.dtype[Any]]) -> np.dtype[Any]:
    return max(dtypes, key=lambda dtype: dtype.itemsize)


def _listed(dtypes: Sequence[np.dtype[Any]]) -> str:
    return " or ".join(sorted({dtype.name for dtype in dtypes if dtype in NUMBERS}))
