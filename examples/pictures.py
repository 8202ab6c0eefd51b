"""What the examples draw: paths over contours, and rows of images. Needs matplotlib."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt
from numpy.typing import NDArray

from nablad import Client

mpl.use("agg")  # files, no windows

Array = NDArray[np.float64]


def draw_paths(file: Path, client: Client, function: str, paths: Mapping[str, Array]) -> None:
    """Paths (steps × 2) by name, over the contours of a function of a vector of two; its values are served too."""
    corners = np.concatenate(list(paths.values()))
    margin = 0.2 * (corners.max(axis=0) - corners.min(axis=0)) + 0.1
    (left, low), (right, high) = corners.min(axis=0) - margin, corners.max(axis=0) + margin
    x, y = np.meshgrid(np.linspace(left, right, 120), np.linspace(low, high, 120))
    heights = client.evaluate(function, np.stack([x.ravel(), y.ravel()], axis=1), batched=True).value.reshape(x.shape)
    drawing, axes = plt.subplots(figsize=(6, 5), layout="constrained")
    axes.contour(x, y, np.log1p(heights - heights.min()), levels=20, cmap="Greys", linewidths=0.8)
    for name, path in paths.items():
        axes.plot(*path.T, "o-", markersize=3, linewidth=1, label=name)
    axes.set_title(function)
    axes.legend()
    _save(file, drawing)


def draw_curves(file: Path, label: str, curves: Mapping[str, Sequence[float]]) -> None:
    """What falls from step to step, on a logarithmic axis."""
    drawing, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for number, (name, curve) in enumerate(curves.items()):
        axes.semilogy(curve, linewidth=3 - 2 * number, label=name)  # thinner upon thicker: equal ones are both seen
    axes.set_xlabel("step")
    axes.set_ylabel(label)
    axes.legend()
    _save(file, drawing)


def draw_images(file: Path, rows: Mapping[str, Array], titles: Mapping[str, Sequence[str]]) -> None:
    """Rows of 8 × 8 images (images × 64) by name, each on a scale of its own, with titles for those that have some."""
    columns = max(map(len, rows.values()))
    drawing, grid = plt.subplots(
        len(rows), columns, figsize=(1.2 * columns, 1.5 * len(rows)), squeeze=False, layout="constrained"
    )
    for line, (name, images) in zip(grid, rows.items(), strict=True):
        line[0].set_ylabel(name)
        for place, (axes, image) in enumerate(zip(line, images, strict=True)):
            axes.imshow(image.reshape(8, 8), cmap="gray_r")
            axes.set_xticks([])
            axes.set_yticks([])
            if name in titles:
                axes.set_title(titles[name][place], fontsize=8)
    _save(file, drawing)


def _save(file: Path, drawing: Any) -> None:
    drawing.savefig(file, dpi=120)
    plt.close(drawing)
