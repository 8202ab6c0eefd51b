"""Finds the activations of a traced function: nonlinear functions of one array, element by element.

An activation is one of JAX's operations (tanh, logistic, erf, a maximum with 0), a function of jax.nn known by the name
under which JAX traces it, a choice by sign (`jnp.where(x > 0, x, 0)`), or a product of an array with such a function of
the same array (GELU, SiLU), which JAX traces as its single operations.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.extend
import jax.numpy as jnp

import nablad_server
from nablad_server.functions.sources import builtin

LARGEST_SLOPES = {
    "celu": 1.0,
    "elu": 1.0,
    "erf": 2 / math.sqrt(math.pi),
    "gelu": 1.128904,
    "hard_sigmoid": 1 / 6,
    "hard_silu": 1.5,
    "hard_tanh": 1.0,
    "leaky_relu": 1.0,
    "log_sigmoid": 1.0,
    "mish": 1.088499,
    "relu": 1.0,
    "relu6": 1.0,
    "selu": 1.0507009873554805 * 1.6732632423543772,
    "sigmoid": 0.25,
    "silu": 1.099839,
    "soft_sign": 1.0,
    "softplus": 1.0,
    "sparse_plus": 1.0,
    "sparse_sigmoid": 0.5,
    "squareplus": 1.0,
    "tanh": 1.0,
}
"""Every kind of activation, with the largest magnitude that its derivative has anywhere, for the usual parameters."""

OPERATIONS = {"tanh": "tanh", "logistic": "sigmoid", "erf": "erf", "erfc": "erf"}
"""The kinds that are one operation, by its name in JAX."""

GATES = {"tanh": "gelu", "logistic": "silu", "erf": "gelu", "erfc": "gelu"}
"""The kinds that are a product of an array and a function of it, by the operation in that function."""

AFFINE = frozenset({
    "add", "add_any", "broadcast_in_dim", "convert_element_type", "copy", "div", "integer_pow", "mul", "neg", "square",
    "sub",
})  # fmt: skip
"""What a gate is made of besides its one nonlinear operation."""

ELEMENTWISE = AFFINE | frozenset({
    "abs", "and", "clamp", "eq", "erf", "erfc", "exp", "exp2", "expm1", "ge", "gt", "is_finite", "le", "log", "log1p",
    "logistic", "lt", "max", "min", "ne", "not", "or", "pow", "select_n", "sign", "sqrt", "stop_gradient", "tanh",
})  # fmt: skip
"""Operations that work element by element."""

PACKAGES = tuple(Path(str(module.__file__)).parent for module in (jax, jax.lib, nablad_server))
"""What lies between a function and the operations that are traced: no place in here is the function's own."""

LARGEST_GATE = 16
"""A gate has no more operations than this."""

BUILTIN = Path(str(builtin.__file__)).parent


@dataclass(frozen=True)
class Activation:
    """An activation within one jaxpr.

    Attributes:
        kind: one of LARGEST_SLOPES.
        before: the variable that it is applied to.
        after: the variable that it gives.
        equations: what computes it, in order; the last gives `after`.
        location: where it is computed, `file.py:12`; empty if not known.
    """

    kind: str
    before: Any
    after: Any
    equations: tuple[Any, ...]
    location: str


def activations(jaxpr: Any, around: str) -> dict[int, Activation]:
    """The activations that the equations of a jaxpr are, by the number of the equation that gives them.

    Those of functions that it calls are not among them, unless such a function as a whole is one. `around` is the
    location of those that do not know their own: where the function is called that they are in.
    """
    found: dict[int, Activation] = {}
    inside: set[int] = set()  # what only helps to compute another
    producers = {variable: index for index, equation in enumerate(jaxpr.eqns) for variable in equation.outvars}
    for index, equation in enumerate(jaxpr.eqns):
        if equation.primitive.name == "mul":
            gate = _gate(jaxpr.eqns, index, producers, around)
            if gate is not None:
                found[index], within = gate
                inside |= within
        elif (choice := _choice(jaxpr.eqns, index, producers, around)) is not None:
            found[index] = choice
        else:
            kind = _kind(equation)
            before = _argument(equation) if kind else None
            if before is not None:
                place = location(equation.source_info, around)
                found[index] = Activation(kind, before, equation.outvars[0], (equation,), place)
    return {index: activation for index, activation in found.items() if index not in inside}


def location(source: Any, around: str = "") -> str:
    """Where in the function's own code an operation was traced, `file.py:12`; `around` if that is not known.

    `source` is what the operation's equation says of it, its `source_info`.
    """
    frames = getattr(source.traceback, "frames", ())  # the innermost first
    for frame in frames:
        file = Path(frame.file_name)
        if file.is_relative_to(BUILTIN) or not any(file.is_relative_to(package) for package in PACKAGES):
            return f"{file.name}:{frame.line_num}"
    return around


def is_literal(variable: Any) -> bool:
    """Whether an operand is a number written into the jaxpr."""
    return isinstance(variable, jax.extend.core.Literal)


def _can_be_layer(after: Any) -> bool:
    """Whether a variable is an array of floating-point numbers, and has some."""
    return bool(jnp.issubdtype(after.aval.dtype, jnp.floating)) and math.prod(after.aval.shape) > 0


def _kind(equation: Any) -> str:
    """The kind of activation that an equation looks like; empty if none."""
    name, params = equation.primitive.name, equation.params
    if name in OPERATIONS:
        return OPERATIONS[name]
    if name == "max":
        return "relu" if any(is_literal(operand) and operand.val == 0 for operand in equation.invars) else ""
    if name == "jit" and params["name"] in LARGEST_SLOPES and _elementwise(params["jaxpr"].jaxpr):
        return str(params["name"])
    if name == "custom_jvp_call":  # with a derivative rule of its own, which is kept
        inner = params["call_jaxpr"].jaxpr.eqns
        return _kind(inner[0]) if len(inner) == 1 and inner[0].primitive.name == "jit" else ""
    return ""


def _argument(equation: Any) -> Any:
    """What an equation works on element by element; None if it is no function of one array alone."""
    (after, *others) = equation.outvars
    if others or not _can_be_layer(after):
        return None
    operands = [operand for operand in equation.invars if not is_literal(operand)]
    like = [operand for operand in operands if operand.aval.shape == after.aval.shape]
    if not like or any(math.prod(operand.aval.shape) != 1 for operand in operands if operand is not like[0]):
        return None
    return like[0]


def _elementwise(jaxpr: Any) -> bool:
    for equation in jaxpr.eqns:
        inner = equation.params.get("call_jaxpr" if equation.primitive.name == "custom_jvp_call" else "jaxpr")
        if inner is not None and equation.primitive.name in ("jit", "custom_jvp_call"):
            if not _elementwise(inner.jaxpr):
                return False
        elif equation.primitive.name not in ELEMENTWISE:
            return False
    return True


def _choice(equations: Sequence[Any], last: int, producers: dict[Any, int], around: str) -> Activation | None:
    """The activation `jnp.where(x > 0, x, …)` that an equation is: with 0 ReLU, with a multiple of x leaky ReLU."""
    equation = equations[last]
    if equation.primitive.name != "jit" or equation.params["name"] != "_where" or len(equation.invars) != 3:
        return None
    made: list[Any] = [
        None if is_literal(v) or v not in producers else equations[producers[v]] for v in equation.invars
    ]
    test, multiple = made[0], made[2]
    before, other = equation.invars[1:]
    if test is None or test.primitive.name not in ("gt", "ge", "lt", "le"):
        return None
    if (test.primitive.name in ("lt", "le")) != is_literal(test.invars[0]):  # x < 0 or 0 > x: the other way round
        before, other, multiple = other, before, made[1]
    if is_literal(before) or not all(v is before or (is_literal(v) and v.val == 0) for v in test.invars):
        return None
    after, place = equation.outvars[0], location(equation.source_info, around)
    if before.aval.shape != after.aval.shape or not _can_be_layer(after):
        return None
    if is_literal(other):
        return Activation("relu", before, after, (test, equation), place) if other.val == 0 else None
    if multiple is None or multiple.primitive.name != "mul":
        return None
    if not any(map(is_literal, multiple.invars)) or not any(v is before for v in multiple.invars):
        return None
    return Activation("leaky_relu", before, after, (test, multiple, equation), place)


def _gate(
    equations: Sequence[Any], last: int, producers: dict[Any, int], around: str
) -> tuple[Activation, set[int]] | None:
    """The activation x · g(x) that the product `last` gives, and the equations that are only a part of it.

    Goes back from the product, the latest operation first, until all that is left to compute hangs on one array.
    """
    after = equations[last].outvars[0]
    if not _can_be_layer(after):
        return None
    chosen: set[int] = set()
    open_: set[Any] = {after}
    nonlinear: list[str] = []
    while not chosen or len(open_) > 1:
        latest = max(open_, key=lambda variable: producers.get(variable, -1))
        index = producers.get(latest, -1)
        if index < 0 or len(chosen) == LARGEST_GATE:
            return None
        name = equations[index].primitive.name
        if name in GATES:
            nonlinear.append(name)
        elif name not in AFFINE:
            return None
        chosen.add(index)
        open_.remove(latest)
        open_ |= {operand for operand in equations[index].invars if not is_literal(operand)}
    if len(nonlinear) != 1 or len(open_) != 1:
        return None
    (before,) = open_
    if before.aval.shape != after.aval.shape:
        return None
    parts = tuple(equations[index] for index in sorted(chosen))
    return (
        Activation(GATES[nonlinear[0]], before, after, parts, location(equations[last].source_info, around)),
        chosen - {last},
    )
