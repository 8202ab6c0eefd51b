"""The command line: `nablad list`, `nablad describe`, one command for each operator, and those of the server."""

import dataclasses
import importlib.metadata
import json
from collections.abc import Sequence
from typing import Any

import click
from rich.console import Console

from nablad._differences import Differences
from nablad.cli import output
from nablad.cli.check import check
from nablad.cli.diagnostics import curvature, layers
from nablad.cli.operation import reload
from nablad.cli.options import INPUT_HELP, connected, connects
from nablad.cli.top import top
from nablad.cli.values import parse_assignments, parse_value
from nablad.errors import NabladError

console = Console()


class _Group(click.Group):
    """The client's commands, and those that installed packages add (the server's `serve` and `demo`)."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        added = [point.name for point in importlib.metadata.entry_points(group="nablad.commands")]
        return sorted({*super().list_commands(ctx), *added})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        found = super().get_command(ctx, cmd_name)
        if found is not None:
            return found
        for point in importlib.metadata.entry_points(group="nablad.commands", name=cmd_name):
            try:
                command: click.Command = point.load()
            except ImportError as error:
                return _unavailable(cmd_name, error)
            return command
        return None

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except NabladError as error:
            raise click.ClickException(f"{type(error).__name__}: {error}") from None


def _unavailable(name: str, error: ImportError) -> click.Command:
    """Stands for a command whose package is not installed."""

    def refuse() -> None:
        raise click.ClickException(f"'nablad {name}' needs the server: pip install 'nablad[server]' ({error})")

    return click.Command(name, callback=refuse, help="Needs the server: pip install 'nablad[server]'.")


@click.group(cls=_Group)
@click.version_option(package_name="nablad")
def main() -> None:
    """Derivatives of registered functions, from a nablad server."""


@main.command("list")
@connects
def list_functions(address: str, timeout: float, as_json: bool) -> None:
    """List the functions that the server has."""
    with connected(address, timeout) as client:
        functions = list(client.functions())
    if as_json:
        click.echo(json.dumps([output.function_json(info) for info in functions], indent=2))
    else:
        console.print(output.functions_table(functions))


@main.command()
@click.argument("function")
@connects
def describe(function: str, address: str, timeout: float, as_json: bool) -> None:
    """Show the inputs, outputs, operators and documentation of FUNCTION."""
    with connected(address, timeout) as client:
        info = client.describe(function)
    if as_json:
        click.echo(json.dumps(output.function_json(info), indent=2))
    else:
        console.print(output.function_panel(info))


@main.command()
@connects
def health(address: str, timeout: float, as_json: bool) -> None:
    """Say whether the server serves; exit status 0 if it does, 1 if not."""
    with connected(address) as client:
        serves = client.healthy(min(timeout, 5.0))
    click.echo(json.dumps({"serving": serves}) if as_json else "SERVING" if serves else "NOT SERVING")
    raise SystemExit(0 if serves else 1)


_OPTIONS: dict[str, click.Option] = {
    "wrt": click.Option(["--wrt"], multiple=True, help="An input to differentiate with respect to; may be repeated. "
                        "Default: all floating-point ones."),
    "one_wrt": click.Option(["--wrt"], help="The scalar input to differentiate with respect to, if there are several."),
    "output": click.Option(["--output"], help="The scalar output to differentiate, if there are several."),
    "outputs": click.Option(["--outputs"], multiple=True, help="An output; may be repeated. Default: all."),
    "mode": click.Option(["--mode"], type=click.Choice(["auto", "forward", "reverse"]), default="auto",
                         show_default=True, help="How to accumulate."),
    "differences": click.Option(["--differences"], type=click.Choice(["central", "forward", "ridders"]),
                                help="By finite differences of this scheme."),
    "step": click.Option(["--step"], type=float, help="Of finite differences, in proportion to max(|x|, 1)."),
    "absolute": click.Option(["--absolute-step", "absolute"], is_flag=True, help="The step is a distance."),
    "clip_norm": click.Option(["--clip-norm"], type=float, help="Scale the gradient to this L2 norm if it is longer."),
    "clip_value": click.Option(["--clip-value"], type=float, help="Keep the magnitude of each element within this."),
    "columns": click.Option(["--columns"], multiple=True, help="Inputs of the columns, for a block."),
    "diagonal": click.Option(["--diagonal"], is_flag=True, help="The diagonal alone."),
    "sparse": click.Option(["--sparse"], is_flag=True, help="The elements that can be other than zero, alone."),
    "samples": click.Option(["--samples"], type=click.IntRange(2), help="An estimate from so many random products."),
    "seed": click.Option(["--seed"], type=click.IntRange(0), default=0, show_default=True, help="Of an estimate."),
    "stacked": click.Option(["--stacked"], is_flag=True, help="The vector is a stack of vectors."),
    "order": click.Option(["--order"], type=click.IntRange(1), default=1, show_default=True, help="The highest order."),
    "tangent": click.Option(["--tangent"], multiple=True, help="The tangent: V, or INPUT=V for each input that moves."),
    "cotangent": click.Option(["--cotangent"], multiple=True, help="The cotangent: V, or OUTPUT=V for each output."),
    "direction": click.Option(["--direction"], multiple=True, help="The direction: V, or INPUT=V for each that moves."),
}  # fmt: skip

_DIFFERENCES = ("differences", "step", "absolute")

_OPERATORS: dict[str, tuple[str, Sequence[str]]] = {
    "evaluate": ("The value of FUNCTION.", ("outputs",)),
    "gradient": (
        "The gradient of a scalar FUNCTION, and its norms.",
        ("wrt", "output", "mode", *_DIFFERENCES, "clip_norm", "clip_value"),
    ),
    "jacobian": ("The Jacobian of FUNCTION.", ("wrt", "outputs", "sparse", "mode", *_DIFFERENCES)),
    "hessian": (
        "The Hessian of a scalar FUNCTION.",
        ("wrt", "columns", "diagonal", "sparse", "samples", "seed", "output", "mode", *_DIFFERENCES),
    ),
    "hvp": (
        "Hessian of a scalar FUNCTION times a tangent.",
        ("tangent", "stacked", "wrt", "output", "mode", *_DIFFERENCES),
    ),
    "jvp": ("Jacobian of FUNCTION times a tangent.", ("tangent", "stacked", "outputs", *_DIFFERENCES)),
    "vjp": ("Cotangent times the Jacobian of FUNCTION.", ("cotangent", "stacked", "wrt")),
    "directional_derivative": ("Rate of change of a scalar FUNCTION along a direction.", ("direction", "output")),
    "derivative": (
        "Derivatives of orders 1 to n of FUNCTION in one real variable, or along a line.",
        ("order", "direction", "one_wrt", "outputs"),
    ),
    "laplacian": (
        "The Laplacian of a scalar FUNCTION, exact or estimated.",
        ("samples", "seed", "wrt", "output", "mode"),
    ),
}
_VECTORS = ("tangent", "cotangent", "direction")
_WORDS = ("wrt", "columns", "output", "outputs", "mode", "differences")
"""The options whose values are names."""


def _operator_command(operator: str) -> click.Command:
    """The command for one operator: its options become the keywords of the client's method."""
    summary, names = _OPERATORS[operator]

    @connects
    def run(  # noqa: PLR0917 - click passes everything by keyword
        function: str,
        inputs: tuple[str, ...],
        batched: bool,
        address: str,
        timeout: float,
        as_json: bool,
        **options: Any,
    ) -> None:
        options = _with_differences(options)
        keywords = {key: _keyword(key, value) for key, value in options.items() if value not in ((), None)}
        with connected(address, timeout) as client:
            result = getattr(client, operator)(function, **parse_assignments(inputs), batched=batched, **keywords)
        if as_json:
            click.echo(json.dumps(output.result_json(result), indent=2))
        else:
            console.print(output.result_table(function, operator, result))

    command = click.command(operator.replace("_", "-"), help=summary)(run)
    command.params = [
        click.Argument(["function"]),
        click.Option(["--input", "-i", "inputs"], multiple=True, help=INPUT_HELP),
        *(_OPTIONS[name] for name in names),
        click.Option(["--batched"], is_flag=True, help="The first axis of every input runs over points."),
        *command.params,
    ]
    return command


def _with_differences(options: dict[str, Any]) -> dict[str, Any]:
    """The options with finite differences as one of them, in place of the three that say what they are."""
    scheme, step, absolute = (options.pop(name, None) for name in _DIFFERENCES)
    if scheme is not None:
        return options | {"differences": Differences(scheme, step, bool(absolute))}
    if step is not None or absolute:
        raise click.UsageError("only finite differences have a step; say which with --differences")
    return options


def _keyword(name: str, value: Any) -> Any:
    """A command-line value as the client's keyword takes it."""
    if name in _VECTORS:
        if len(value) == 1 and "=" not in value[0]:
            return parse_value(value[0])
        return parse_assignments(value)
    return (
        list(value) if isinstance(value, tuple) and len(value) > 1 else value[0] if isinstance(value, tuple) else value
    )


@main.command()
@click.argument("function")
@click.option(
    "--operator",
    type=click.Choice(sorted(_OPERATORS)),
    default="gradient",
    show_default=True,
    help="What would be asked.",
)
@click.option("--input", "-i", "inputs", multiple=True, help=INPUT_HELP)
@click.option(
    "--option",
    "-o",
    "options",
    multiple=True,
    help="NAME=VALUE for an option of the operator, such as wrt=x, diagonal=true or tangent=1,0.",
)
@click.option("--batched", is_flag=True, help="The first axis of every input runs over points.")
@connects
def explain(  # noqa: PLR0917 - click passes everything by keyword
    function: str,
    operator: str,
    inputs: tuple[str, ...],
    options: tuple[str, ...],
    batched: bool,
    address: str,
    timeout: float,
    as_json: bool,
) -> None:
    """Show how the server would answer a call about FUNCTION, and what that costs; it is not carried out."""
    keywords = parse_assignments(inputs) | {
        name: text if name in _WORDS else parse_value(text) for name, _, text in (o.partition("=") for o in options)
    }
    with connected(address, timeout) as client:
        found = client.explain(operator, function, batched=batched, **keywords)
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(found), indent=2))
    else:
        console.print(output.explanation_panel(found))


for _operator in _OPERATORS:
    main.add_command(_operator_command(_operator))
for _command in (check, curvature, layers, reload, top):
    main.add_command(_command)
