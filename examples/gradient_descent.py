"""Gradient descent with served gradients, plain and with momentum: the path over the contours of a quadratic."""

from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from connection import address_option, connected, plot_option
from nablad import Client

FUNCTION, START, MINIMUM = "booth", (8.0, 1.0), (1.0, 3.0)
"""Booth's function: its Hessian has the eigenvalues μ = 2 and L = 18 everywhere."""


def descend(
    client: Client, function: str, start: tuple[float, ...], step: float, *, momentum: float = 0.0, steps: int = 60
) -> NDArray[np.float64]:
    """The path from `start`, (steps + 1) × n: vₖ₊₁ = momentum · vₖ − step · ∇f(xₖ), xₖ₊₁ = xₖ + vₖ₊₁.

    Source of the momentum: Polyak (1964), Some methods of speeding up the convergence of iteration methods.
    """
    path = [np.array(start)]
    velocity = np.zeros(len(start))
    for _ in range(steps):
        velocity = momentum * velocity - step * client.gradient(function, path[-1]).gradient
        path.append(path[-1] + velocity)
    return np.array(path)


@click.command(help=__doc__)
@click.option("--step", default=0.1, show_default=True, help="Best without momentum: 2/(L + μ).")
@click.option("--momentum", default=0.25, show_default=True, help="Of the second path, whose step is 1/8.")
@address_option
@plot_option
def main(step: float, momentum: float, address: str | None, plot: Path | None) -> None:
    """Prints how far from the minimum both paths are, step by step."""
    console = Console()
    with connected(address) as client:
        paths = {
            "gradient descent": descend(client, FUNCTION, START, step),
            f"momentum {momentum}": descend(client, FUNCTION, START, 0.125, momentum=momentum),
        }
        for name, path in paths.items():
            far = np.linalg.norm(path - MINIMUM, axis=1)
            shown = ", ".join(f"{distance:.1e}" for distance in far[::10])
            console.print(f"{name}: distance from {MINIMUM} every 10 steps: {shown}")
        if plot is not None:
            from pictures import draw_paths  # noqa: PLC0415 - matplotlib is optional

            draw_paths(plot, client, FUNCTION, paths)
            console.print(f"drawn: {plot}")


if __name__ == "__main__":
    main()
