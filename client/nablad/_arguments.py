"""The arguments of a call ↔ named tensors: binding, flattening, and giving results the arguments' structure."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from nablad import trees
from nablad.errors import InvalidArgument, MissingInput, UnknownInput
from nablad.results import FunctionInfo, TensorInfo
from nablad.tensors import Array, to_array, to_tensor
from nablad.v1 import tensor_pb2

Batched = bool | str | Collection[str]
"""Which arguments run over points along their first axis: all, none, or those named."""


@lru_cache(1024)
def argument_of(name: str) -> str:
    """The argument that a leaf belongs to."""
    return str(trees.parse(name)[0])


@dataclass(frozen=True)
class Arguments:
    """The arguments of one call, bound to the function's parameters.

    Attributes:
        info: the function.
        trees: by parameter.
    """

    info: FunctionInfo
    trees: Mapping[str, Any]

    @classmethod
    def bind(
        cls, info: FunctionInfo, positional: Sequence[Any], named: Mapping[str, Any], *, partly: bool = False
    ) -> "Arguments":
        """Binds as Python would. Raises MissingInput or UnknownInput where Python would raise TypeError.

        `partly` allows arguments to be missing.
        """
        parameters = list(dict.fromkeys(argument_of(spec.name) for spec in info.inputs))
        if len(positional) > len(parameters):
            raise UnknownInput(
                f"{info.reference} takes {len(parameters)} arguments ({', '.join(parameters)}); got {len(positional)}"
            )
        bound = dict(zip(parameters, positional, strict=False))
        for name, tree in named.items():
            if name in bound:
                raise InvalidArgument(f"{info.reference} got {name!r} by position and by name")
            if name not in parameters:
                raise UnknownInput(f"{info.reference} has no argument {name!r}; it has {', '.join(parameters)}")
            bound[name] = tree
        missing = [name for name in parameters if name not in bound]
        if missing and not partly:
            raise MissingInput(f"{info.reference} also needs {', '.join(missing)}")
        return cls(info, bound)

    def tensors(self, batched: Batched) -> list[tensor_pb2.NamedTensor]:
        """The inputs of the request."""
        specs = {spec.name: spec for spec in self.info.inputs}
        return [
            _named_tensor(name, leaf, specs.get(name), _is_batched(name, batched))
            for argument, tree in self.trees.items()
            for name, leaf in trees.leaves(argument, tree, specs.__contains__)
        ]

    def choose(self, wrt: str | Sequence[str] | None) -> "Chosen":
        """The inputs that `wrt` names: parameters, or leaves of theirs."""
        names = [wrt] if isinstance(wrt, str) else list(wrt or ())
        leaves = []
        for name in names:
            inside = [spec.name for spec in self.info.inputs if spec.differentiable and argument_of(spec.name) == name]
            # What the function does not have is sent as it is: the server says what there is.
            leaves += inside or [name]
        return self._chosen(None if wrt is None else tuple(names), isinstance(wrt, str), tuple(leaves))

    def vectors(
        self, given: Any, batched: Batched, what: str, wrt: tuple[str, ...] | None = None
    ) -> tuple[list[tensor_pb2.NamedTensor], "Chosen"]:
        """The tangents of the request, and the inputs that they move.

        `given` is a dictionary by parameter, or bare if just one parameter can be differentiated; by what is named in
        `wrt`, if that is given.
        """
        keys = set(self.trees) if wrt is None else set(wrt)
        by_parameter = isinstance(given, Mapping) and bool(given) and set(given) <= keys
        if not by_parameter:
            smooth = list(dict.fromkeys(argument_of(spec.name) for spec in self.info.inputs if spec.differentiable))
            smooth = smooth if wrt is None else list(wrt)
            if len(smooth) != 1:
                raise InvalidArgument(
                    f"{self.info.reference} has the differentiable arguments {', '.join(smooth) or '(none)'}; give the "
                    f"{what} as a dictionary by argument, such as {{{(smooth or ['x'])[0]!r}: ...}}"
                )
            given = {smooth[0]: given}
        specs = {spec.name for spec in self.info.inputs}
        tensors = [
            _named_tensor(name, leaf, None, _is_batched(name, batched))
            for parameter, tree in given.items()
            for name, leaf in trees.leaves(parameter, tree, specs.__contains__)
        ]
        names = tuple(given)
        return tensors, self._chosen(names, not by_parameter, tuple(tensor.name for tensor in tensors))

    def _chosen(self, names: tuple[str, ...] | None, bare: bool, leaves: tuple[str, ...]) -> "Chosen":
        known = frozenset(spec.name for spec in self.info.inputs)
        structures = {name: tree for name, tree in self.trees.items() if name not in known}
        return Chosen(known, structures, names, bare, leaves)


@dataclass(frozen=True)
class Chosen:
    """The inputs that a result is with respect to, and how the caller wants it arranged.

    Attributes:
        known: the names of the function's inputs.
        structures: the arguments that are structures of inputs, by parameter. Arrays are not held on to.
        names: parameters or leaves, as the caller named them; None for all that can be differentiated.
        bare: whether the caller named one thing and wants its result by itself.
        leaves: the names for the request.
    """

    known: frozenset[str]
    structures: Mapping[str, Any]
    names: tuple[str, ...] | None
    bare: bool
    leaves: tuple[str, ...]

    def arrange(self, values: Mapping[str, Any]) -> Any:
        """Results by leaf, as the caller wants them: bare for one name, else a dictionary by name."""
        names = self.names or tuple(dict.fromkeys(argument_of(name) for name in values))
        found = {name: self._of(name, values) for name in names}
        bare = self.bare or (self.names is None and len(found) == 1)
        return next(iter(found.values())) if bare else found

    def _of(self, name: str, values: Mapping[str, Any]) -> Any:
        if name in self.known:
            return values[name]
        return trees.rebuild(name, self.structures[name], self.known.__contains__, values)


def output_tensors(info: FunctionInfo, given: Any, batched: Batched) -> list[tensor_pb2.NamedTensor]:
    """The cotangents of the request: bare for a function with one output, else the structure of its result."""
    names = [spec.name for spec in info.outputs]
    if len(names) == 1 and not (isinstance(given, Mapping) and set(given) == set(names)):
        pairs = [(names[0], given)]
    else:
        pairs = [(name or "value", leaf) for name, leaf in trees.leaves("", given, names.__contains__)]
    return [_named_tensor(name, leaf, None, _is_batched(name, batched)) for name, leaf in pairs if leaf is not None]


def arrange_outputs(values: Mapping[str, Any]) -> Any:
    """Results by output: bare for the one output of a function that returns an array, else its structure."""
    return values["value"] if list(values) == ["value"] else trees.nest(values)


def arrays(tensors: Sequence[tensor_pb2.NamedTensor]) -> dict[str, Array]:
    """The arrays of a response by name."""
    return {named.name: to_array(named.tensor) for named in tensors}


def _is_batched(name: str, batched: Batched) -> bool:
    if isinstance(batched, bool):
        return batched
    chosen = {batched} if isinstance(batched, str) else batched
    return name in chosen or argument_of(name) in chosen


def _named_tensor(name: str, leaf: Any, spec: TensorInfo | None, batched: bool) -> tensor_pb2.NamedTensor:
    array = np.asarray(leaf)
    accepted = spec.dtypes if spec is not None else ("float64",)
    if accepted and not hasattr(leaf, "dtype") and array.dtype.name not in accepted:
        # A Python number has no dtype of its own: 1 may stand for 1.0. An array's dtype is what its owner chose.
        wanted = np.dtype(accepted[0] if "float64" not in accepted else "float64")
        if np.can_cast(array.dtype, wanted, "same_kind"):
            array = array.astype(wanted)
    return tensor_pb2.NamedTensor(name=name, tensor=to_tensor(array), batched=batched)
