"""Points at which a function is checked: what the caller gave, and random elements for the rest."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from nablad.errors import FunctionFailed, InvalidOption
from nablad.tensors import Array
from nablad_server.functions.function import Function
from nablad_server.functions.signature import ArraySpec, TensorSpec

SMALLEST_SIZE = 3
"""Symbols of which nothing is known are so large, or a little larger: all different."""

WIDE = 1e3
"""Intervals of positive numbers whose ends are so far apart, in proportion, are sampled evenly in their logarithm."""


def sizes_of(function: Function, known: Mapping[str, int], asked: Mapping[str, int]) -> dict[str, int]:
    """A size for each symbol: as given inputs have it, as asked, as the function declares, or a small one.

    Raises:
        InvalidOption: what is asked contradicts what is given, is no size, or is about no symbol of the function's.
    """
    symbols = function.signature.symbols
    for symbol, size in asked.items():
        if symbol not in symbols:
            raise InvalidOption(
                f"{function.reference} has no symbol {symbol[:100]!r}; its symbols are {list(symbols)}", field="sizes"
            )
        if size < 1 or known.get(symbol, size) != size:
            given = f"; the inputs given have {known[symbol]}" if symbol in known else ""
            raise InvalidOption(f"size {symbol} = {size}; expected 1 or more{given}", field="sizes")
    free = {symbol: SMALLEST_SIZE + index for index, symbol in enumerate(symbols)}
    return free | dict(function.sizes) | dict(asked) | dict(known)


def specs_of(
    function: Function, missing: Iterable[int], sizes: Mapping[str, int], dtype: np.dtype[Any]
) -> tuple[ArraySpec, ...]:
    """Shape and dtype of each input at these sizes; a dtype that an input does not take becomes one that it does.

    Raises:
        InvalidOption: one of the missing inputs takes any shape, which cannot be sampled.
    """
    for index in missing:
        spec = function.signature.inputs[index]
        if spec.shape is None or None in spec.shape:
            raise InvalidOption(
                f"input {spec.name!r} of {function.reference} has no declared shape; give it with the request",
                field="inputs",
            )
    return function.signature.at(sizes, dtype)


def sampled(function: Function, spec: TensorSpec, array: ArraySpec, points: int, random: np.random.Generator) -> Array:
    """Random elements for one input, [points, ...].

    Floating-point and complex numbers come from the declared domain, or else from the standard normal distribution;
    integers from the domain, or else from 0 and 1.

    Raises:
        FunctionFailed: the function that the domain is raises an error, or gives another shape.
    """
    shape = (points, *array.shape)
    if callable(spec.domain):
        try:
            made = [np.asarray(spec.domain(random, array.shape)) for _ in range(points)]
            return np.stack(made).astype(array.dtype).reshape(shape)
        except Exception as error:  # whatever the function's own code raises
            raise FunctionFailed(
                f"the domain of input {spec.name!r} of {function.reference} gave no elements of the shape "
                f"{list(array.shape)}: {type(error).__name__}: {error}",
                metadata={"function": function.reference, "exception": type(error).__name__},
            ) from error
    if array.dtype.kind == "b":
        return random.integers(0, 2, shape).astype(bool)
    if array.dtype.kind in "iu":
        lowest, highest = spec.domain or (0, 1)
        return random.integers(int(lowest), int(highest), shape, endpoint=True).astype(array.dtype)
    if spec.domain is not None:
        return _between(*spec.domain, shape, random).astype(array.dtype)
    elements = random.standard_normal(shape)
    if array.dtype.kind == "c":
        return (elements + 1j * random.standard_normal(shape)).astype(array.dtype)
    return elements.astype(array.dtype)


def _between(lowest: float, highest: float, shape: Sequence[int], random: np.random.Generator) -> Array:
    if lowest > 0 and highest / lowest > WIDE:
        return np.exp(random.uniform(np.log(lowest), np.log(highest), shape))
    return random.uniform(lowest, highest, shape)
