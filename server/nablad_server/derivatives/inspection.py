"""An Inspection: the gradient of a scalar output with respect to what every activation on its way gives.

To what each activation gives a perturbation of zero is added; reverse-mode differentiation with respect to all
perturbations then gives all gradients in one pass back.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nablad.errors import NabladError, NotDifferentiable, ResultTooLarge
from nablad_server.derivatives.activations import LARGEST_SLOPES, Activation
from nablad_server.derivatives.memory import refuse_overflow
from nablad_server.derivatives.operators.leaves import Leaves, pick
from nablad_server.derivatives.program import Constants, Traced, calls_back, placed
from nablad_server.derivatives.query import Query
from nablad_server.derivatives.unrolling import Plan, planned, run
from nablad_server.functions.function import Function
from nablad_server.functions.precision import precision_of

MAX_LAYERS = 512
"""Activations that are looked at, loops unrolled; each has a place in the program of its own."""

MAX_OPERATIONS = 8_000
"""Operations of the function, loops unrolled: so many take about a minute to compile."""

SATURATED = 0.01
"""A unit is saturated if its slope is less than this part of the largest that its activation has."""

MAX_INSPECTIONS = 64
"""Inspections that are remembered; their programs are counted and dropped by the cache."""


class Layer(NamedTuple):
    """One activation, in the order of computation: its kind, its place in the code, and its shape for one point."""

    activation: str
    location: str
    shape: tuple[int, ...]


class Inspection:
    """A Recipe, equal to itself alone, for points of one shape. Its results are two groups, for each point:

    of [layers] arrays the root mean square of what each layer gives, that of the gradient with respect to it, and the
    share of its units that are saturated; and of one [inputs] array the root mean square of the gradient with respect
    to each input of `wrt`. All are float64, or float32 of a program in 32-bit mode.

    Attributes:
        query: the gradient that it looks into.
        layers: the activations.
    """

    def __init__(self, query: Query) -> None:
        """Traces the function.

        Raises:
            NotDifferentiable: it computes no activation, or JAX cannot differentiate it in reverse mode.
            ResultTooLarge: it has too many activations, or too many operations, its loops unrolled.
        """
        self.query = query
        self.inputs = query.inputs
        self.operator = query.operator
        self.wide = query.wide
        self.arrays = query.arrays
        self.shared = query.shared
        self.argument_bytes = query.argument_bytes
        with precision_of(query.inputs):
            specs = [jax.ShapeDtypeStruct(spec.shape, spec.dtype) for spec in query.inputs]
            closed = jax.make_jaxpr(lambda *leaves: query.function.flat(leaves)[query.outputs[0]])(*specs)
            plan = planned(closed.jaxpr, [True])
            self._check(plan)
            seen: list[tuple[Activation, Any]] = []

            def noted(activation: Activation, after: Any, _: Callable[[], Any]) -> Any:
                seen.append((activation, jax.typeof(after)))
                return after

            jax.eval_shape(lambda *leaves: run(plan, closed.consts, leaves, noted), *specs)
            self.layers = tuple(Layer(found.kind, found.location, after.shape) for found, after in seen)
            self._closed = self._differentiated(plan, closed.consts, [after for _, after in seen])
        refuse_overflow(self, self._closed.jaxpr)
        self.result_bytes = (3 * len(self.layers) + len(query.wrt)) * (8 if self.wide else 4)

    @property
    def function(self) -> Function:
        """Whose gradient it is."""
        return self.query.function

    def trace(self, constants: Constants) -> Traced:
        """What was traced, with large constants on the device."""
        with precision_of(self.inputs):
            values = tuple(placed(constant, self.wide, constants) for constant in self._closed.consts)
        return Traced(self, self._closed.jaxpr, values, (3, 1), calls_back(self._closed.jaxpr))

    def _check(self, plan: Plan) -> None:
        reference = self.function.reference
        if not plan.layers:
            raise NotDifferentiable(
                f"the output of {reference} comes from no activation that is known: {', '.join(LARGEST_SLOPES)}. Those "
                "in branches, in loops of unknown length and in functions with derivative rules of their own are not "
                "seen",
                field="function",
                metadata={"function": reference},
            )
        for count, what, limit in (
            (plan.layers, "activations", MAX_LAYERS),
            (plan.operations, "operations", MAX_OPERATIONS),
        ):
            if count > limit:
                raise ResultTooLarge(
                    f"{reference} computes {count} {what} one after the other, turns of loops included; at most "
                    f"{limit} are looked at. Send inputs that make its loops shorter, or register a part of it as a "
                    "function of its own",
                    field="function",
                    metadata={"count": str(count), "limit": str(limit)},
                )

    def _differentiated(self, plan: Plan, constants: Sequence[Any], layers: Sequence[Any]) -> Any:
        """The jaxpr of one point."""
        query = self.query
        number = jnp.float64 if self.wide else jnp.float32

        def at(*point: Any) -> list[Any]:
            def scalar(perturbations: Leaves, chosen: Leaves) -> tuple[Any, tuple[list[Any], list[Any]]]:
                leaves = list(point)
                for index, leaf in zip(query.wrt, chosen, strict=True):
                    leaves[index] = leaf
                moving, outputs, slopes = iter(perturbations), [], []

                def visit(activation: Activation, after: Any, slope: Callable[[], Any]) -> Any:
                    outputs.append(jax.lax.stop_gradient(after))
                    slopes.append(slope() / LARGEST_SLOPES[activation.kind])
                    return after + next(moving)

                (value,) = run(plan, constants, leaves, visit)
                return value, (outputs, slopes)

            zeros = tuple(jnp.zeros(layer.shape, layer.dtype) for layer in layers)
            (inner, outer), (outputs, slopes) = jax.grad(scalar, argnums=(0, 1), has_aux=True)(
                zeros, pick(point, query.wrt)
            )
            norm = lambda rows: _norms(rows.astype(number))
            share = lambda rows: jnp.mean(jnp.abs(rows) < SATURATED, axis=1, dtype=number)
            return [
                _of_each(norm, outputs),
                _of_each(norm, inner),
                _of_each(share, slopes),
                _of_each(norm, outer),
            ]

        try:
            return jax.make_jaxpr(at)(*(jax.ShapeDtypeStruct(spec.shape, spec.dtype) for spec in query.inputs))
        except NabladError:
            raise
        except Exception as error:
            text = " ".join(str(error).split())[:500]
            raise NotDifferentiable(
                f"{query}: the function can be evaluated, but JAX cannot differentiate it in reverse mode: "
                f"{type(error).__name__}: {text}",
                metadata={"function": query.function.reference},
            ) from error

    def __str__(self) -> str:
        return f"layers of {self.query}"


class Inspections:
    """Inspections by query. Safe for threads; one function is traced at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inspections: OrderedDict[Query, Inspection] = OrderedDict()

    def of(self, query: Query) -> Inspection:
        """The one of a query, made if need be; that unused for longest is forgotten for it. Raises as `Inspection`."""
        with self._lock:
            found = self._inspections.get(query)
            if found is None:
                found = self._inspections[query] = Inspection(query)
                if len(self._inspections) > MAX_INSPECTIONS:
                    self._inspections.popitem(last=False)
            self._inspections.move_to_end(query)
            return found

    def forget(self, functions: Collection[Function]) -> None:
        """Forgets those of some functions."""
        with self._lock:
            for query in [query for query in self._inspections if query.function in functions]:
                del self._inspections[query]


def _of_each(number: Callable[[Any], Any], arrays: Sequence[Any]) -> Any:
    """A number of each array, from [arrays, elements] to [arrays]; those of one shape are computed together.

    Networks have many layers alike, and each operation of a program takes milliseconds to compile.
    """
    alike: dict[tuple[Any, ...], list[int]] = {}
    for index, array in enumerate(arrays):
        alike.setdefault((array.shape, array.dtype), []).append(index)
    found = [number(jnp.stack([arrays[index].reshape(-1) for index in group])) for group in alike.values()]
    order = np.argsort([index for group in alike.values() for index in group])
    return jnp.concatenate(found)[order]


def _norms(rows: Any) -> Any:
    """The root mean square of each row, 0 of one without elements; scaled first, so that no square is lost."""
    if not rows.size:
        return jnp.zeros(len(rows), rows.dtype)
    largest = jnp.max(jnp.abs(rows), axis=1, keepdims=True)
    scale = jnp.where((largest > 0) & (largest < np.inf), largest, 1)
    return scale[:, 0] * jnp.sqrt(jnp.mean((rows / scale) ** 2, axis=1))
