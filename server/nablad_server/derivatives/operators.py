"""Every operator as a few lines of JAX, for one point.

An operator is a row of OPERATORS: `build(f, query)` gives the function of one point, from (inputs, vectors) to groups
of arrays in the order in which the response lists them; `results(query)` gives the shapes of the same groups without
tracing, so that a result too large is refused before any work.

`f` maps the tuple of input leaves to the tuple of output leaves. "The inputs alone" below means the function of the
`wrt` inputs with the others held at the point.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.jet import jet

from nablad.errors import InvalidOption
from nablad.v1 import differentiation_pb2, function_pb2
from nablad_server.derivatives.query import Query
from nablad_server.functions.signature import ArraySpec

Leaves = tuple[Any, ...]
Groups = tuple[Leaves, ...]
FlatFunction = Callable[[Sequence[Any]], Leaves]
PointFunction = Callable[[Leaves, Leaves], Groups]

FORWARD, REVERSE = differentiation_pb2.MODE_FORWARD, differentiation_pb2.MODE_REVERSE
MAX_ORDER = 16
MAX_NESTED_ORDER = 6
"""Nesting first derivatives k times costs about 2^k; Taylor arithmetic costs k²."""


class Operator(NamedTuple):
    """One row: how to compute it, and the shapes of what it gives."""

    build: Callable[[FlatFunction, Query], PointFunction]
    results: Callable[[Query], tuple[tuple[ArraySpec, ...], ...]]


def _alone(f: FlatFunction, query: Query, point: Leaves, wrt: Sequence[int]) -> Callable[[Leaves], Leaves]:
    """The chosen outputs as a function of the inputs `wrt` alone."""

    def alone(chosen: Leaves) -> Leaves:
        leaves = list(point)
        for index, leaf in zip(wrt, chosen, strict=True):
            leaves[index] = leaf
        outputs = f(leaves)
        return tuple(outputs[index] for index in query.outputs)

    return alone


def _scalar(f: FlatFunction, query: Query, point: Leaves, wrt: Sequence[int]) -> Callable[[Leaves], Any]:
    """The one chosen scalar output as a function of the inputs `wrt` alone."""
    alone = _alone(f, query, point, wrt)
    return lambda chosen: alone(chosen)[0]


def _pick(leaves: Sequence[Any], indices: Sequence[int]) -> Leaves:
    return tuple(leaves[index] for index in indices)


def _value_and_gradient(scalar: Callable[[Leaves], Any], forward: bool) -> Callable[[Leaves], tuple[Any, Leaves]]:
    if not forward:
        return jax.value_and_grad(scalar)

    def twice(chosen: Leaves) -> tuple[Any, Any]:
        value = scalar(chosen)
        return value, value

    def by_columns(chosen: Leaves) -> tuple[Any, Leaves]:
        gradient, value = jax.jacfwd(twice, has_aux=True)(chosen)
        return value, gradient

    return by_columns


def _evaluate(f: FlatFunction, query: Query) -> PointFunction:
    return lambda point, _: (_pick(f(point), query.outputs),)


def _gradient(f: FlatFunction, query: Query) -> PointFunction:
    def gradient(point: Leaves, _: Leaves) -> Groups:
        scalar = _scalar(f, query, point, query.wrt)
        value, found = _value_and_gradient(scalar, query.mode == FORWARD)(_pick(point, query.wrt))
        return (value,), found

    return gradient


def _jacobian(f: FlatFunction, query: Query) -> PointFunction:
    columns = sum(query.inputs[index].size for index in query.wrt)
    rows = sum(query.output_specs[index].size for index in query.outputs)
    forward = query.mode == FORWARD or (query.mode != REVERSE and columns <= rows)
    transform = jax.jacfwd if forward else jax.jacrev

    def jacobian(point: Leaves, _: Leaves) -> Groups:
        alone = _alone(f, query, point, query.wrt)

        def twice(chosen: Leaves) -> tuple[Leaves, Leaves]:
            values = alone(chosen)
            return values, values

        blocks, values = transform(twice, has_aux=True)(_pick(point, query.wrt))
        return values, tuple(block for row in blocks for block in row)

    return jacobian


def _hessian(f: FlatFunction, query: Query) -> PointFunction:
    if query.diagonal:
        return _hessian_diagonal(f, query)
    outer = jax.jacrev if query.mode == REVERSE else jax.jacfwd

    def hessian(point: Leaves, _: Leaves) -> Groups:
        def rows(columns: Leaves) -> tuple[Leaves, tuple[Any, Leaves]]:
            moved = list(point)
            for index, leaf in zip(query.columns, columns, strict=True):
                moved[index] = leaf
            scalar = _scalar(f, query, tuple(moved), query.wrt)
            value, gradient = _value_and_gradient(scalar, query.mode == FORWARD)(_pick(moved, query.wrt))
            return gradient, (value, gradient)

        blocks, (value, gradient) = outer(rows, has_aux=True)(_pick(point, query.columns))
        return (value,), gradient, tuple(block for row in blocks for block in row)

    return hessian


def _hessian_diagonal(f: FlatFunction, query: Query) -> PointFunction:
    def diagonal(point: Leaves, _: Leaves) -> Groups:
        chosen = _pick(point, query.wrt)
        scalar = _scalar(f, query, point, query.wrt)
        value, gradient = _value_and_gradient(scalar, query.mode == FORWARD)(chosen)
        gradient_of = lambda moved: _value_and_gradient(scalar, query.mode == FORWARD)(moved)[1]

        def element(which: int, position: Any) -> Any:
            tangent = [jnp.zeros_like(leaf) for leaf in chosen]
            tangent[which] = tangent[which].reshape(-1).at[position].set(1).reshape(chosen[which].shape)
            product = _product(gradient_of, chosen, tuple(tangent), query.mode == REVERSE)
            return product[which].reshape(-1)[position]

        # One row of the Hessian lives at a time: lax.map, not vmap.
        diagonals = tuple(
            leaf
            if leaf.size == 0
            else jax.lax.map(lambda position, which=which: element(which, position), jnp.arange(leaf.size)).reshape(
                leaf.shape
            )
            for which, leaf in enumerate(chosen)
        )
        return (value,), gradient, diagonals

    return diagonal


def _product(gradient: Callable[[Leaves], Leaves], chosen: Leaves, tangent: Leaves, reverse: bool) -> Leaves:
    """Hessian times tangent: the derivative of the gradient along it, or the gradient of gradient · tangent."""
    product: Leaves
    if reverse:
        _, pullback = jax.vjp(gradient, chosen)
        (product,) = pullback(tangent)  # the Hessian is symmetric
    else:
        _, product = jax.jvp(gradient, (chosen,), (tangent,))
    return product


def _hvp(f: FlatFunction, query: Query) -> PointFunction:
    def hvp(point: Leaves, vectors: Leaves) -> Groups:
        chosen = _pick(point, query.wrt)
        scalar = _scalar(f, query, point, query.wrt)
        value_and_gradient = _value_and_gradient(scalar, query.mode == FORWARD)
        tangent = _filled(query.wrt, query.inputs, query.vectors, vectors, query.stack)
        if query.stack is None and query.mode != REVERSE:
            (value, gradient), (_, product) = jax.jvp(value_and_gradient, (chosen,), (tangent,))
            return (value,), gradient, product
        value, gradient = value_and_gradient(chosen)
        one = lambda vector: _product(lambda moved: value_and_gradient(moved)[1], chosen, vector, query.mode == REVERSE)
        return (value,), gradient, _each(one, query.stack)(tangent)

    return hvp


def _jvp(f: FlatFunction, query: Query) -> PointFunction:
    def jvp(point: Leaves, vectors: Leaves) -> Groups:
        alone = _alone(f, query, point, query.vectors)
        chosen = _pick(point, query.vectors)
        if query.stack is None:
            return jax.jvp(alone, (chosen,), (vectors,))
        values, push = jax.linearize(alone, chosen)
        return values, _each(push, query.stack)(vectors)

    return jvp


def _vjp(f: FlatFunction, query: Query) -> PointFunction:
    def vjp(point: Leaves, vectors: Leaves) -> Groups:
        values, pullback = jax.vjp(_alone(f, query, point, query.wrt), _pick(point, query.wrt))
        one = lambda cotangent: pullback(cotangent)[0]
        return values, _each(one, query.stack)(vectors)

    return vjp


def _directional_derivative(f: FlatFunction, query: Query) -> PointFunction:
    def directional(point: Leaves, vectors: Leaves) -> Groups:
        scalar = _scalar(f, query, point, query.vectors)
        value, gradient = jax.value_and_grad(scalar)(_pick(point, query.vectors))
        unit, _ = _normalised(vectors)
        ascent, rate = _normalised(gradient)
        derivative = sum(jnp.sum(part * along) for part, along in zip(gradient, unit, strict=True))
        return (value,), (derivative,), ascent, (rate,)

    return directional


def _normalised(vector: Leaves) -> tuple[Leaves, Any]:
    """The vector over its Euclidean length, and the length. A zero vector stays zero.

    Scaled by the largest element first, so that squares neither overflow nor vanish.
    """
    largest = jnp.max(jnp.stack([jnp.max(jnp.abs(part), initial=0) for part in vector]))
    scale = jnp.where(largest > 0, largest, 1)
    scaled = tuple(part / scale for part in vector)
    length = jnp.sqrt(sum(jnp.sum(part * part) for part in scaled))
    divisor = jnp.where(length > 0, length, 1)
    return tuple((part / divisor).astype(part.dtype) for part in scaled), length * scale


def _derivative(f: FlatFunction, query: Query) -> PointFunction:
    def derivative(point: Leaves, _: Leaves) -> Groups:
        (x,) = _pick(point, query.wrt)
        alone = lambda moved: _alone(f, query, point, query.wrt)((moved,))
        if query.order <= 2:  # as cheap, and right where Taylor rules go through a logarithm, such as x² at 0
            return _nested(alone, x, query.order)
        try:
            values, orders = _taylor(alone, x, query.order)
        except Exception as error:  # jet raises errors of many types where it has no rule
            if query.order > MAX_NESTED_ORDER:
                raise InvalidOption(
                    f"{query.function.reference} has no Taylor rule for one of its operations ({_first_line(error)}), "
                    f"so that orders above {MAX_NESTED_ORDER} cost too much; got order {query.order}",
                    field="order",
                ) from error
            values, orders = _nested(alone, x, query.order)
        return values, orders

    return derivative


def _taylor(alone: Callable[[Any], Leaves], x: Any, order: int) -> tuple[Leaves, Leaves]:
    """All orders at once by Taylor-mode automatic differentiation (Bettencourt, Johnson, Duvenaud 2019)."""
    direction = [jnp.ones_like(x)] + [jnp.zeros_like(x)] * (order - 1)
    values, series = jet(alone, (x,), (direction,))
    return values, tuple(
        jnp.stack([jnp.broadcast_to(term, value.shape).astype(value.dtype) for term in terms])
        for value, terms in zip(values, series, strict=True)
    )


def _nested(alone: Callable[[Any], Leaves], x: Any, order: int) -> tuple[Leaves, Leaves]:
    """Order by order: the derivative of the derivative."""
    derivatives, current = [], alone
    for _ in range(order):
        current = jax.jacfwd(current)
        derivatives.append(current(x))
    return alone(x), tuple(jnp.stack(terms) for terms in zip(*derivatives, strict=True))


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _each(one: Callable[[Leaves], Leaves], stack: int | None) -> Callable[[Leaves], Leaves]:
    """What maps one vector, or each vector of a stack."""
    every: Callable[[Leaves], Leaves] = one if stack is None else jax.vmap(one)
    return every


def _filled(
    wanted: Sequence[int], specs: Sequence[ArraySpec], given: Sequence[int], vectors: Leaves, stack: int | None
) -> Leaves:
    """The vectors for all `wanted` leaves: zero where none was given."""
    axes = () if stack is None else (stack,)
    found = dict(zip(given, vectors, strict=True))
    return tuple(
        found[index] if index in found else jnp.zeros(axes + specs[index].shape, specs[index].dtype) for index in wanted
    )


def _values(query: Query) -> tuple[ArraySpec, ...]:
    return _pick(query.output_specs, query.outputs)


def _like_inputs(query: Query, indices: Sequence[int], stack: int | None = None) -> tuple[ArraySpec, ...]:
    axes = () if stack is None else (stack,)
    return tuple(ArraySpec(axes + query.inputs[i].shape, query.inputs[i].dtype) for i in indices)


def _like_outputs(query: Query, axes: tuple[int, ...]) -> tuple[ArraySpec, ...]:
    return tuple(ArraySpec(axes + spec.shape, spec.dtype) for spec in _values(query))


def _jacobian_results(query: Query) -> tuple[tuple[ArraySpec, ...], ...]:
    blocks = tuple(
        ArraySpec(row.shape + column.shape, jnp.promote_types(row.dtype, column.dtype))
        for row in _values(query)
        for column in _like_inputs(query, query.wrt)
    )
    return _values(query), blocks


def _hessian_results(query: Query) -> tuple[tuple[ArraySpec, ...], ...]:
    rows = _like_inputs(query, query.wrt)
    if query.diagonal:
        return _values(query), rows, rows
    columns = _like_inputs(query, query.columns)
    blocks = tuple(
        ArraySpec(row.shape + column.shape, jnp.promote_types(row.dtype, column.dtype))
        for row in rows
        for column in columns
    )
    return _values(query), rows, blocks


def _stack(query: Query) -> tuple[int, ...]:
    return () if query.stack is None else (query.stack,)


OPERATORS: dict[int, Operator] = {
    function_pb2.OPERATOR_EVALUATE: Operator(_evaluate, lambda q: (_values(q),)),
    function_pb2.OPERATOR_GRADIENT: Operator(_gradient, lambda q: (_values(q), _like_inputs(q, q.wrt))),
    function_pb2.OPERATOR_JACOBIAN: Operator(_jacobian, _jacobian_results),
    function_pb2.OPERATOR_HESSIAN: Operator(_hessian, _hessian_results),
    function_pb2.OPERATOR_HVP: Operator(
        _hvp, lambda q: (_values(q), _like_inputs(q, q.wrt), _like_inputs(q, q.wrt, q.stack))
    ),
    function_pb2.OPERATOR_JVP: Operator(_jvp, lambda q: (_values(q), _like_outputs(q, _stack(q)))),
    function_pb2.OPERATOR_VJP: Operator(_vjp, lambda q: (_values(q), _like_inputs(q, q.wrt, q.stack))),
    function_pb2.OPERATOR_DIRECTIONAL_DERIVATIVE: Operator(
        _directional_derivative, lambda q: (_values(q), _values(q), _like_inputs(q, q.vectors), _values(q))
    ),
    function_pb2.OPERATOR_DERIVATIVE: Operator(_derivative, lambda q: (_values(q), _like_outputs(q, (q.order,)))),
}


def point_function(query: Query) -> PointFunction:
    """The function of one point that a query asks for, ready to be traced."""
    compute = OPERATORS[query.operator].build(query.function.flat, query)

    def converted(point: Leaves, vectors: Leaves) -> Groups:
        groups = compute(point, vectors)
        return tuple(
            tuple(jnp.asarray(array, spec.dtype) for array, spec in zip(group, specs, strict=True))
            for group, specs in zip(groups, result_specs(query), strict=True)
        )

    return converted


def result_specs(query: Query) -> tuple[tuple[ArraySpec, ...], ...]:
    """The shapes and dtypes of the result for one point, known without tracing.

    Values have their output's dtype, derivatives with respect to one input that input's, and blocks the wider of their
    row's and column's; what JAX promotes differently from mode to mode is converted.
    """
    return OPERATORS[query.operator].results(query)


def result_bytes(query: Query) -> int:
    """The bytes of the result for one point."""
    groups = result_specs(query)
    return sum(spec.bytes for group in groups for spec in group)
