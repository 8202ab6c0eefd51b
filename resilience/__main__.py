"""`python -m resilience`: breaks a server of its own, reports what became of its callers, and exits with 1 if badly."""

import json
import sys
import tempfile
from pathlib import Path

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from resilience.chaos import SCENARIOS, Run, run
from resilience.fuzz import Findings, fuzz, read_case, replay
from resilience.guided import guided, missing, read_again
from resilience.secured import secured
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
              help="Send, or with --guided read, one of those again instead.")  # fmt: skip
@click.option("--guided", "is_guided", is_flag=True,
              help="Have a coverage-guided fuzzer look for bytes that are read wrong, without a server.")  # fmt: skip
@click.option("--secured", "is_secured", is_flag=True,
              help="Over TLS: as a caller of one function, and as callers whom the server does not know.")  # fmt: skip
@click.option("--runs", default=20_000, show_default=True, help="With --guided: inputs for each reader.")
def fuzz_command(
    *, messages: int, seed: int, reproducers: Path, case: Path | None, is_guided: bool, is_secured: bool, runs: int,
) -> None:  # fmt: skip
    """Sends messages that no client would to every RPC. They may bring refusals and answers, and nothing else."""
    if is_guided:
        _explore(runs, seed, reproducers, case)
        return
    if is_secured:
        _fuzz_secured(messages, seed, reproducers, case)
        return
    with Server("--compile-cache", "none") as server:
        if case is None:
            findings = fuzz(server.address, messages, seed, reproducers)
        else:
            findings = replay(server.address, read_case(case), reproducers)
        _add_defects(findings, server)
    _show_findings(findings)
    sys.exit(bool(findings.violations))


def _fuzz_secured(messages: int, seed: int, reproducers: Path, case: Path | None) -> None:
    all_findings = []
    with tempfile.TemporaryDirectory() as directory, secured(Path(directory)) as (server, listed, strangers):
        # Whom the server does not know it can refuse quickly: a tenth of the messages is theirs.
        for guise, share in ((listed, 0.8), *((stranger, 0.1) for stranger in strangers)):
            if case is None:
                findings = fuzz(server.address, round(messages * share), seed, reproducers, guise)
            else:
                findings = replay(server.address, read_case(case), reproducers, guise)
            _add_defects(findings, server)
            all_findings.append(findings)
    for findings in all_findings:
        _show_findings(findings)
    sys.exit(any(findings.violations for findings in all_findings))


def _add_defects(findings: Findings, server: Server) -> None:
    if not server.alive:
        findings.violations.append("the server ended")
    findings.violations += [f"the server logged a defect of its own: {line}" for line in server.defects]


def _explore(runs: int, seed: int, reproducers: Path, case: Path | None) -> None:
    if case is not None:
        read_again(case)
        CONSOLE.print(f"{case} is read as it should be")
        return
    if why := missing():
        raise click.ClickException(why)
    table = Table("reader", "inputs", "reached by seeds", "reached", "finding")
    found = guided(runs, seed, reproducers)
    for each in found:
        table.add_row(each.reader, str(each.runs), str(each.seeded), str(each.reached), each.finding[:300])
    CONSOLE.print(table)
    for each in found:
        if each.finding:
            CONSOLE.print(f"[red]{each.reader}[/]: see {each.where}", soft_wrap=True)
    sys.exit(any(each.finding for each in found))


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
@click.argument("names", nargs=-1, metavar="[SCENARIO]...")
@click.option("--seconds", default=6.0, show_default=True, help="How long each scenario keeps its load up, about.")
@click.option("--json", "path", type=click.Path(dir_okay=False, path_type=Path),
              help="Write the report there, too, as JSON.")  # fmt: skip
def chaos_command(names: tuple[str, ...], seconds: float, path: Path | None) -> None:
    """Breaks what is around a server while it is called: all scenarios, or those that are named.

    With retries on, no call may be lost and no answer wrong; and each scenario has to show that its fault was met.
    """
    unknown = sorted(set(names) - set(SCENARIOS))
    if unknown:
        raise click.UsageError(f"{' '.join(unknown)}: no such scenario; there are {', '.join(SCENARIOS)}")
    runs = []
    for made in run(names or SCENARIOS, seconds):
        CONSOLE.print(f"{made.scenario}: {made.outcome.verdict} after {made.seconds:.0f} s", style="dim")
        runs.append(made)
    _show_chaos(runs)
    if path is not None:
        path.write_text(json.dumps([made.report() for made in runs], indent=1) + "\n")
    sys.exit(not all(made.outcome.verdict in ("fine", "skipped") for made in runs))


def _show_chaos(runs: list[Run]) -> None:
    table = Table("scenario", "verdict", "calls", "lost", "wrong", "recovery", "evidence", show_lines=True)
    for made in runs:
        outcome = made.outcome
        told = [outcome.evidence or outcome.skipped]
        told += [f"[red]not seen: {sign}[/]" for sign in outcome.missing]
        told += [f"[red]{escape(violation)}[/]" for violation in outcome.violations]
        table.add_row(made.scenario, outcome.verdict, str(outcome.calls), str(outcome.lost), str(outcome.wrong),
                      f"{outcome.recovery_seconds:.2f} s", "\n".join(told))  # fmt: skip
    CONSOLE.print(table)
    fine = sum(made.outcome.verdict == "fine" for made in runs)
    CONSOLE.print(f"{fine} of {len(runs)} scenarios fine, {sum(made.seconds for made in runs):.0f} s")


@main.command("soak")
@click.option("--minutes", default=10.0, show_default=True, help="How long.")
@click.option("--json", "path", type=click.Path(dir_okay=False, path_type=Path),
              help="Write the report there, too, as JSON.")  # fmt: skip
def soak_command(minutes: float, path: Path | None) -> None:
    """Mixed traffic with errors and cancellations, and what the server's process holds meanwhile: it must not grow."""
    result = soak(minutes * 60)
    _show_soak(result)
    if path is not None:
        path.write_text(json.dumps(result.report(), indent=1) + "\n")
    sys.exit(not result.fine)


def _show_soak(result: Soak) -> None:
    table = Table("measure", "first", "last", "slope an hour, 99 % interval", "found if above", "needed", "verdict")
    for each in result.trends:
        verdict = each.verdict if each.verdict == "flat" else f"[red]{each.verdict}[/]"
        table.add_row(each.name, f"{each.first:.4g}", f"{each.last:.4g}", f"{each.low:+.3g} … {each.high:+.3g}",
                      f"{each.detectable:.2g}", f"{each.limit:.2g}", verdict)  # fmt: skip
    CONSOLE.print(table)
    CONSOLE.print(
        f"{result.seconds:.0f} s judged; {result.calls} calls with known answers, {result.wrong} wrong, "
        f"{result.lost} lost; {result.others} others"
    )


if __name__ == "__main__":
    main()
