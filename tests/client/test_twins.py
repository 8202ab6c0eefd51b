"""The two clients are twins: the same methods with the same signatures and documentation; only `await` differs."""

import inspect
from collections.abc import Callable
from typing import Any

import pytest

import nablad
from nablad import aio
from nablad.client import Client, Function

CONTEXT = {"__enter__": "__aenter__", "__exit__": "__aexit__"}
RENAMED = {"Channel": "aio.Channel", "Iterator": "AsyncIterator"}


def methods(kind: type) -> dict[str, Callable[..., Any]]:
    return {name: value for name, value in vars(kind).items() if inspect.isfunction(value)}


@pytest.mark.parametrize(("one", "other"), [(Client, aio.Client), (Function, aio.Function)])
def test_same_methods_signatures_and_documentation(one: type, other: type) -> None:
    mine, theirs = methods(one), methods(other)
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
        offered = set(vars(handle)) - {"_client", "name"}
        assert offered == operators - {"close", "function", "functions", "healthy"}
        assert handle(0.0) == 0.0
        assert repr(handle) == "<function sin on a nablad server>"


def test_the_menu_is_complete() -> None:
    public = {name for name in vars(nablad.results) if inspect.isclass(vars(nablad.results)[name])}
    assert set(nablad.__all__) >= public - {"Any", "Result", "Array"}
    assert all(hasattr(nablad, name) for name in nablad.__all__)
