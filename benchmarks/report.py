"""What a run leaves: the table, and a JSON file of every sample and of the machine."""

import importlib.metadata
import json
import os
import platform
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from benchmarks.figures import Figure, readable, with_spread
from benchmarks.processes import cores
from benchmarks.stand import Pace

PACKAGES = ("nablad", "grpcio", "protobuf", "numpy", "jax", "jaxlib")


def table(figures: Iterable[Figure]) -> Table:
    """One row a figure, under the name of its claim."""
    found = Table(box=SIMPLE_HEAD, header_style="bold", pad_edge=False)
    for name, share in (("claim and case", 6), ("figure", 5), ("median (spread)", 3), ("target", 1), ("", 1)):
        found.add_column(name, ratio=share)
    found.add_column("measured with it, medians", ratio=6)
    claim = ""
    for figure in figures:
        if figure.claim != claim:
            found.add_section()
            found.add_row(f"[bold]{figure.claim.replace('_', ' ')}[/]")
        beside = (f"{name.partition(',')[0]} {_measured(name, samples)}" for name, samples in figure.beside.items())
        found.add_row(
            f"  {figure.case}",
            figure.name,
            with_spread(figure.samples),
            str(figure.target or ""),
            {"pass": "[green]pass[/]", "miss": "[red]miss[/]", "": ""}[figure.verdict],
            f"[dim]{', '.join(beside)}[/]",
        )
        claim = figure.claim
    return found


def _measured(name: str, samples: Sequence[float]) -> str:
    """The median with its unit, which the name says after a comma."""
    value, unit = statistics.median(samples), name.partition(", ")[2]
    if unit != "s":
        return f"{readable(value)} {unit}".strip()
    scale, unit = (1, "s") if value >= 1 else (1e3, "ms") if value >= 1e-3 else (1e6, "µs")
    return f"{readable(value * scale)} {unit}"


def summary(figures: Sequence[Figure]) -> str:
    """How many targets were met."""
    verdicts = [figure.verdict for figure in figures if figure.verdict]
    return f"All answers were right. {verdicts.count('pass')} of {len(verdicts)} targets met."


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    answering, asking = cores()
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "core of servers": sorted(answering),
        "core of clients": sorted(asking),
        "load average": os.getloadavg() if hasattr(os, "getloadavg") else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def write_json(
    path: Path, pace: Pace, figures: Iterable[Figure], curves: dict[str, dict[int, list[float]]], facts: dict[str, Any]
) -> None:
    """Every sample, with its figure's median and verdict."""
    rows = [asdict(figure) | {"median": figure.median, "verdict": figure.verdict} for figure in figures]
    content = {"machine": facts, "pace": asdict(pace), "figures": rows, "in process, points/s by batch": curves}
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def show(console: Console, figures: Sequence[Figure], facts: dict[str, Any]) -> None:
    """Prints the table."""
    console.print(table(figures))
    console.print(
        f"{facts['processor']}, {facts['cores']} cores, servers on {facts['core of servers'] or 'any'}, clients on "
        f"{facts['core of clients'] or 'any'}; " + ", ".join(f"{k} {v}" for k, v in facts["packages"].items())
    )
    console.print(summary(figures))


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()
