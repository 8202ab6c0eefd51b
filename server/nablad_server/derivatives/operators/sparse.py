"""Sparse Jacobians and Hessians: the elements that a pattern keeps, from one product for each of its colors."""

import jax

from nablad.v1 import function_pb2
from nablad_server.derivatives.operators.compression import elements
from nablad_server.derivatives.operators.curvature import hessian_at
from nablad_server.derivatives.operators.leaves import (
    FlatFunction,
    Groups,
    Leaves,
    PointFunction,
    Specs,
    input_specs,
    matrix_dtype,
    outputs_alone,
    pick,
    value_specs,
)
from nablad_server.derivatives.pattern import Pattern
from nablad_server.derivatives.query import Query
from nablad_server.functions.signature import ArraySpec


def sparse_matrix(f: FlatFunction, query: Query) -> PointFunction:
    """The values, of a Hessian the gradient, and the elements that the query's pattern keeps, in its order."""
    pattern = pattern_of(query)
    dtype = matrix_dtype(query)
    if query.operator == function_pb2.OPERATOR_HESSIAN:

        def hessian(point: Leaves, _: Leaves) -> Groups:
            value, gradient, product = hessian_at(f, query, point)
            return (value,), gradient, (elements(product, pick(point, query.wrt), pattern, dtype),)

        return hessian

    def jacobian(point: Leaves, _: Leaves) -> Groups:
        alone, chosen = outputs_alone(f, query, point, query.wrt), pick(point, query.wrt)
        if pattern.coloring.by_rows:
            values, pullback = jax.vjp(alone, chosen)
            return values, (elements(lambda vector: pullback(vector)[0], values, pattern, dtype),)
        values, push = jax.linearize(alone, chosen)
        return values, (elements(push, chosen, pattern, dtype),)

    return jacobian


def sparse_results(query: Query) -> tuple[Specs, ...]:
    """The shapes of what `sparse_matrix` gives: the elements have the widest dtype of all rows and columns."""
    hessian = query.operator == function_pb2.OPERATOR_HESSIAN
    columns = input_specs(query, query.wrt)
    found = (ArraySpec((pattern_of(query).nonzeros,), matrix_dtype(query)),)
    return (value_specs(query), columns, found) if hessian else (value_specs(query), found)


def pattern_of(query: Query) -> Pattern:
    """The pattern of a query that has one. Raises ValueError for another."""
    if query.pattern is None:
        raise ValueError(f"{query} has no pattern; find it first")
    return query.pattern
