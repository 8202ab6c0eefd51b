"""Fits the NIST problems through a real server and in process, and compares both with the certified values.

    python tests/nist_strd [PROBLEM]...

Starts `nablad serve tests/nist_strd/functions.py` on a free port, fits every problem (or those named) from both of its
starts, and prints how many digits are right. The exit status is 1 if a fit from start 2 misses a criterion, or one from
start 1 that succeeds in process.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import click
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the tests' own modules are not installed

import nablad
from nist_strd import fitting, problems
from servers import ServerProcess

FUNCTIONS = Path(__file__).with_name("functions.py")


@click.command()
@click.argument("names", nargs=-1, metavar="[PROBLEM]...", type=click.Choice(problems.names(), case_sensitive=False))
def main(names: Sequence[str]) -> None:
    """Fits the NIST problems (all, or those named) with served derivatives, and prints how many digits are right."""
    chosen = [problems.load(name) for name in names or problems.names()]
    table = Table(title="Digits of the worst parameter that agree with NIST's certified 11")
    for heading in ("problem", "level", "start", "digits", "deviations", "calls", "in process", "ok"):
        table.add_column(heading, justify="left" if heading in ("problem", "level") else "right")
    console = Console()
    failures = calls = 0
    with (
        ServerProcess(FUNCTIONS) as server,
        nablad.Client(server.address) as client,
        Progress(console=Console(stderr=True), transient=True) as progress,
    ):
        task = progress.add_task("", total=2 * len(chosen))
        for problem in chosen:
            served, local = fitting.remote(client, problem.function), fitting.in_process(problem.function)
            for start in (1, 2):
                progress.update(task, description=f"{problem.name} from start {start}")
                fit = fitting.fit(problem, start, served)
                found = fitting.digits(problem, fit)
                reference = fitting.digits(problem, fitting.fit(problem, start, local))
                good = found.enough or (start == 1 and not reference.enough)
                failures += not good
                calls += fit.calls
                table.add_row(
                    problem.name, problem.difficulty, str(start), f"{found.parameters:.1f}", f"{found.deviations:.1f}",
                    str(fit.calls), f"{reference.parameters:.1f}", "yes" if good else "[red]no",
                )  # fmt: skip
                progress.advance(task)
    console.print(table)
    console.print(f"{2 * len(chosen)} fits, {calls} calls, {failures} failed")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
