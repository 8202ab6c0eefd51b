"""`python -m benchmarks`: measures every claim beside its floors and prints one table."""

import importlib.util
import sys
import tempfile
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from benchmarks import report
from benchmarks.claims import CLAIMS
from benchmarks.figures import Figure
from benchmarks.jobs import WrongAnswer
from benchmarks.stand import FULL, QUICK, Stand


@click.command()
@click.option("--quick/--full", default=True, help="At most 3 minutes, or at most 15 and steadier. [default: quick]")
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path),
              help="Write every sample and the machine's facts to this file.")  # fmt: skip
@click.option("--plot", "plots", type=click.Path(file_okay=False, path_type=Path),
              help="Draw the figures as PNG files into this directory; needs matplotlib.")  # fmt: skip
@click.option(
    "--only",
    multiple=True,
    metavar="CLAIM",
    help=f"Only claims whose name contains this; may be repeated. There are: {', '.join(CLAIMS)}.",
)
def main(quick: bool, json_file: Path | None, plots: Path | None, only: tuple[str, ...]) -> None:
    """Measures what nablad claims, each figure as a ratio to floors that are measured in the same run.

    Servers run on one core and clients on another, where there are two. Every answer is checked against a closed form:
    a wrong one ends the run with exit status 1. Missed targets do not; the table says so.
    """
    if plots is not None and importlib.util.find_spec("matplotlib") is None:
        raise click.UsageError("--plot needs matplotlib: pip install --group bench, or leave --plot out")
    chosen = {name: claim for name, claim in CLAIMS.items() if not only or any(part in name for part in only)}
    if not chosen:
        raise click.UsageError(f"--only {' '.join(only)} matches no claim; there are {', '.join(CLAIMS)}")
    # A file or a pipe has no width of its own.
    console = Console(width=None if sys.stdout.isatty() else 170)
    facts, figures = report.machine(), list[Figure]()
    pace = QUICK if quick else FULL
    columns = (
        SpinnerColumn(),
        MofNCompleteColumn(),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    try:
        # Drawn twice a second: the clients' core is not for drawing.
        with (
            Progress(*columns, console=Console(stderr=True), refresh_per_second=2, transient=True) as progress,
            tempfile.TemporaryDirectory(prefix="nablad-benchmarks-") as scratch,
        ):
            task = progress.add_task("", total=len(chosen))
            with Stand(pace, Path(scratch), lambda text: progress.update(task, description=text)) as stand:
                for claim in chosen.values():
                    figures += claim(stand)
                    progress.advance(task)
    except WrongAnswer as error:
        console.print(f"[red]A wrong answer:[/] {error}")
        sys.exit(1)
    report.show(console, figures, facts)
    if json_file is not None:
        report.write_json(json_file, pace, figures, stand.curves, facts)
    if plots is not None:
        from benchmarks.plots import draw  # noqa: PLC0415 - matplotlib is optional

        for path in draw(plots, figures, stand.curves):
            console.print(f"drawn: {path}")


if __name__ == "__main__":
    main()
