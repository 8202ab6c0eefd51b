"""A derivative cut in two: what depends on the point alone, and the linear map from a vector to a product.

The first part, the opening, is run once for a point; what it leaves over, the residuals, stays on the device. The
second part, the product, takes the residuals and a vector. Both come from one trace: `jax.linearize` (`jax.vjp` for
cotangents) gives the linear map at a point that is itself being traced, and what the jaxpr of the map closes over then
are the residuals, as far as they depend on the point.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nablad.errors import NabladError, NotDifferentiable
from nablad.v1 import function_pb2
from nablad_server.derivatives.memory import refuse_overflow
from nablad_server.derivatives.operators import result_specs
from nablad_server.derivatives.operators.leaves import Leaves, outputs_alone, pick, scalar_alone
from nablad_server.derivatives.program import Constants, Traced, calls_back, placed
from nablad_server.derivatives.query import Query
from nablad_server.functions.function import Function
from nablad_server.functions.precision import precision_of
from nablad_server.functions.signature import ArraySpec

MAX_LINEARS = 256
"""Linear maps that are remembered; their programs are counted and dropped by the cache."""


def whole(query: Query) -> Query:
    """The query with a vector for every input of `wrt` (Vjp: for every output), and none stacked."""
    vectors = query.outputs if query.operator == function_pb2.OPERATOR_VJP else query.wrt
    return replace(query, vectors=vectors, stack=None, shared=())


class Part:
    """One of the two parts: a Recipe, equal to itself alone.

    Attributes:
        linear: what it is a part of.
        arrays: as of a Recipe. Those of a product are known when it has been traced.
    """

    arrays: tuple[ArraySpec, ...]

    def __init__(self, linear: "Linear") -> None:
        self.linear = linear
        self.inputs = linear.query.inputs
        self.operator = linear.query.operator
        self.wide = linear.query.wide

    @property
    def function(self) -> Function:
        """Whose derivative it is a part of."""
        return self.linear.query.function


class Opening(Part):
    """From the inputs to the residuals."""

    def __init__(self, linear: "Linear") -> None:
        super().__init__(linear)
        self.arrays = self.inputs
        self.shared = (False,) * len(self.arrays)
        self.argument_bytes = sum(spec.bytes for spec in self.arrays)

    def trace(self, constants: Constants) -> Traced:
        """Traces both parts, unless that is done. Raises NotDifferentiable or ResultTooLarge."""
        return self.linear.traced(constants)[0]

    def __str__(self) -> str:
        return f"linearization for {self.linear.query}"


class Product(Part):
    """From the residuals, which all vectors share, and a vector to a product.

    Attributes:
        result_bytes: of one product.
    """

    def __init__(self, linear: "Linear") -> None:
        super().__init__(linear)
        query = linear.query
        self.vectors = query.arrays[len(query.inputs) :]
        self.argument_bytes = sum(spec.bytes for spec in self.vectors)
        self.result_bytes = sum(spec.bytes for spec in result_specs(query)[-1])

    @property
    def shared(self) -> tuple[bool, ...]:
        """The residuals are."""
        own = len(self.vectors)
        return (True,) * (len(self.arrays) - own) + (False,) * own

    def trace(self, constants: Constants) -> Traced:
        """Traces both parts, unless that is done. Raises NotDifferentiable or ResultTooLarge."""
        return self.linear.traced(constants)[1]

    def __str__(self) -> str:
        return f"linearized {self.linear.query}"


class Linear:
    """A derivative in two parts, for all points of one shape.

    Attributes:
        query: the product, as `whole` gives it.
        opening: its first part.
        product: its second part.
        residual_bytes: what is kept for one point; known when the parts have been traced.
    """

    def __init__(self, query: Query) -> None:
        self.query = query
        self.opening = Opening(self)
        self.product = Product(self)
        self.residual_bytes = 0
        self._traced: tuple[Traced, Traced] | None = None

    def traced(self, constants: Constants) -> tuple[Traced, Traced]:
        """Both parts. In the compile thread.

        Raises:
            NotDifferentiable: the map cannot be traced by itself.
            ResultTooLarge: an array on the way has a size that XLA might not survive.
        """
        if self._traced is None:
            try:
                with precision_of(self.query.inputs):
                    self._traced = self._trace(constants)
            except NabladError:
                raise
            except Exception as error:
                text = " ".join(str(error).split())[:500]
                raise NotDifferentiable(
                    f"{self.query} cannot be linearized ahead of its vectors: {type(error).__name__}: {text}",
                    metadata={"function": self.query.function.reference},
                ) from error
        return self._traced

    def _trace(self, constants: Constants) -> tuple[Traced, Traced]:
        query = self.query
        vectors = [jax.ShapeDtypeStruct(spec.shape, spec.dtype) for spec in self.product.vectors]
        specs = result_specs(query)[-1]
        captured: list[Any] = []

        def residuals(*point: Any) -> list[Any]:
            push = _linear_map(query, point)

            def products(*given: Any) -> list[Any]:
                return [jnp.asarray(array, spec.dtype) for array, spec in zip(push(given), specs, strict=True)]

            closed = jax.make_jaxpr(products)(*vectors)
            depends = [isinstance(constant, jax.core.Tracer) for constant in closed.consts]
            captured[:] = [
                closed.jaxpr,
                depends,
                [constant for constant, does in zip(closed.consts, depends, strict=True) if not does],
            ]
            return [constant for constant, does in zip(closed.consts, depends, strict=True) if does]

        opening = jax.make_jaxpr(residuals)(*(jax.ShapeDtypeStruct(s.shape, s.dtype) for s in query.inputs))
        refuse_overflow(self.opening, opening.jaxpr)
        jaxpr, depends, rest = captured
        kept = [ArraySpec((1, *aval.shape), np.dtype(aval.dtype)) for aval in opening.out_avals]  # keys are no dtype

        def product(*arrays: Any) -> list[Any]:
            # The opening's results have an axis for its one point.
            mine, others = iter(arrays[: len(kept)]), iter(rest)
            values = [next(mine)[0] if does else next(others) for does in depends]
            return list(jax.core.eval_jaxpr(jaxpr, values, *arrays[len(kept) :]))

        taken = [jax.ShapeDtypeStruct(spec.shape, spec.dtype) for spec in kept]
        closed = jax.make_jaxpr(product)(*taken, *vectors)
        refuse_overflow(self.product, closed.jaxpr)
        self.product.arrays = (*kept, *self.product.vectors)
        self.residual_bytes = sum(spec.bytes for spec in kept)
        return (
            _traced(self.opening, opening, len(kept), constants),
            _traced(self.product, closed, len(specs), constants),
        )


def _traced(part: Opening | Product, closed: Any, results: int, constants: Constants) -> Traced:
    values = tuple(placed(constant, part.wide, constants) for constant in closed.consts)
    return Traced(part, closed.jaxpr, values, (results,), calls_back(closed.jaxpr))


def _linear_map(query: Query, point: Leaves) -> Callable[[Sequence[Any]], Sequence[Any]]:
    """The products at a point as a function of the vectors."""
    f = query.function.flat
    chosen = pick(point, query.wrt)
    if query.operator == function_pb2.OPERATOR_VJP:
        _, pullback = jax.vjp(outputs_alone(f, query, point, query.wrt), chosen)
        return lambda cotangents: pullback(tuple(cotangents))[0]
    if query.operator == function_pb2.OPERATOR_HVP:
        _, push = jax.linearize(jax.grad(scalar_alone(f, query, point, query.wrt)), chosen)
    else:
        _, push = jax.linearize(outputs_alone(f, query, point, query.wrt), chosen)
    return lambda tangents: push(tuple(tangents))


class Linears:
    """Linear maps by query. Safe for threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._linears: OrderedDict[Query, Linear] = OrderedDict()

    def of(self, query: Query) -> Linear:
        """The one of a query, made if need be; that unused for longest is forgotten for it."""
        with self._lock:
            linear = self._linears.get(query)
            if linear is None:
                linear = self._linears[query] = Linear(query)
                if len(self._linears) > MAX_LINEARS:
                    self._linears.popitem(last=False)
            self._linears.move_to_end(query)
            return linear

    def forget(self, functions: Collection[Function]) -> None:
        """Forgets those of some functions."""
        with self._lock:
            for query in [query for query in self._linears if query.function in functions]:
                del self._linears[query]
