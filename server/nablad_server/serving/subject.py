"""The Subject of a request: a function at given inputs, and what the request's names mean for it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from nablad.errors import (
    DuplicateName,
    InvalidBatch,
    InvalidOption,
    InvalidVector,
    NotDifferentiable,
    NotScalar,
    UnknownInput,
    UnknownOutput,
)
from nablad_server.functions.function import Function
from nablad_server.functions.signature import ArraySpec
from nablad_server.serving.arrays import RequestArray, Tensors, by_name, listed, near, vectors_like

Vectors = tuple[tuple[int, ...], tuple[RequestArray, ...], int | None]
"""The inputs or outputs that have a vector, the vectors, and how many are stacked (None: no stack axis)."""


@dataclass(frozen=True)
class Subject:
    """The function that a request is about, at the inputs that it gives.

    Attributes:
        function: the function.
        inputs: one array for each input of its signature.
        specs: their shapes and dtypes, for one point.
        outputs: the names, shapes and dtypes of the outputs at these inputs.
    """

    function: Function
    inputs: tuple[RequestArray, ...]
    specs: tuple[ArraySpec, ...]
    outputs: tuple[tuple[str, ArraySpec], ...]

    def check_traced(self) -> None:
        """Raises NotDifferentiable for a black box, which automatic differentiation cannot look into."""
        if self.function.black_box is not None:
            raise NotDifferentiable(
                f"{self.function.reference} is a black box, which is not differentiated automatically; ask for finite "
                "differences, which serve Gradient, Jacobian, Hessian, Hvp and Jvp",
                field="function",
                metadata={"function": self.function.reference},
            )

    def at_one_point(self, what: str) -> Self:
        """Itself. Raises InvalidBatch if an input runs over points; `what` is what the stream is of."""
        for array in self.inputs:
            if array.batched:
                raise InvalidBatch(
                    f"a stream of {what} is about one point; send the input without an axis for points, and open a "
                    "stream for each point",
                    field=f"{array.field}.batched",
                )
        return self

    def tangents(self, tensors: Tensors, stacked: bool, field: str = "tangents") -> Vectors:
        """The inputs that have a tangent, the tangents, and how many are stacked."""
        names = [spec.name for spec in self.function.signature.inputs]
        given = by_name(tensors, field, names, self._unknown_input)
        return self._vectors(given, stacked, field, names, self.specs, kind="input")

    def cotangents(self, tensors: Tensors, stacked: bool, field: str = "cotangents") -> Vectors:
        """The outputs that have a cotangent, the cotangents, and how many are stacked."""
        names, specs = zip(*self.outputs, strict=True)
        given = by_name(tensors, field, names, self._unknown_output)
        return self._vectors(given, stacked, field, names, specs, kind="output")

    def _vectors(
        self,
        given: dict[int, RequestArray],
        stacked: bool,
        field: str,
        names: Sequence[str],
        specs: Sequence[ArraySpec],
        *,
        kind: str,
    ) -> Vectors:
        if not given:
            raise InvalidVector(f"no {field} given; give one for each {kind} that counts", field=field)
        for index, array in given.items():
            if not specs[index].differentiable:
                raise self._not_differentiable(f"{kind} {names[index]!r}", specs[index], f"{array.field}.name")
        vectors, stack = vectors_like(given, specs, names, stacked)
        return tuple(given), vectors, stack

    def select_inputs(self, names: Sequence[str], field: str = "wrt") -> tuple[int, ...]:
        """The inputs to differentiate with respect to; all that can be if none are named."""
        if not names:
            found = tuple(index for index, spec in enumerate(self.specs) if spec.differentiable)
            if not found:
                raise NotDifferentiable(
                    f"{self.function.reference} was given no floating-point input to differentiate with respect to",
                    field=field,
                )
            return found
        known = [spec.name for spec in self.function.signature.inputs]
        indices: list[int] = []
        for position, name in enumerate(names):
            path = f"{field}[{position}]"
            if name not in known:
                raise self._unknown_input(name, path)
            index = known.index(name)
            if index in indices:
                raise DuplicateName(f"{name!r} is given twice", field=path)
            if not self.specs[index].differentiable:
                raise self._not_differentiable(f"input {name!r}", self.specs[index], path)
            indices.append(index)
        return tuple(indices)

    def select_scalar_input(self, name: str) -> tuple[int]:
        """The one scalar floating-point input, or the one named."""
        known = [spec.name for spec in self.function.signature.inputs]
        scalars = [index for index, spec in enumerate(self.specs) if spec.differentiable and not spec.shape]
        if name:
            (index,) = self.select_inputs([name])
        elif len(scalars) == 1:
            index = scalars[0]
        elif scalars:
            raise InvalidOption(
                f"{self.function.reference} has several scalar inputs; name one of "
                f"{listed([known[i] for i in scalars])}",
                field="wrt",
            )
        else:
            index = next((i for i, spec in enumerate(self.specs) if spec.differentiable), 0)
        if index not in scalars:
            raise NotScalar(
                f"input {known[index]!r} of {self.function.reference} is {self.specs[index]}; Derivative needs a "
                "scalar floating-point input. For functions of several variables use Gradient, Jacobian or Hessian",
                field="wrt",
            )
        return (index,)

    def select_outputs(self, names: Sequence[str], differentiable: bool) -> tuple[int, ...]:
        """The outputs named, or all; those that are to be differentiated must be floating-point."""
        if not names:
            found = tuple(i for i, (_, spec) in enumerate(self.outputs) if spec.differentiable or not differentiable)
            if not found:
                raise NotDifferentiable(f"{self.function.reference} has no floating-point output", field="outputs")
            return found
        indices: list[int] = []
        for position, name in enumerate(names):
            index = self._output(name, f"outputs[{position}]")
            if index in indices:
                raise DuplicateName(f"{name!r} is given twice", field=f"outputs[{position}]")
            if differentiable and not self.outputs[index][1].differentiable:
                raise self._not_differentiable(f"output {name!r}", self.outputs[index][1], f"outputs[{position}]")
            indices.append(index)
        return tuple(indices)

    def scalar(self, indices: Sequence[int]) -> tuple[int]:
        """The one output among these, which must be a scalar. Raises NotScalar."""
        if len(indices) > 1:
            raise NotScalar(
                f"the outputs {listed([self.outputs[i][0] for i in indices])} of {self.function.reference} have no one "
                "Hessian; name one of them, a scalar",
                field="outputs",
                metadata={"function": self.function.reference},
            )
        if self.outputs[indices[0]][1].shape:
            raise self._not_scalar(indices)
        return (indices[0],)

    def select_scalar_output(self, name: str) -> tuple[int]:
        """The one scalar floating-point output, or the one named."""
        scalars = [i for i, (_, spec) in enumerate(self.outputs) if spec.differentiable and not spec.shape]
        if name:
            index = self._output(name, "output")
            spec = self.outputs[index][1]
            if not spec.differentiable:
                raise self._not_differentiable(f"output {name!r}", spec, "output")
            if index not in scalars:
                raise self._not_scalar([index])
            return (index,)
        if len(scalars) == 1:
            return (scalars[0],)
        if scalars:
            raise UnknownOutput(
                f"{self.function.reference} has several scalar outputs; name one of "
                f"{listed([self.outputs[i][0] for i in scalars])}",
                field="output",
            )
        smooth = [i for i, (_, spec) in enumerate(self.outputs) if spec.differentiable]
        if not smooth:
            raise NotDifferentiable(f"{self.function.reference} has no floating-point output", field="output")
        raise self._not_scalar(smooth)

    def _output(self, name: str, field: str) -> int:
        names = [known for known, _ in self.outputs]
        if name not in names:
            raise self._unknown_output(name, field)
        return names.index(name)

    def _unknown_input(self, name: str, field: str) -> UnknownInput:
        names = [spec.name for spec in self.function.signature.inputs]
        return UnknownInput(f"{self.function.reference} has no input {name[:100]!r}; {near(name, names)}", field=field)

    def _unknown_output(self, name: str, field: str) -> UnknownOutput:
        names = [known for known, _ in self.outputs]
        return UnknownOutput(
            f"{self.function.reference} has no output {name[:100]!r}; {near(name, names)}", field=field
        )

    def _not_scalar(self, indices: Sequence[int]) -> NotScalar:
        shapes = ", ".join(f"{self.outputs[i][0]!r} of shape {list(self.outputs[i][1].shape)}" for i in indices)
        return NotScalar(
            f"{self.function.reference} gives {shapes}, not a scalar; use Jacobian or Vjp there",
            field="output",
            metadata={"function": self.function.reference},
        )

    def _not_differentiable(self, what: str, spec: ArraySpec, field: str) -> NotDifferentiable:
        return NotDifferentiable(
            f"{what} of {self.function.reference} is {spec.dtype.name}; only floating-point ones can be "
            "differentiated; others are carried",
            field=field,
            metadata={"function": self.function.reference},
        )
