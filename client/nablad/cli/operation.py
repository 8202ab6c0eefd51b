"""`nablad reload`: what the operator of a server asks of it."""

import dataclasses
import json

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from nablad.cli.options import connected, connects
from nablad.reports import Reload

console = Console()


@click.command()
@connects
def reload(address: str, timeout: float, as_json: bool) -> None:
    """Have the server load its files and modules of functions anew; exit status 1 if something is wrong with them.

    What has changed is loaded, checked and warmed up before it takes the place of what there is. If anything of it is
    refused, nothing is changed at all.
    """
    with connected(address, timeout) as client:
        found = client.reload()
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(found), indent=2))
    else:
        console.print(_table(found))
    raise SystemExit(1 if found.refused else 0)


def _table(found: Reload) -> Table | str:
    if not (found.added or found.replaced or found.removed or found.refused):
        return "nothing has changed"
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for what, names in (("added", found.added), ("replaced", found.replaced), ("removed", found.removed)):
        for name in names:
            table.add_row(what, escape(name))
    for source, reason in found.refused.items():
        table.add_row("[red]refused[/]", escape(f"{source}: {reason}" if source not in reason else reason))
    table.add_row("took", f"{found.seconds:.2f} s")
    return table
