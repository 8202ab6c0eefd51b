"""Which elements of a Jacobian or a Hessian can be other than zero, found out from the operations of the function.

Detection and coloring are asdex's (Hill, Dalle, Montoison 2025, arXiv:2501.17737; Dalle, Montoison 2025,
arXiv:2505.07308). What is looked at is the product of the matrix with a vector, as it will be computed: the elements of
the vector that an element of the product depends on are the columns of its row. So rules that a function brings along
for its derivatives count, and values do not.
"""

import errno
import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import numpy as np

from nablad.errors import NabladError, ResultTooLarge
from nablad.tensors import Array
from nablad.v1 import differentiation_pb2, function_pb2
from nablad_server.derivatives.declaration import declared_elements
from nablad_server.derivatives.memory import inner_jaxprs
from nablad_server.derivatives.operators.curvature import hessian_at
from nablad_server.derivatives.operators.first import is_forward
from nablad_server.derivatives.operators.leaves import FORWARD, REVERSE, Leaves, outputs_alone, pick
from nablad_server.derivatives.pattern import (
    DECLARED,
    DENSE,
    DETECTED,
    Axis,
    Coloring,
    Pattern,
    ordered,
    places_of,
)
from nablad_server.derivatives.query import Query
from nablad_server.functions.precision import precision_of

MAX_DENSE = 1 << 22
"""Dense patterns have no more elements: whoever asks for a sparse matrix does not expect them."""

COMPILED_FUNCTIONS = 32
"""What colors patterns has fewer functions that compile themselves, and save that."""

NO_ROOM = (errno.ENOSPC, errno.EDQUOT)

_Product = Callable[[Leaves, Leaves], Leaves]
"""The inputs and a vector → the matrix, or its transpose, times the vector."""


class _Found(NamedTuple):
    """The elements that are kept, in order, and in which ways products can be made: by columns first, by rows first."""

    rows: Array
    columns: Array
    ways: tuple[bool, ...]


@functools.cache
def prepare() -> None:
    """Loads what finds and colors patterns, and has it compile itself: a second or two, which few servers need."""
    import asdex  # noqa: PLC0415 - for that reason

    tiny = asdex.SparsityPattern.from_coo([0, 0, 1], [0, 1, 0], (2, 2))
    for color in (asdex.color_symmetric, asdex.color_rows, asdex.color_cols):
        for _ in range(COMPILED_FUNCTIONS):
            try:
                color(tiny)
                break
            except OSError as error:
                # The disk of its cache is full. What was compiled is there, only not saved: it gets one further.
                if error.errno not in NO_ROOM:
                    raise


def find(query: Query) -> Pattern:
    """The pattern of the matrix that a query is about, colored for its mode. Takes from milliseconds to minutes.

    Raises:
        ResultTooLarge: nothing could be found out, and the matrix is large.
        FunctionFailed: the pattern declared with the function does not fit its shapes.
    """
    started = time.perf_counter()
    found = _declared(query)
    source = DETECTED if found is None else DECLARED
    if found is None and query.function.foreign is not None:
        return dense(query, f"only JAX's operations are looked into, and it is computed by {query.function.engine}")
    try:
        if found is None:
            found = _jacobian(query) if _is_jacobian(query) else _hessian(query)
        coloring = _colored(query, found)
    except NabladError:
        raise
    except Exception as error:  # asdex knows some operations only, and JAX cannot differentiate all
        return dense(query, _words(error))
    pattern = Pattern(*axes_of(query), found.rows, found.columns, source, coloring)
    return replace(pattern, seconds=time.perf_counter() - started)


def dense(query: Query, reason: str) -> Pattern:
    """The pattern that keeps every element.

    Raises:
        ResultTooLarge: that are too many.
    """
    rows, columns = query.matrix_shape
    if rows * columns > MAX_DENSE:
        raise ResultTooLarge(
            f"{query}: no sparsity could be found, because {reason}. A dense matrix in its place has {rows} × {columns}"
            f" elements; it may have {MAX_DENSE}. Declare the pattern where the function is registered, with "
            "@function(sparsity=...), or use products with vectors or a stream of rows",
            metadata={"rows": str(rows), "columns": str(columns), "limit": str(MAX_DENSE)},
        )
    by_rows = _is_jacobian(query) and not is_forward(query)
    count = rows if by_rows else columns
    coloring = Coloring(count, by_rows, np.arange(count, dtype=np.int32), None)
    row_indices = np.repeat(np.arange(rows, dtype=np.int32), columns)
    column_indices = np.tile(np.arange(columns, dtype=np.int32), rows)
    return Pattern(*axes_of(query), row_indices, column_indices, DENSE, coloring, reason)


def axes_of(query: Query) -> tuple[tuple[Axis, ...], tuple[Axis, ...]]:
    """What the rows and the columns of the matrix are."""
    names = [spec.name for spec in query.function.signature.inputs]
    inputs = [Axis(name, spec.shape) for name, spec in zip(names, query.inputs, strict=True)]
    columns = tuple(inputs[index] for index in query.columns or query.wrt)
    if not _is_jacobian(query):
        return tuple(inputs[index] for index in query.wrt), columns
    outputs = [Axis(name, spec.shape) for name, spec in query.function.outputs_at(query.inputs)]
    return tuple(outputs[index] for index in query.outputs), columns


def _is_jacobian(query: Query) -> bool:
    return query.operator == function_pb2.OPERATOR_JACOBIAN


def _hessian(query: Query) -> _Found:
    """Forward over forward is looked at last: it has as many operations as there are inputs."""

    def product(mode: differentiation_pb2.Mode.ValueType) -> _Product:
        return lambda point, vector: hessian_at(query.function.flat, replace(query, mode=mode), point)[2](vector)

    like = [query.inputs[index] for index in query.wrt]
    try:
        mode = query.mode if query.mode == REVERSE else differentiation_pb2.MODE_AUTO
        rows, columns = _dependences(query, product(mode), like)
    except Exception:
        if query.mode != FORWARD:
            raise
        rows, columns = _dependences(query, product(FORWARD), like)
    return _Found(*ordered(rows, columns, query.matrix_shape, symmetric=True), (False,))


def _jacobian(query: Query) -> _Found:
    """By columns, that is, in forward mode, if the function can be differentiated so; else by rows."""
    failed: Exception | None = None
    if query.mode != REVERSE:
        try:
            rows, columns = _dependences(query, _pushed(query), [query.inputs[index] for index in query.wrt])
        except Exception as error:
            if query.mode == FORWARD:
                raise
            failed = error
        else:
            both = query.mode != FORWARD and _traces(query, by_rows=True)
            ways = (False, True) if both else (False,)
            return _Found(*ordered(rows, columns, query.matrix_shape, symmetric=False), ways)
    try:
        columns, rows = _dependences(query, _pulled(query), [query.output_specs[index] for index in query.outputs])
    except Exception as error:
        if failed is None:
            raise
        raise failed from error
    return _Found(*ordered(rows, columns, query.matrix_shape, symmetric=False), (True,))


def _pushed(query: Query) -> _Product:
    """Jacobian times vector."""

    def product(point: Leaves, vector: Leaves) -> Leaves:
        alone = outputs_alone(query.function.flat, query, point, query.wrt)
        pushed: Leaves = jax.jvp(alone, (pick(point, query.wrt),), (vector,))[1]
        return pushed

    return product


def _pulled(query: Query) -> _Product:
    """Transposed Jacobian times vector."""

    def product(point: Leaves, vector: Leaves) -> Leaves:
        _, pullback = jax.vjp(outputs_alone(query.function.flat, query, point, query.wrt), pick(point, query.wrt))
        pulled: Leaves = pullback(vector)[0]
        return pulled

    return product


def _traces(query: Query, *, by_rows: bool) -> bool:
    """Whether JAX can differentiate the function in reverse mode, by rows, or in forward mode."""
    like = pick(query.output_specs, query.outputs) if by_rows else pick(query.inputs, query.wrt)
    inputs, vectors = (
        tuple(jax.ShapeDtypeStruct(spec.shape, spec.dtype) for spec in specs) for specs in (query.inputs, like)
    )
    try:
        with precision_of(query.inputs):
            closed = jax.make_jaxpr(_pulled(query) if by_rows else _pushed(query))(inputs, vectors)
    except Exception:  # loops of unknown length, and whatever else has no such rule
        return False
    return not _has(closed.jaxpr, "custom_lin")  # what JAX puts where a rule is for reverse mode alone


def _has(jaxpr: Any, name: str) -> bool:
    return any(
        equation.primitive.name == name or any(_has(inner, name) for inner in inner_jaxprs(equation))
        for equation in jaxpr.eqns
    )


def _dependences(query: Query, product: _Product, like: Sequence[Any]) -> tuple[Array, Array]:
    """For each element of a product with a vector, the elements of the vector that it depends on."""
    import asdex  # noqa: PLC0415 - see `prepare`

    point, vector = (tuple(np.zeros(spec.shape, spec.dtype) for spec in specs) for specs in (query.inputs, like))
    with precision_of(query.inputs):
        found = asdex.jacobian_sparsity(product, point, vector, argnums=1)
    return found.rows, found.cols


def _declared(query: Query) -> _Found | None:
    """The pattern that was declared with the function; None if there is none."""
    elements = declared_elements(query)
    if elements is None:
        return None
    if not _is_jacobian(query):
        return _Found(*ordered(*elements, query.matrix_shape, symmetric=True), (False,))
    found = ordered(*elements, query.matrix_shape, symmetric=False)
    if query.mode in (FORWARD, REVERSE):
        return _Found(*found, (query.mode == REVERSE,))
    return _Found(*found, tuple(way for way in (False, True) if _traces(query, by_rows=way)) or (False,))


def _colored(query: Query, found: _Found) -> Coloring:
    """The coloring that takes the fewest products; of equals, that by columns."""
    if not len(found.rows):
        way = found.ways[0]
        lines = query.matrix_shape[0 if way else 1]
        return Coloring(0, way, np.full(lines, -1, np.int32), np.zeros(0, np.int32))
    colorings = [_one_coloring(query, found, by_rows) for by_rows in found.ways]
    return min(colorings, key=lambda coloring: coloring.count)


def _one_coloring(query: Query, found: _Found, by_rows: bool) -> Coloring:
    import asdex  # noqa: PLC0415 - see `prepare`

    height, width = query.matrix_shape
    pattern = asdex.SparsityPattern.from_coo(found.rows, found.columns, (height, width))
    if not _is_jacobian(query):
        colors, count, _ = asdex.color_symmetric(pattern)
        places = places_of(found.columns, found.rows, colors, (count, height), symmetric=True)
    elif by_rows:
        colors, count = asdex.color_rows(pattern)
        places = places_of(found.rows, found.columns, colors, (count, width))
    else:
        colors, count = asdex.color_cols(pattern)
        places = places_of(found.columns, found.rows, colors, (count, height))
    return Coloring(int(count), by_rows, np.asarray(colors, np.int32), places)


def _words(error: Exception) -> str:
    text = " ".join(str(error).split()).partition(" Please help out")[0][:300]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
