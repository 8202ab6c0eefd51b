"""What the operators are made from: a function as one of some of its inputs, and the shapes of groups of results."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from nablad.v1 import differentiation_pb2, function_pb2
from nablad_server.derivatives.query import Query
from nablad_server.functions.signature import ArraySpec

Leaves = tuple[Any, ...]
Groups = tuple[Leaves, ...]
FlatFunction = Callable[[Sequence[Any]], Leaves]
"""Maps all input leaves to all output leaves."""

PointFunction = Callable[[Leaves, Leaves], Groups]
"""Maps the inputs of one point, and its vectors or its extras, to groups of results."""

Specs = tuple[ArraySpec, ...]

FORWARD, REVERSE = differentiation_pb2.MODE_FORWARD, differentiation_pb2.MODE_REVERSE


def outputs_alone(f: FlatFunction, query: Query, point: Leaves, wrt: Sequence[int]) -> Callable[[Leaves], Leaves]:
    """The chosen outputs as a function of the inputs `wrt` alone."""

    def alone(chosen: Leaves) -> Leaves:
        leaves = list(point)
        for index, leaf in zip(wrt, chosen, strict=True):
            leaves[index] = leaf
        outputs = f(leaves)
        return tuple(outputs[index] for index in query.outputs)

    return alone


def scalar_alone(f: FlatFunction, query: Query, point: Leaves, wrt: Sequence[int]) -> Callable[[Leaves], Any]:
    """The one chosen scalar output as a function of the inputs `wrt` alone."""
    alone = outputs_alone(f, query, point, wrt)
    return lambda chosen: alone(chosen)[0]


def pick(leaves: Sequence[Any], indices: Sequence[int]) -> Leaves:
    """The leaves at these indices."""
    return tuple(leaves[index] for index in indices)


def value_and_gradient_of(scalar: Callable[[Leaves], Any], forward: bool) -> Callable[[Leaves], tuple[Any, Leaves]]:
    """What gives the value and the gradient of a scalar, in reverse or in forward mode."""
    if not forward:
        return jax.value_and_grad(scalar)

    def twice(chosen: Leaves) -> tuple[Any, Any]:
        value = scalar(chosen)
        return value, value

    def by_columns(chosen: Leaves) -> tuple[Any, Leaves]:
        gradient, value = jax.jacfwd(twice, has_aux=True)(chosen)
        return value, gradient

    return by_columns


def each(one: Callable[[Leaves], Leaves], stack: int | None) -> Callable[[Leaves], Leaves]:
    """What maps one vector, or each vector of a stack."""
    every: Callable[[Leaves], Leaves] = one if stack is None else jax.vmap(one)
    return every


def filled(
    wanted: Sequence[int], specs: Sequence[ArraySpec], given: Sequence[int], vectors: Leaves, stack: int | None
) -> Leaves:
    """The vectors for all `wanted` leaves: zero where none was given."""
    axes = () if stack is None else (stack,)
    found = dict(zip(given, vectors, strict=True))
    return tuple(
        found[index] if index in found else jnp.zeros(axes + specs[index].shape, specs[index].dtype) for index in wanted
    )


def value_specs(query: Query) -> Specs:
    """The chosen outputs' shapes and dtypes."""
    return pick(query.output_specs, query.outputs)


def input_specs(query: Query, indices: Sequence[int], stack: int | None = None) -> Specs:
    """Those of results shaped like inputs, or like stacks of them."""
    axes = () if stack is None else (stack,)
    return tuple(ArraySpec(axes + query.inputs[i].shape, query.inputs[i].dtype) for i in indices)


def output_specs(query: Query, axes: tuple[int, ...]) -> Specs:
    """Those of results shaped like the chosen outputs, with more axes before."""
    return tuple(ArraySpec(axes + spec.shape, spec.dtype) for spec in value_specs(query))


def matrix_dtype(query: Query) -> Any:
    """The dtype of a Jacobian or a Hessian as one matrix: the widest of all its rows and columns."""
    jacobian = query.operator == function_pb2.OPERATOR_JACOBIAN
    rows = value_specs(query) if jacobian else input_specs(query, query.wrt)
    every = rows + input_specs(query, query.columns or query.wrt)
    return functools.reduce(jnp.promote_types, (spec.dtype for spec in every))


def joined(leaves: Leaves, dtype: Any) -> Any:
    """All elements of all leaves, in this dtype."""
    return jnp.concatenate([leaf.reshape(-1).astype(dtype) for leaf in leaves])
