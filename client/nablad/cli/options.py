"""The options that several commands have."""

from collections.abc import Callable
from typing import Any, TypeVar

import click

from nablad._channel import DEFAULT_ADDRESS
from nablad._secured import Tls
from nablad.client import Client
from nablad.errors import InvalidArgument

_F = TypeVar("_F", bound=Callable[..., Any])

INPUT_HELP = """NAME=VALUE for each input. VALUE is a number, a comma-separated list, JSON such as [[1,2],[3,4]], or
the path of a .npy or .json file."""


_KEPT = "nablad.connection."
"""What the options about security are kept under, in the context of a command."""


def _keep(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    context.meta[f"{_KEPT}{parameter.name}"] = value


def _secures(*names: str, help: str, **given: Any) -> Callable[[_F], _F]:
    """An option about security: kept for `connected`, and no argument of the command."""
    return click.option(*names, help=help, show_envvar=True, expose_value=False, callback=_keep, **given)


def connected(address: str, timeout: float | None = 60.0) -> Client:
    """A client of the server at this address, as the options of the running command secure it."""
    chosen = {
        key.removeprefix(_KEPT): value
        for key, value in click.get_current_context().meta.items()
        if key.startswith(_KEPT) and value is not None
    }
    token, wanted = chosen.pop("token", None), chosen.pop("tls", False)
    try:
        return Client(address, timeout=timeout, tls=Tls(**chosen) if chosen else wanted, token=token)
    except (InvalidArgument, OSError) as error:
        raise click.UsageError(str(error)) from None


def connects(command: _F) -> _F:
    """Adds the options that every command with a server has."""
    file = click.Path(exists=True, dir_okay=False)
    for option in (
        _secures("--token", envvar="NABLAD_TOKEN",
                 help="Shows the server who calls. Better in the environment: others can see a command's arguments."),
        _secures("--server-name", "server_name", envvar="NABLAD_TARGET_SERVER_NAME",
                 help="The name in the server's certificate, if that is not its host."),
        _secures("--tls-key", "key", type=file, envvar="NABLAD_TARGET_TLS_KEY",
                 help="PEM file of the client certificate's private key."),
        _secures("--tls-certificate", "certificate", type=file, envvar="NABLAD_TARGET_TLS_CERTIFICATE",
                 help="PEM file of a client certificate, for a server that asks for one."),
        _secures("--tls-ca", "ca", type=file, envvar="NABLAD_TARGET_TLS_CA",
                 help="PEM file of the certificates that vouch for the server; TLS is on if it is given."),
        _secures("--tls", is_flag=True, envvar="NABLAD_TARGET_TLS",
                 help="Connect with TLS, with the usual authorities' certificates."),
        click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table."),
        click.option("--timeout", type=float, default=60.0, show_default=True, help="Seconds a call may take."),
        click.option("--address", default=DEFAULT_ADDRESS, show_default=True, envvar="NABLAD_TARGET",
                     show_envvar=True, help="The server."),
    ):  # fmt: skip
        command = option(command)
    return command
