"""Derivatives and batches of functions of tensors, made of one another by `torch.func`. See foreign.Call."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch

from nablad.tensors import Array
from nablad_server.functions.signature import ArraySpec

Tensors = tuple[Any, ...]
Run = Callable[["TorchCall", Sequence[Array], Sequence[ArraySpec]], list[Array]]


class TorchCall(ABC):
    """A function from tensors to tensors, which `torch.func` can transform. See foreign.Call.

    Attributes:
        derived: whether it is a derivative, or many of one.
    """

    linear = 0
    derived = False

    def __init__(self, run: Run) -> None:
        """`run` runs a call on arrays, and says what is wrong if it fails."""
        self._run = run
        self._made: dict[Hashable, TorchCall] = {}

    @abstractmethod
    def __call__(self, arguments: Tensors) -> Tensors:
        """What it gives."""

    @abstractmethod
    def evaluate(self, arguments: Tensors) -> None:
        """Runs the function that it is made of, at the same points."""

    def run(self, arrays: Sequence[Array], outputs: Sequence[ArraySpec]) -> list[Array]:
        """See foreign.Call."""
        return self._run(self, arrays, outputs)

    def batched(self, mapped: tuple[bool, ...]) -> "TorchCall":
        """See foreign.Call."""
        return self._once((Batched, mapped), lambda: Batched(self, self._run, mapped))

    def pushed(self, moving: tuple[int, ...], outputs: tuple[int, ...]) -> "TorchCall":
        """See foreign.Call."""
        return self._once((Pushed, moving, outputs), lambda: Pushed(self, self._run, moving, outputs))

    def pulled(self, moving: tuple[int, ...], outputs: tuple[int, ...]) -> "TorchCall":
        """See foreign.Call."""
        return self._once((Pulled, moving, outputs), lambda: Pulled(self, self._run, moving, outputs))

    def transposed(self, wanted: tuple[int, ...], given: tuple[int, ...]) -> "TorchCall":
        """See foreign.Call."""
        raise TypeError(f"{type(self).__name__} is not linear; {wanted}, {given}")

    def _once(self, key: Hashable, make: Callable[[], "TorchCall"]) -> "TorchCall":
        """What was made before, if it was: equal derivatives are the same."""
        found = self._made.get(key)
        return self._made.setdefault(key, make()) if found is None else found


class Derived(TorchCall):
    """A derivative of a call with respect to some arguments, of some outputs."""

    derived = True

    def __init__(self, of: TorchCall, run: Run, moving: tuple[int, ...], outputs: tuple[int, ...]) -> None:
        super().__init__(run)
        self._of = of
        self._moving = moving
        self._outputs = outputs

    def evaluate(self, arguments: Tensors) -> None:
        """See TorchCall."""
        self._of.evaluate(arguments[: len(arguments) - self.linear])

    def _alone(self, arguments: Tensors) -> tuple[Callable[..., Tensors], Tensors, Tensors]:
        """The outputs as a function of the moving arguments, these, and the vectors."""
        known = len(arguments) - self.linear

        def alone(*moved: Any) -> Tensors:
            every = list(arguments[:known])
            for index, argument in zip(self._moving, moved, strict=True):
                every[index] = argument
            found = self._of(tuple(every))
            return tuple(found[index] for index in self._outputs)

        return alone, tuple(arguments[index] for index in self._moving), arguments[known:]


class Pushed(Derived):
    """The derivative along tangents, in forward mode.

    Where an operation has no rule for that, the transpose of the transpose is taken, which is linear in the cotangents.
    """

    def __init__(self, of: TorchCall, run: Run, moving: tuple[int, ...], outputs: tuple[int, ...]) -> None:
        super().__init__(of, run, moving, outputs)
        self.linear = len(moving)
        self._twice_reverse = False

    def __call__(self, arguments: Tensors) -> Tensors:
        """See TorchCall."""
        alone, at, tangents = self._alone(arguments)
        if not self._twice_reverse:
            try:
                found: Tensors = torch.func.jvp(alone, at, tangents)[1]
            except NotImplementedError as error:
                try:
                    found = _transposed_twice(alone, at, tangents)
                except Exception:
                    raise error from None
                self._twice_reverse = True
            return found
        return _transposed_twice(alone, at, tangents)

    def transposed(self, wanted: tuple[int, ...], given: tuple[int, ...]) -> TorchCall:
        """See foreign.Call."""
        return self._of.pulled(_picked(self._moving, wanted), _picked(self._outputs, given))


class Pulled(Derived):
    """Cotangents times the derivative, in reverse mode."""

    def __init__(self, of: TorchCall, run: Run, moving: tuple[int, ...], outputs: tuple[int, ...]) -> None:
        super().__init__(of, run, moving, outputs)
        self.linear = len(outputs)

    def __call__(self, arguments: Tensors) -> Tensors:
        """See TorchCall."""
        alone, at, cotangents = self._alone(arguments)
        found: Tensors = torch.func.vjp(alone, *at)[1](cotangents)
        return found

    def transposed(self, wanted: tuple[int, ...], given: tuple[int, ...]) -> TorchCall:
        """See foreign.Call."""
        return self._of.pushed(_picked(self._moving, given), _picked(self._outputs, wanted))


class Batched(TorchCall):
    """A call at many points together; one after the other, where `torch.func.vmap` cannot.

    It cannot where values decide what is done next, or where an element is taken out as a number.
    """

    def __init__(self, of: TorchCall, run: Run, mapped: tuple[bool, ...]) -> None:
        super().__init__(run)
        self.linear = of.linear
        self.derived = of.derived
        self._of = of
        self._mapped = mapped
        self._one_by_one = False

    def __call__(self, arguments: Tensors) -> Tensors:
        """See TorchCall."""
        if not self._one_by_one:
            axes = tuple(0 if mapped else None for mapped in self._mapped)
            try:
                found: Tensors = torch.func.vmap(lambda *point: self._of(point), in_dims=axes)(*arguments)
            except Exception:  # of many types; if it is the function's own, it comes again
                found = self._in_turn(arguments)
                self._one_by_one = True
            return found
        return self._in_turn(arguments)

    def evaluate(self, arguments: Tensors) -> None:
        """See TorchCall."""
        for point in self._points(arguments):
            self._of.evaluate(point)

    def transposed(self, wanted: tuple[int, ...], given: tuple[int, ...]) -> TorchCall:
        """See foreign.Call."""
        known = self._mapped[: len(self._mapped) - self.linear]
        return self._of.transposed(wanted, given).batched((*known, *(True for _ in given)))

    def _in_turn(self, arguments: Tensors) -> Tensors:
        every = [self._of(point) for point in self._points(arguments)]
        return tuple(torch.stack(outputs) for outputs in zip(*every, strict=True))

    def _points(self, arguments: Tensors) -> list[Tensors]:
        size = next(len(argument) for argument, mapped in zip(arguments, self._mapped, strict=True) if mapped)
        return [
            tuple(argument[index] if mapped else argument
                  for argument, mapped in zip(arguments, self._mapped, strict=True))
            for index in range(size)
        ]  # fmt: skip


def _transposed_twice(alone: Callable[..., Tensors], at: Tensors, tangents: Tensors) -> Tensors:
    """The derivative along tangents, in reverse mode only."""
    values, pull = torch.func.vjp(alone, *at)
    found: tuple[Tensors] = torch.func.vjp(pull, tuple(map(torch.zeros_like, values)))[1](tangents)
    return found[0]


def _picked(of: tuple[int, ...], indices: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(of[index] for index in indices)
