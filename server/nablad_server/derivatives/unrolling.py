"""Runs a traced function operation by operation, so that each activation can be seen and moved.

Functions that it calls are run so, too, and loops of a known length (`lax.scan`, and `lax.fori_loop` with bounds that
are known) turn by turn. All else is run as it is: the branches of `lax.cond`, loops of unknown length, and functions
with derivative rules of their own, which would lose them.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from nablad_server.derivatives.activations import Activation, activations, is_literal, location

CALLS = {"jit": "jaxpr", "closed_call": "call_jaxpr", "core_call": "call_jaxpr", "remat2": "jaxpr"}
"""Operations that only call a function, and the parameter that is the function."""

Visit = Callable[[Activation, Any, Callable[[], Any]], Any]
"""Is told of an activation, of what it gives, and of what gives its slopes there. Gives what is to go on from there."""


@dataclass(frozen=True)
class Plan:
    """How a jaxpr is run, without what its outputs do not need.

    Attributes:
        jaxpr: the operations.
        steps: those that are needed, in order.
        layers: how many activations they come to.
        operations: how many operations.
    """

    jaxpr: Any
    steps: tuple["_Step", ...]
    layers: int
    operations: int


@dataclass(frozen=True)
class _Step:
    """An equation; and the activation that it completes, or the plan of the function or of the turns that it is."""

    equation: Any
    activation: Activation | None = None
    inner: Plan | None = None
    constants: Sequence[Any] = ()
    turns: int = 0

    @property
    def layers(self) -> int:
        if self.inner is not None:
            return max(self.turns, 1) * self.inner.layers
        return int(self.activation is not None)

    @property
    def operations(self) -> int:
        return 1 if self.inner is None else max(self.turns, 1) * self.inner.operations


def planned(jaxpr: Any, wanted: Sequence[bool], around: str = "") -> Plan:
    """How to run a jaxpr for those of its outputs that are wanted; `around` is where it is called, `file.py:12`."""
    found = activations(jaxpr, around)
    needed = {
        variable for variable, want in zip(jaxpr.outvars, wanted, strict=True) if want and not is_literal(variable)
    }
    steps: list[_Step] = []
    for index in reversed(range(len(jaxpr.eqns))):
        equation = jaxpr.eqns[index]
        live = [variable in needed for variable in equation.outvars]
        if any(live):
            steps.append(_step(equation, found.get(index), live, around))
            needed |= {operand for operand in equation.invars if not is_literal(operand)}
    steps.reverse()
    return Plan(jaxpr, tuple(steps), sum(step.layers for step in steps), sum(step.operations for step in steps))


def run(plan: Plan, constants: Sequence[Any], arguments: Sequence[Any], visit: Visit) -> list[Any]:
    """The outputs; those that are not wanted are None."""
    values = dict(zip((*plan.jaxpr.constvars, *plan.jaxpr.invars), (*constants, *arguments), strict=True))
    for step in plan.steps:
        given = [_value(values, operand) for operand in step.equation.invars]
        if step.inner is None:
            outputs = _evaluated(step.equation, given)
        elif step.turns:
            outputs = _unrolled(step, step.inner, given, visit)
        else:
            outputs = run(step.inner, step.constants, given, visit)
        if step.activation is not None:
            slope = functools.partial(_slope, step.activation, values)
            outputs = [visit(step.activation, outputs[0], slope)]
        values.update(zip(step.equation.outvars, outputs, strict=True))
    return [_value(values, variable) for variable in plan.jaxpr.outvars]


def _step(equation: Any, activation: Activation | None, live: Sequence[bool], around: str) -> _Step:
    name, params = equation.primitive.name, equation.params
    if activation is not None:
        return _Step(equation, activation)
    if name in CALLS:
        inner = params[CALLS[name]]
        jaxpr = getattr(inner, "jaxpr", inner)
        step = _Step(
            equation,
            inner=planned(jaxpr, live, location(equation.source_info, around)),
            constants=getattr(inner, "consts", ()),
        )
        return step if step.layers else _Step(equation)
    if name == "scan" and params["length"]:
        inner = params["jaxpr"]
        every = [True] * len(inner.jaxpr.outvars)  # what one turn leaves another may need
        plan = planned(inner.jaxpr, every, location(equation.source_info, around))
        if plan.layers:
            return _Step(equation, inner=plan, constants=inner.consts, turns=params["length"])
    return _Step(equation)


def _unrolled(step: _Step, turn_plan: Plan, given: Sequence[Any], visit: Visit) -> list[Any]:
    """The outputs of a scan: the last carry, and what each turn gives, stacked."""
    params = step.equation.params
    fixed, carried = params["num_consts"], params["num_carry"]
    constants, carry, rows = given[:fixed], list(given[fixed : fixed + carried]), given[fixed + carried :]
    order = range(step.turns)
    results: list[list[Any]] = []
    for turn in reversed(order) if params["reverse"] else order:
        outputs = run(turn_plan, step.constants, [*constants, *carry, *(row[turn] for row in rows)], visit)
        carry = outputs[:carried]
        results.append(outputs[carried:])
    if params["reverse"]:
        results.reverse()
    return [*carry, *(jnp.stack(column) for column in zip(*results, strict=True))]


def _slope(activation: Activation, values: dict[Any, Any]) -> Any:
    """The derivative of each element of an activation by its own argument; nothing is differentiated through it."""
    fixed = {
        operand: jax.lax.stop_gradient(values[operand])
        for equation in activation.equations
        for operand in equation.invars
        if not is_literal(operand) and operand in values
    }

    def alone(before: Any) -> Any:
        inside = fixed | {activation.before: before}
        for equation in activation.equations:
            outputs = _evaluated(equation, [_value(inside, operand) for operand in equation.invars])
            inside.update(zip(equation.outvars, outputs, strict=True))
        return inside[activation.after]

    before = fixed[activation.before]
    _, slope = jax.jvp(alone, (before,), (jnp.ones_like(before),))
    return slope


def _evaluated(equation: Any, operands: Sequence[Any]) -> list[Any]:
    parameters = equation.primitive.get_bind_params(equation.params)
    outputs = equation.primitive.bind(*operands, **parameters)
    return list(outputs) if equation.primitive.multiple_results else [outputs]


def _value(values: dict[Any, Any], variable: Any) -> Any:
    return variable.val if is_literal(variable) else values.get(variable)
