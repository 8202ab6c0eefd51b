"""The catalogue in bad units: every function with inputs, outputs or single elements 1e-8 to 1e8 times as large.

The derivatives are those of the catalogue times such factors, and right.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nablad_server import TensorSpec, function
from nablad_server.functions.registration import build
from nablad_server.functions.sources import builtin

UNITS: dict[str, tuple[float | None, float]] = {
    "tiny_inputs": (1e-8, 1.0),
    "small_inputs": (1e-4, 1.0),
    "large_inputs": (1e4, 1.0),
    "huge_inputs": (1e8, 1.0),
    "tiny_outputs": (1.0, 1e-8),
    "huge_outputs": (1.0, 1e8),
    "uneven_inputs": (None, 1.0),
}
"""The sizes of inputs and outputs; None: the elements of each input have sizes from 1e-8 to 1e8."""


def in_units(call: Callable[..., Any], name: str) -> Callable[..., Any]:
    """The function with its floating-point inputs and outputs in other units, marked for registration."""
    inputs, outputs = UNITS[name]
    signature = build(call, "corpus").signature

    def natural(leaf: Any) -> Any:
        array = jnp.asarray(leaf)
        return array / jnp.asarray(_sizes(array.shape, inputs), array.dtype) if _floating(array) else leaf

    def scaled(*arguments: Any) -> Any:
        result = call(*jax.tree.map(natural, arguments))
        return jax.tree.map(lambda leaf: leaf * jnp.asarray(outputs, leaf.dtype) if _floating(leaf) else leaf, result)

    named = ", ".join(signature.arguments)
    with_names = eval(f"lambda {named}: scaled({named})", {"scaled": scaled})  # noqa: S307 - the catalogue's own names
    marked: Callable[..., Any] = function(
        name=f"{call.__name__}_{name}",
        inputs=dict(zip(signature.arguments, signature.unflatten(signature.inputs), strict=True)),
        domain={spec.name: _domain(spec, inputs) for spec in signature.inputs if _domain(spec, inputs) is not None},
    )(with_names)
    return marked


def _domain(spec: TensorSpec, inputs: float | None) -> Any:
    """The domain of an input in its new units."""
    if not spec.differentiable:
        return spec.domain

    def sample(random: np.random.Generator, shape: tuple[int, ...]) -> Any:
        if callable(spec.domain):
            elements = spec.domain(random, shape)
        elif spec.domain is None:
            elements = random.standard_normal(shape)
        else:
            elements = random.uniform(*spec.domain, shape)
        return elements * _sizes(shape, inputs)

    return sample


def _sizes(shape: tuple[int, ...], inputs: float | None) -> Any:
    """The sizes of an input's elements: powers of two, so that changing units rounds nothing."""
    count = int(np.prod(shape))
    exponents = np.linspace(-8, 8, count) if inputs is None else np.full(count, np.log10(inputs))
    return np.exp2(np.round(exponents * np.log2(10))).reshape(shape)


def _floating(leaf: Any) -> bool:
    return bool(jnp.issubdtype(jnp.asarray(leaf).dtype, jnp.floating))


# Served by name, as `nablad serve` finds what a file defines.
globals().update({f"{call.__name__}_{name}": in_units(call, name) for call in builtin.FUNCTIONS for name in UNITS})
