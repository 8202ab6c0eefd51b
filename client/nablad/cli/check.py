"""`nablad check`: are the derivatives of functions right?"""

import dataclasses
import importlib.metadata
import importlib.util
import json
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import click
from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from nablad.cli.options import INPUT_HELP, connected, connects
from nablad.cli.output import plain
from nablad.cli.plots import saved, subplots
from nablad.cli.values import parse_assignments
from nablad.client import Client
from nablad.errors import FailedPrecondition, InvalidArgument, NotDifferentiable, NotScalar, UnknownOutput
from nablad.reports import GradientCheck, InputCheck

console = Console()

STYLES = {"pass": "green", "noisy": "yellow", "kink": "yellow", "wrong": "bold red", "skipped": "dim"}


@dataclasses.dataclass(frozen=True)
class _Checked:
    """A function, and its check; or why there is none."""

    function: str
    check: GradientCheck | None
    skipped: str = ""

    @property
    def verdict(self) -> str:
        return "skipped" if self.check is None else self.check.verdict

    @property
    def reason(self) -> str:
        return self.skipped if self.check is None else self.check.reason


@click.command()
@click.argument("targets", nargs=-1, required=True, metavar="FILE|MODULE|NAME...")
@click.option("--input", "-i", "inputs", multiple=True, help=INPUT_HELP + " Those not given are sampled.")
@click.option("--wrt", multiple=True, help="An input to differentiate with respect to; may be repeated. Default: all.")
@click.option("--outputs", multiple=True, help="An output; may be repeated. Default: all.")
@click.option("--mode", type=click.Choice(["auto", "forward", "reverse"]), default="auto", show_default=True,
              help="What is checked; auto: both modes.")  # fmt: skip
@click.option("--order", type=click.IntRange(1, 2), default=1, show_default=True,
              help="2: second derivatives of scalar functions, too.")  # fmt: skip
@click.option("--points", type=click.IntRange(0, 64), default=0, help="How many points are sampled. [default: 3]")
@click.option("--coordinates", type=click.IntRange(0), default=0, help="Elements moved of each input. [default: 32]")
@click.option("--directions", type=click.IntRange(0), default=0, help="Random directions. [default: 4]")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of what is sampled.")
@click.option("--size", "sizes", multiple=True, metavar="SYMBOL=N", help="The size of a symbol; may be repeated.")
@click.option("--dtype", type=click.Choice(["float64", "float32", "bfloat16", "float16"]), help="Of sampled inputs.")
@click.option("--batched", is_flag=True, help="The first axis of every input given runs over points.")
@click.option("--strict", is_flag=True, help="Exit with status 1 unless every function passes.")
@click.option("--plot", type=click.Path(dir_okay=False, path_type=Path),
              help="Also draw errors against steps into this file, such as check.png. Needs matplotlib.")  # fmt: skip
@connects
def check(  # noqa: PLR0917 - click passes everything by keyword
    targets: tuple[str, ...],
    inputs: tuple[str, ...],
    sizes: tuple[str, ...],
    strict: bool,
    plot: Path | None,
    address: str,
    timeout: float,
    as_json: bool,
    **options: Any,
) -> None:
    """Compare automatic differentiation with finite differences.

    A FILE.py or an importable MODULE is loaded into a server of its own, and each of its functions is checked; a NAME
    is a function of the server at --address. Exit status 1 if a derivative is wrong.
    """
    keywords = options | {name: options[name] or None for name in ("wrt", "outputs")} | {"sizes": _sizes(sizes)}
    found: list[_Checked] = []
    for where, names in _servers(targets, address):
        # What --tls and --token say is about the server at --address, and not about one within this process.
        with where as reached, connected(reached, timeout) if names else Client(reached, timeout=timeout) as client:
            for name in names or sorted(info.reference for info in client.functions()):
                found.append(_checked(client, name, parse_assignments(inputs), keywords, alone=len(names) == 1))
    if plot is not None:
        _draw(plot, [one.check for one in found if one.check is not None])
    if as_json:
        click.echo(json.dumps([_json(one) for one in found], indent=2))
    else:
        console.print(_table(found))
    failing = {"wrong", "noisy", "kink", "skipped"} if strict else {"wrong"}
    raise SystemExit(1 if any(one.verdict in failing for one in found) else 0)


def _servers(
    targets: Sequence[str], address: str
) -> Iterator[tuple[AbstractContextManager[str], Sequence[str]]]:  # the address; the functions, or none for all
    """Where to find the functions: in one server for all files and modules, and in the one at the address."""
    sources = [target for target in targets if _is_source(target)]
    names = [target for target in targets if target not in sources]
    if sources:
        yield _embedded(sources), ()
    if names:
        yield nullcontext(address), names


def _is_source(target: str) -> bool:
    if target.endswith(".py") or "/" in target or Path(target).is_file():
        return True
    try:
        return "@" not in target and importlib.util.find_spec(target) is not None
    except (ImportError, ValueError):
        return False


def _embedded(sources: Sequence[str]) -> AbstractContextManager[str]:
    """A server with the functions of files and modules. Raises click.ClickException without the server package."""
    points = importlib.metadata.entry_points(group="nablad.servers", name="embedded")
    try:
        (point,) = points
        embedded = point.load()
    except (ImportError, ValueError) as error:
        raise click.ClickException(
            f"checking {', '.join(sources)} needs the server: pip install 'nablad[server]' ({error})"
        ) from None
    return _loaded(embedded, sources)


@contextmanager
def _loaded(embedded: Any, sources: Sequence[str]) -> Iterator[str]:
    with ExitStack() as stack:
        try:
            address = stack.enter_context(embedded(sources, builtin=False))
        except ValueError as error:
            raise click.ClickException(str(error)) from None
        yield address


def _checked(client: Client, name: str, inputs: dict[str, Any], keywords: dict[str, Any], *, alone: bool) -> _Checked:
    """The check of one function; of its first derivatives alone if there are no second ones.

    One that cannot be checked is skipped, unless it is the only one.
    """
    symbols = {dim for spec in client.describe(name).inputs for dim in spec.shape or ()}
    if not alone:  # what is said of symbols is for the functions that have them
        keywords = keywords | {"sizes": {n: size for n, size in keywords["sizes"].items() if n in symbols}}
    try:
        try:
            return _Checked(name, client.check_gradient(name, **keywords, **inputs))
        except (NotDifferentiable, NotScalar, UnknownOutput):
            if keywords["order"] == 1:
                raise
            return _Checked(name, client.check_gradient(name, **keywords | {"order": 1}, **inputs))
    except (FailedPrecondition, InvalidArgument) as error:
        if alone:
            raise
        return _Checked(name, None, error.message)


def _sizes(given: Sequence[str]) -> dict[str, int]:
    sizes = {}
    for text in given:
        symbol, _, size = text.partition("=")
        if not (symbol and size.isdigit()):
            raise click.UsageError(f"--size {text!r}; expected SYMBOL=N, such as n=100")
        sizes[symbol] = int(size)
    return sizes


def _json(one: _Checked) -> Any:
    if one.check is None:
        return {"function": one.function, "verdict": one.verdict, "reason": one.reason}
    return plain(dataclasses.asdict(one.check))


def _table(found: Sequence[_Checked]) -> RenderableType:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("function", "verdict", "order", "mode", "input", "moved", "rel. error"):
        table.add_column(column, justify="right" if column in ("order", "moved", "rel. error") else "left")
    for one in found:
        style = STYLES.get(one.verdict, "")
        if one.check is None:
            table.add_row(escape(one.function), Text(one.verdict.upper(), style), "", "", "", "", "")
            continue
        name: str | Text = escape(one.check.function)
        overall: str | Text = Text(one.verdict.upper(), style)
        for part in one.check.checks:
            for each in (*part.inputs, part.directions):
                table.add_row(
                    name, overall, str(part.order), part.mode, escape(each.name) or "(directions)", str(each.moved),
                    Text(f"{each.relative_error:.1e}", STYLES.get(each.verdict, "")),
                )  # fmt: skip
                name = overall = ""
    notes = [
        Text(f"{one.function}: {one.reason}", STYLES.get(one.verdict, "")) for one in found if one.verdict != "pass"
    ]
    counts = {verdict: sum(one.verdict == verdict for one in found) for verdict in STYLES}
    summary = ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count)
    return Group(table, Text(""), *notes, Text(f"{len(found)} checked: {summary}", style="bold"))


def _draw(file: Path, checks: Sequence[GradientCheck]) -> None:
    """Errors against steps, a picture for each function. Raises click.ClickException without matplotlib."""
    if not checks:
        raise click.ClickException("there is nothing to draw: no function could be checked")
    drawing, pictures = subplots(len(checks))
    for axes, one in zip(pictures, checks, strict=True):
        for part in one.checks:
            for each in (*part.inputs, part.directions):
                _curve(axes, each, f"{each.name or 'directions'}, order {part.order}, {part.mode}")
        axes.set_title(f"{one.function}: {one.verdict.upper()}", fontsize=10)
        axes.set_xlabel("step, relative")
        axes.set_ylabel("relative error")
        axes.legend(fontsize=6)
    saved(drawing, file)


def _curve(axes: Any, each: InputCheck, label: str) -> None:
    seen = each.errors > 0  # an error of 0 has no place on a logarithmic axis
    if seen.any():
        axes.loglog(each.steps[seen], each.errors[seen], ".-", label=label, markersize=4, linewidth=1)
