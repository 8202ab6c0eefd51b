"""Where functions are meant to be evaluated: the intervals that they declare for their inputs."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from nablad.tensors import Array
from nablad_server.functions.signature import Domain, Signature, TensorSpec


def with_domains(signature: Signature, declared: Mapping[str, Any]) -> Signature:
    """The signature with each input's domain.

    A name stands for the input of that name, or for all those below it: `params` for `params.hidden.w`.

    Raises:
        ValueError: a name is no input's, or what it is given is neither two numbers in order nor a function.
    """
    domains: dict[str, Domain] = {}
    for name, domain in declared.items():
        below = [
            spec.name
            for spec in signature.inputs
            if spec.name == name or spec.name.startswith((f"{name}.", f"{name}["))
        ]
        if not below:
            raise ValueError(f"domain= names {name!r}; the inputs are {[spec.name for spec in signature.inputs]}")
        checked = _checked(name, domain)
        domains |= dict.fromkeys(below, checked)
    return replace(signature, inputs=tuple(_declared(spec, domains) for spec in signature.inputs))


def positive_definite(random: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """A random symmetric positive definite matrix, [n, n], with eigenvalues of at least 1: a domain for such inputs."""
    factor = random.standard_normal(shape)
    matrix: Array = factor @ np.swapaxes(factor, -1, -2) / shape[-1] + np.eye(shape[-1])
    return matrix


def _declared(spec: TensorSpec, domains: Mapping[str, Domain]) -> TensorSpec:
    return replace(spec, domain=domains[spec.name]) if spec.name in domains else spec


def _checked(name: str, domain: Any) -> Domain:
    if callable(domain):
        return domain  # type: ignore[no-any-return]  # what it gives shows when it is called
    try:
        lowest, highest = map(float, domain)
    except (TypeError, ValueError):
        lowest, highest = math.nan, math.nan
    if not (math.isfinite(lowest) and math.isfinite(highest) and lowest <= highest):
        raise ValueError(
            f"domain of {name!r} is {domain!r}; expected (lowest, highest), or a function of a random generator and a "
            "shape that gives elements"
        )
    return lowest, highest
