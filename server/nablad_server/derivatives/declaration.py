"""Patterns that were declared where a function was registered, cut down to what is asked for."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from nablad.errors import FunctionFailed
from nablad.tensors import Array
from nablad.v1 import function_pb2
from nablad_server.derivatives.query import Query


def declared_elements(query: Query) -> tuple[Array, Array] | None:
    """Rows and columns of the elements of the matrix that a query is about; None if nothing is declared.

    What is declared is about all inputs and outputs that can be differentiated, in the signature's order: see
    `nablad_server.functions.function.Declare`.

    Raises:
        FunctionFailed: it does not fit the shapes.
    """
    jacobian = query.operator == function_pb2.OPERATOR_JACOBIAN
    name = "jacobian" if jacobian else "hessian"
    declare = query.function.sparsity.get(name)
    if declare is None:
        return None
    specs = list(zip(query.function.signature.inputs, query.inputs, strict=True))
    sizes = query.function.signature.sizes(query.inputs)
    inputs = {index: array.size for index, (spec, array) in enumerate(specs) if spec.differentiable}
    outputs = {index: spec.size for index, spec in enumerate(query.output_specs) if spec.differentiable}
    down, chosen = (outputs, query.outputs) if jacobian else (inputs, query.wrt)
    rows, columns = _checked(query, name, lambda: declare(sizes), (sum(down.values()), sum(inputs.values())))
    row_of, column_of = _renumbered(down, chosen), _renumbered(inputs, query.wrt)
    kept = (row_of[rows] >= 0) & (column_of[columns] >= 0)
    return row_of[rows[kept]], column_of[columns[kept]]


def _checked(
    query: Query, name: str, declare: Callable[[], tuple[ArrayLike, ArrayLike]], shape: tuple[int, int]
) -> tuple[Array, Array]:
    try:
        given = [np.asarray(indices) for indices in declare()]
        if len(given) != 2 or given[0].ndim != 1 or given[0].shape != given[1].shape:
            raise ValueError(f"it gave {[array.shape for array in given]}; expected as many rows as columns, (k,) each")
        for indices, size, what in zip(given, shape, ("row", "column"), strict=True):
            whole = np.issubdtype(indices.dtype, np.integer)
            if indices.size and not (whole and 0 <= indices.min() <= indices.max() < size):
                raise ValueError(f"{what} indices are whole numbers from 0 to {size - 1}; got others")
    except Exception as error:
        raise FunctionFailed(
            f"the {name} pattern declared for {query.function.reference} does not fit: {type(error).__name__}: {error}",
            metadata={"function": query.function.reference},
        ) from error
    return given[0].astype(np.int64), given[1].astype(np.int64)


def _renumbered(sizes: Mapping[int, int], chosen: Sequence[int]) -> Array:
    """For each element of all inputs (or outputs) its number among those of the chosen ones; -1 if it is in none."""
    firsts: dict[int, int] = {}
    total = 0
    for index in chosen:
        firsts[index] = total
        total += sizes[index]
    parts = [np.arange(size) + firsts[index] if index in firsts else np.full(size, -1) for index, size in sizes.items()]
    return np.concatenate([*parts, np.zeros(0, np.int64)]).astype(np.int64)
