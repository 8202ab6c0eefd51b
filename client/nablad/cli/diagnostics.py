"""`nablad curvature` and `nablad layers`: reports on derivatives."""

import dataclasses
import json
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
from nablad.reports import Curvature, LayerReport

console = Console()

_PLOT = click.Path(dir_okay=False, path_type=Path)


@click.command()
@click.argument("function")
@click.option("--input", "-i", "inputs", multiple=True, help=INPUT_HELP)
@click.option("--wrt", multiple=True, help="An input of the Hessian; may be repeated. Default: all.")
@click.option("--output", help="The scalar output, if there are several.")
@click.option("--batched", is_flag=True, help="The first axis of every input runs over points.")
@connects
def curvature(  # noqa: PLR0917 - click passes everything by keyword
    function: str,
    inputs: tuple[str, ...],
    wrt: tuple[str, ...],
    output: str | None,
    batched: bool,
    address: str,
    timeout: float,
    as_json: bool,
) -> None:
    """Say whether the Hessian of a scalar FUNCTION is definite, with its extreme eigenvalues and its condition."""
    with connected(address, timeout) as client:
        found: Any = client.curvature(
            function, **parse_assignments(inputs), wrt=wrt or None, output=output, batched=batched
        )
    points: tuple[Curvature, ...] = found if batched else (found,)
    if as_json:
        reports = [plain(dataclasses.asdict(point)) for point in points]
        click.echo(json.dumps(reports if batched else reports[0], indent=2))
    else:
        console.print(_curvature_table(points))


@click.command()
@click.argument("function")
@click.option("--input", "-i", "inputs", multiple=True, help=INPUT_HELP)
@click.option("--wrt", multiple=True, help="An input whose gradient is listed; may be repeated. Default: all.")
@click.option("--output", help="The scalar output, if there are several.")
@click.option("--batched", is_flag=True, help="The first axis of every input runs over points.")
@click.option("--plot", type=_PLOT, help="Also draw the layers into this file, such as layers.png. Needs matplotlib.")
@connects
def layers(  # noqa: PLR0917 - click passes everything by keyword
    function: str,
    inputs: tuple[str, ...],
    wrt: tuple[str, ...],
    output: str | None,
    batched: bool,
    plot: Path | None,
    address: str,
    timeout: float,
    as_json: bool,
) -> None:
    """Say whether the gradient of a scalar FUNCTION vanishes or explodes on its way back through its activations."""
    with connected(address, timeout) as client:
        found = client.layers(function, **parse_assignments(inputs), wrt=wrt or None, output=output, batched=batched)
    if plot is not None:
        _draw(plot, found)
    if as_json:
        click.echo(json.dumps(plain(dataclasses.asdict(found)), indent=2))
    else:
        console.print(_layers_table(found))


def _curvature_table(points: tuple[Curvature, ...]) -> RenderableType:
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("#", justify="right", no_wrap=True)
    table.add_column("Hessian", overflow="fold")
    for column in ("smallest", "largest", "condition", "−/0/+", "‖∇f‖"):
        table.add_column(column, justify="right", no_wrap=True)
    for number, point in enumerate(points):
        skewed = not point.symmetric and point.definiteness != "undefined"
        table.add_row(
            str(number),
            point.definiteness.replace("_", " ") + (f", asymmetry {point.asymmetry:.2g}" if skewed else ""),
            *(f"{x:.4g}" for x in (point.smallest_eigenvalue, point.largest_eigenvalue, point.condition_number)),
            f"{point.negative}/{point.zero}/{point.positive}",
            f"{point.gradient_norm:.4g}",
        )
    size = points[0].size
    return Group(table, Text(f"{points[0].function}, {size} × {size}", style="dim"))


def _layers_table(found: LayerReport) -> RenderableType:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("layer", "activation", "where", "shape", "output", "gradient", "ratio", "saturated"):
        text = column in ("activation", "where", "shape")
        table.add_column(column, justify="left" if text else "right", overflow="fold", no_wrap=not text)
    for number, layer in enumerate(found.layers, 1):
        table.add_row(
            str(number),
            layer.activation,
            escape(layer.location),
            escape(str(list(layer.shape))),
            *(f"{norm:.3g}" for norm in (layer.output_norm, layer.gradient_norm, layer.ratio)),
            f"{layer.saturated_share:.0%}",
        )
    inputs = ", ".join(f"{name}: {norm:.3g}" for name, norm in found.inputs.items())
    return Group(
        Text(f"{found.function}: {found.flow.replace('_', ' ')}", style="bold"),
        Text(found.reason),
        Text(""),
        table,
        Text(f"gradients of inputs: {inputs}", style="dim"),
    )


def _draw(file: Path, found: LayerReport) -> None:
    """Norms and saturated shares by layer. Raises click.ClickException without matplotlib, or if it cannot write."""
    numbers = range(1, len(found.layers) + 1)
    drawing, (axes,) = subplots(1)
    axes.semilogy(numbers, [layer.gradient_norm for layer in found.layers], "o-", markersize=4, label="gradient")
    axes.semilogy(numbers, [layer.output_norm for layer in found.layers], "s--", markersize=3, label="output")
    axes.set_xlabel("layer")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_ylabel("root mean square")
    axes.set_title(f"{found.function}: {found.flow.replace('_', ' ')}")
    shares = axes.twinx()
    shares.bar(numbers, [layer.saturated_share for layer in found.layers], color="grey", alpha=0.25, label="saturated")
    shares.set_ylim(0, 1)
    shares.set_ylabel("share of saturated units")
    drawing.legend(loc="outside lower center", ncols=3)
    saved(drawing, file)
