"""`python -m resilience`: breaks a server of its own, reports what became of its callers, and exits with 1 if badly."""

import sys
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from resilience.chaos import SCENARIOS, Outcome
from resilience.fuzz import Findings, fuzz, read_case, replay
from resilience.server import Server
from resilience.soak import Soak, soak

CONSOLE = Console(width=None if sys.stdout.isatty() else 140)


@click.group()
def main() -> None:
    """Breaks nablad servers on purpose. Every command starts its own, on the loopback interface."""


@main.command("fuzz")
@click.option("--messages", default=100_000, show_default=True, help="Messages to send, about.")
@click.option("--seed", default=1, show_default=True, help="The same messages for the same seed.")
@click.option("--reproducers", default=Path("reproducers"), show_default=True,
              type=click.Path(file_okay=False, path_type=Path),
              help="Directory for the messages that broke something.")  # fmt: skip
@click.option("--replay", "case", type=click.Path(exists=True, dir_okay=False, path_type=Path),
              help="Send one of those again instead.")  # fmt: skip
def fuzz_command(messages: int, seed: int, reproducers: Path, case: Path | None) -> None:
    """Sends messages that no client would to every RPC. They may bring refusals and answers, and nothing else."""
    with Server("--compile-cache", "none") as server:
        if case is None:
            findings = fuzz(server.address, messages, seed, reproducers)
        else:
            findings = replay(server.address, read_case(case), reproducers)
        if not server.alive:
            findings.violations.append("the server ended")
        findings.violations += [f"the server logged a defect of its own: {line}" for line in server.defects]
    _show_findings(findings)
    sys.exit(bool(findings.violations))


def _show_findings(findings: Findings) -> None:
    table = Table("RPC", "ended with", "calls")
    for (rpc, status), calls in sorted(findings.statuses.items()):
        table.add_row(rpc, status, str(calls))
    CONSOLE.print(table)
    for violation in findings.violations[:20]:
        CONSOLE.print(f"[red]{violation}[/]", soft_wrap=True)
    CONSOLE.print(
        f"{findings.messages} messages in {findings.seconds:.0f} s, {findings.checked} good calls among them, "
        f"{len(findings.violations)} violations"
    )


@main.command("chaos")
@click.option("--only", multiple=True, metavar="SCENARIO", help=f"There are: {', '.join(SCENARIOS)}.")
@click.option("--seconds", default=5.0, show_default=True, help="How long each scenario keeps its load up.")
def chaos_command(only: tuple[str, ...], seconds: float) -> None:
    """Breaks what is around a server while it is called. With retries on, no call may be lost and no answer wrong."""
    unknown = set(only) - set(SCENARIOS)
    if unknown:
        raise click.UsageError(f"--only {' '.join(sorted(unknown))}: there is no such scenario; see --help")
    table = Table("scenario", "calls", "lost", "wrong", "recovery", "remarks")
    outcomes: list[Outcome] = []
    for name, scenario in SCENARIOS.items():
        if only and name not in only:
            continue
        outcome = scenario(seconds)
        outcomes.append(outcome)
        table.add_row(name, str(outcome.calls), str(outcome.lost), str(outcome.wrong),
                      f"{outcome.recovery_seconds:.2f} s", outcome.remark)  # fmt: skip
    CONSOLE.print(table)
    sys.exit(not all(outcome.fine for outcome in outcomes))


@main.command("soak")
@click.option("--minutes", default=10.0, show_default=True, help="How long.")
def soak_command(minutes: float) -> None:
    """Mixed traffic with errors and cancellations, and what the server's process holds meanwhile: it must not grow."""
    result = soak(minutes * 60)
    _show_soak(result)
    sys.exit(not result.fine)


def _show_soak(result: Soak) -> None:
    table = Table("measure", "first", "last", "slope an hour, 99 % interval", "verdict")
    for trend in result.trends:
        table.add_row(trend.name, f"{trend.first:.4g}", f"{trend.last:.4g}",
                      f"{trend.low:+.3g} … {trend.high:+.3g}", "flat" if trend.flat else "[red]grows[/]")  # fmt: skip
    CONSOLE.print(table)
    CONSOLE.print(f"{result.calls} calls, {result.wrong} wrong answers, {result.lost} lost")


if __name__ == "__main__":
    main()
