"""The two clients are twins: the same methods with the same signatures and documentation; only `await` differs."""

import inspect
from collections.abc import Callable
from typing import Any

import pytest

import nablad
from nablad import aio, aio_linearize
from nablad._calls import OPERATORS
from nablad.client import Client, Function
from nablad.linearize import Linearization
from nablad.pipeline import Pipeline

CONTEXT = {"__enter__": "__aenter__", "__exit__": "__aexit__"}


def methods(kind: type) -> dict[str, Callable[..., Any]]:
    """The methods that callers see: how a twin does its work is its own affair."""
    return {
        name: value
        for name, value in vars(kind).items()
        if inspect.isfunction(value) and (not name.startswith("_") or name.startswith("__"))
    }


TWINS = [
    (Client, aio.Client),
    (Function, aio.Function),
    (Pipeline, aio.Pipeline),
    (Linearization, aio_linearize.Linearization),
]

SYNCHRONOUS = {"as_linear_operator"}
"""What SciPy calls, and cannot await: only the synchronous client has it."""


@pytest.mark.parametrize(("one", "other"), TWINS)
def test_same_methods_signatures_and_documentation(one: type, other: type) -> None:
    mine, theirs = methods(one), methods(other)
    mine = {name: method for name, method in mine.items() if name not in SYNCHRONOUS}
    assert {CONTEXT.get(name, name) for name in mine} == set(theirs)
    for name, method in mine.items():
        twin = theirs[CONTEXT.get(name, name)]
        assert list(inspect.signature(method).parameters) == list(inspect.signature(twin).parameters), name
        for key, parameter in inspect.signature(method).parameters.items():
            other_parameter = inspect.signature(twin).parameters[key]
            assert (parameter.kind, parameter.default) == (other_parameter.kind, other_parameter.default), (name, key)
        assert method.__doc__ == twin.__doc__, name


def test_the_handle_has_every_operator(server_address: str) -> None:
    operators = {name for name in vars(Client) if not name.startswith("_")}
    with nablad.Client(server_address) as client:
        handle = client.function("sin")
        offered = {name for name in dir(handle) if not name.startswith("_")} - {"name"}
        assert offered == operators - {
            "close",
            "function",
            "functions",
            "healthy",
            "pipeline",
            "reload",
            "statistics",
        }
        assert handle(0.0) == 0.0
        assert repr(handle) == "<function sin on a nablad server>"


def test_a_pipeline_has_every_operator_with_the_options_of_the_client() -> None:
    for name in OPERATORS:
        mine, theirs = (inspect.signature(getattr(kind, name)).parameters for kind in (Pipeline, Client))
        assert list(mine.values()) == list(theirs.values()), name


def test_the_menu_is_complete() -> None:
    modules = (nablad.results, nablad.reports)
    public = {
        name
        for module in modules
        for name, value in vars(module).items()
        if inspect.isclass(value) and value.__module__ == module.__name__
    }
    assert set(nablad.__all__) >= public - {"Result"}
    assert all(hasattr(nablad, name) for name in nablad.__all__)
