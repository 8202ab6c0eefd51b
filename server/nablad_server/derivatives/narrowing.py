"""Where a program computes with fewer digits than its inputs have."""

from typing import Any

import jax
import jax.numpy as jnp

from nablad_server.derivatives.activations import location
from nablad_server.derivatives.memory import inner_jaxprs
from nablad_server.derivatives.program import trace
from nablad_server.derivatives.query import Query


def narrowings(query: Query) -> list[str]:
    """The places where a derivative, or its function, rounds a number to a narrower floating-point dtype.

    Each as `float32 at models.py:12`. Nothing if some of the inputs that are differentiated are narrow themselves.
    """
    if query.function.engine != "jax" or not all(query.inputs[index].wide for index in query.wrt):
        return []
    found: dict[str, None] = {}
    _collect(trace(query, {}).jaxpr, found)
    return list(found)


def _collect(jaxpr: jax.extend.core.Jaxpr, found: dict[str, None]) -> None:
    equation: Any
    for equation in jaxpr.eqns:
        if equation.primitive.name == "convert_element_type" and _narrows(equation):
            where = location(equation.source_info)
            found[f"{equation.outvars[0].aval.dtype.name}{f' at {where}' if where else ''}"] = None
        for inner in inner_jaxprs(equation):
            _collect(inner, found)


def _narrows(equation: Any) -> bool:
    before, after = equation.invars[0].aval.dtype, equation.outvars[0].aval.dtype
    floating = jnp.issubdtype(before, jnp.floating) and jnp.issubdtype(after, jnp.floating)
    return bool(floating and jnp.finfo(after).nmant < jnp.finfo(before).nmant)  # type: ignore[no-untyped-call]
