"""`nablad serve`: the command line of the server. Its options are the fields of Settings."""

import os
import sys
import types
import typing
from pathlib import Path
from typing import Any

import click
from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from nablad.errors import NabladError
from nablad_server.app import App
from nablad_server.config import Settings
from nablad_server.telemetry import configure_logging


def _option(name: str, field: FieldInfo) -> click.Option:
    """The command-line option for one setting. It has no default of its own, so that weaker sources count."""
    flag = name.replace("_", "-")
    default = field.default if field.default is not PydanticUndefined else field.get_default(call_default_factory=True)
    shown = f"{field.description} [env NABLAD_{name.upper()}; default: {_shown(default)}]"
    if field.annotation is bool:
        return click.Option([f"--{flag}/--no-{flag}"], default=None, help=shown)
    if typing.get_origin(field.annotation) is typing.Literal:
        return click.Option([f"--{flag}"], type=click.Choice(typing.get_args(field.annotation)), help=shown)
    several = typing.get_origin(field.annotation) is list
    return click.Option([f"--{flag}"], type=_type(field.annotation), multiple=several, help=shown)


def _type(annotation: Any) -> Any:
    if typing.get_origin(annotation) is types.UnionType:  # Path | None: "none" is understood by the setting
        return str
    return annotation if annotation in (int, float, str) else str


def _shown(default: Any) -> str:
    if default == []:
        return "none"
    home = str(Path.home())
    return str(default).replace(home, "~", 1) if isinstance(default, Path) else str(default)


class _Serve(click.Command):
    """`serve`, with an option for every setting."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        fields = Settings.model_fields
        self.params += [_option(name, field) for name, field in fields.items() if name != "functions"]


@click.command("serve", cls=_Serve)
@click.argument("functions", nargs=-1, metavar="[FILE|MODULE]...")
@click.option("--settings", type=click.Path(exists=True, dir_okay=False),
              help="A TOML file of settings, by their names with underscores. [env NABLAD_SETTINGS]")  # fmt: skip
def serve(functions: tuple[str, ...], settings: str | None, **options: Any) -> None:
    """Serves derivatives of functions over gRPC until SIGTERM or SIGINT.

    Each FILE.py or MODULE adds the functions that it marks with @function, or all its public ones if it marks none.
    """
    if settings is not None:
        os.environ["NABLAD_SETTINGS"] = settings
    given: dict[str, Any] = {name: list(value) if isinstance(value, tuple) else value
             for name, value in options.items() if value not in (None, ())}  # fmt: skip
    if functions:
        given["functions"] = list(functions)
    try:
        chosen = Settings(**given)
        configure_logging(chosen.log_level, chosen.log_format)
        App(chosen).serve_until_signalled()
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, e['loc']))}: {e['msg']} (got {e['input']!r})" for e in error.errors()]
        raise click.ClickException("settings: " + "; ".join(problems)) from None
    except (ValueError, OSError, NabladError) as error:
        raise click.ClickException(str(error)) from None


if __name__ == "__main__":
    sys.exit(serve())
