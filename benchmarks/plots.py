"""The figures as pictures. Needs matplotlib, which is in the dependency group `bench`."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib import pyplot as plt
from matplotlib.figure import Figure as MatplotlibFigure

from benchmarks.figures import Figure, Target
from benchmarks.workloads import WORKLOADS

mpl.use("agg")


def draw(directory: Path, figures: Sequence[Figure], curves: Mapping[str, Mapping[int, Sequence[float]]]) -> list[Path]:
    """Writes the PNG files for which there are figures, and gives their paths."""
    directory.mkdir(parents=True, exist_ok=True)
    drawn = []
    # A bound or a figure of zero has no place on an axis of ratios.
    if aimed := [(f, f.target) for f in figures if f.target and f.target.bound > 0 and min(f.samples) > 0]:
        drawn.append(_targets(directory / "targets.png", aimed))
    if curves:
        drawn.append(_batches(directory / "in_process.png", curves))
    if rated := [figure for figure in figures if "C, calls/s" in figure.beside]:
        drawn.append(_throughput(directory / "throughput.png", rated))
    return drawn


def _targets(path: Path, aimed: Sequence[tuple[Figure, Target]]) -> Path:
    """How much of its target each figure reaches, with the spread over repeats."""
    drawing, axes = plt.subplots(figsize=(11, 1.2 + 0.55 * len(aimed)), layout="constrained")
    for row, (figure, target) in enumerate(aimed):
        shares = sorted(map(target.share, figure.samples))
        colour = "tab:green" if figure.verdict == "pass" else "tab:red"
        axes.plot([shares[0], shares[-1]], [row, row], color=colour, linewidth=5, alpha=0.35, solid_capstyle="round")
        axes.plot(target.share(figure.median), row, "o", color=colour)
    axes.axvline(1, color="black", linewidth=1)
    labels = [f"{f.claim.replace('_', ' ')}\n{f.case}: {f.name} {target}" for f, target in aimed]
    axes.set_yticks(range(len(aimed)), labels, fontsize=7)
    axes.invert_yaxis()
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("share of the target reached: right of 1 it is met (median, least to greatest)")
    return _save(path, drawing)


def _batches(path: Path, curves: Mapping[str, Mapping[int, Sequence[float]]]) -> Path:
    """What the executables do in process."""
    drawing, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    for name, by_batch in sorted(curves.items()):
        batches = sorted(by_batch)
        axes.plot(batches, [statistics.median(by_batch[batch]) for batch in batches], "o-", label=_label(name))
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel("points in one call")
    axes.set_ylabel("points/s, in process")
    axes.grid(visible=True, alpha=0.3)
    axes.legend(fontsize=8)
    return _save(path, drawing)


def _throughput(path: Path, figures: Sequence[Figure]) -> Path:
    """Calls in flight beside their floors."""
    drawing, axes = plt.subplots(figsize=(10, 5), layout="constrained")
    kinds = ("echo (threads)", "echo (asyncio)", "in process", "C", "nablad")
    for position, kind in enumerate(kinds):
        samples = [
            next(values for name, values in figure.beside.items() if name.startswith(kind)) for figure in figures
        ]
        medians = [statistics.median(values) for values in samples]
        spread = [
            [median - min(values) for median, values in zip(medians, samples, strict=True)],
            [max(values) - median for median, values in zip(medians, samples, strict=True)],
        ]
        places = [row + (position - 2) * 0.17 for row in range(len(figures))]
        axes.bar(places, medians, 0.16, yerr=spread, label=kind, error_kw={"linewidth": 1})
    axes.set_xticks(range(len(figures)), [figure.case.replace(", ", ",\n") for figure in figures], fontsize=8)
    axes.set_yscale("log")
    axes.set_ylabel("calls/s or points/s")
    axes.legend(ncols=len(kinds), fontsize=8)
    return _save(path, drawing)


def _label(name: str) -> str:
    return f"{name} {WORKLOADS[name].title}"


def _save(path: Path, drawing: MatplotlibFigure) -> Path:
    drawing.savefig(path, dpi=150)
    plt.close(drawing)
    return path
