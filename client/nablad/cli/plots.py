"""Pictures in files, for commands with --plot. matplotlib is imported only here, and only when one is drawn."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

COLUMNS = 3


def subplots(count: int) -> tuple[Any, Sequence[Any]]:
    """A figure and so many axes in it, three in a row. Raises click.ClickException without matplotlib."""
    try:
        import matplotlib as mpl  # noqa: PLC0415 - only a plot needs it

        mpl.use("agg")  # files, no windows
        from matplotlib import pyplot as plt  # noqa: PLC0415 - likewise
    except ImportError as error:
        raise click.ClickException(f"--plot needs matplotlib: pip install matplotlib ({error})") from None
    across = min(count, COLUMNS)
    down = math.ceil(count / across)
    width = 7 if across == 1 else 4.5 * across
    drawing, grid = plt.subplots(down, across, figsize=(width, 4 * down), layout="constrained", squeeze=False)
    axes = list(grid.flat)
    for unused in axes[count:]:
        unused.set_axis_off()
    return drawing, axes[:count]


def saved(drawing: Any, file: Path) -> None:
    """Writes the figure. Raises click.ClickException if that cannot be done."""
    try:
        drawing.savefig(file, dpi=120)
    except (OSError, ValueError) as error:
        raise click.ClickException(f"cannot draw into {file}: {error}; expected a path such as layers.png") from None
