"""`nablad token`: a new token for somebody who is to call the server, and what to add to its file of identities."""

import hashlib
import json
import secrets
from collections.abc import Iterable

import click
from pydantic import ValidationError

from nablad_server.serving.caller import EVALUATE, ROLES
from nablad_server.serving.identities import Identity

PREFIX = "nablad_"
"""By it a token is recognised where it should not be, by people and by scanners for secrets."""

BYTES = 32


@click.command("token")
@click.argument("name")
@click.option("--role", "roles", type=click.Choice(sorted(ROLES)), multiple=True, default=[EVALUATE], show_default=True,
              help="What it may do; may be repeated.")  # fmt: skip
@click.option("--function", "functions", multiple=True, metavar="NAME|NAME@VERSION|PREFIX*",
              help="A function that it may use; may be repeated. Default: all.")  # fmt: skip
def token(name: str, roles: tuple[str, ...], functions: tuple[str, ...]) -> None:
    """Makes a token for NAME.

    The token is shown once, on standard error; what the server needs to know of it goes to standard output, for the
    file that `nablad serve --tokens` names:

        nablad token training --role evaluate >> identities.toml
    """
    new = PREFIX + secrets.token_urlsafe(BYTES)
    digest = hashlib.sha256(new.encode()).hexdigest()
    try:
        identity = Identity.model_validate(
            {"name": name, "token_sha256": [digest], "roles": roles, "functions": functions or None}
        )
    except ValidationError as error:
        problems = [f"{found['loc'][0]}: {found['msg']}" for found in error.errors()]
        raise click.UsageError("; ".join(problems)) from None
    click.echo(entry(identity), nl=False)
    click.echo(f"the token of {name}, which is kept nowhere:\n{new}", err=True)


def entry(identity: Identity) -> str:
    """An identity with tokens as the file has it."""
    lines = [
        "[[identity]]",
        f"name = {_text(identity.name)}",
        f"token_sha256 = {_texts(identity.token_sha256)}",
        f"roles = {_texts(identity.roles)}",
    ]
    if identity.functions is not None:
        lines.append(f"functions = {_texts(identity.functions)}")
    return "\n".join(lines) + "\n\n"


def _texts(values: Iterable[str]) -> str:
    return f"[{', '.join(map(_text, values))}]"


def _text(value: str) -> str:
    """A TOML basic string: as JSON's, and without the escapes that only JSON has."""
    return json.dumps(value, ensure_ascii=False)
