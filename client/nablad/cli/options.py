"""The options that several commands have."""

from collections.abc import Callable
from typing import Any, TypeVar

import click

from nablad._channel import DEFAULT_ADDRESS

_F = TypeVar("_F", bound=Callable[..., Any])

INPUT_HELP = """NAME=VALUE for each input. VALUE is a number, a comma-separated list, JSON such as [[1,2],[3,4]], or
the path of a .npy or .json file."""


def connects(command: _F) -> _F:
    """Adds the options that every command with a server has."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table."),
        click.option("--timeout", type=float, default=60.0, show_default=True, help="Seconds a call may take."),
        click.option("--address", default=DEFAULT_ADDRESS, show_default=True, envvar="NABLAD_TARGET",
                     show_envvar=True, help="The server."),
    ):  # fmt: skip
        command = option(command)
    return command
