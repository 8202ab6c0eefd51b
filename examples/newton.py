"""Newton's method with served Hessians on Rosenbrock's function: once near, each step doubles the digits."""

from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from connection import address_option, connected, plot_option
from nablad import Client

FUNCTION, START, MINIMUM = "rosenbrock", (-1.2, 1.0), (1.0, 1.0)


def newton(
    client: Client, function: str, start: tuple[float, ...], *, tolerance: float = 1e-10, most: int = 50
) -> NDArray[np.float64]:
    """The path from `start`, steps × n: xₖ₊₁ = xₖ − H⁻¹g, until ‖g‖ ≤ tolerance or after `most` steps.

    One call a step: a Hessian comes with its gradient.
    """
    path = [np.array(start)]
    for _ in range(most):
        answer = client.hessian(function, path[-1])
        if np.linalg.norm(answer.gradient) <= tolerance:
            break
        path.append(path[-1] - np.linalg.solve(answer.hessian, answer.gradient))
    return np.array(path)


@click.command(help=__doc__)
@address_option
@plot_option
def main(address: str | None, plot: Path | None) -> None:
    """Prints how far from the minimum each step is."""
    console = Console()
    with connected(address) as client:
        path = newton(client, FUNCTION, START)
        for step, distance in enumerate(np.linalg.norm(path - MINIMUM, axis=1)):
            console.print(f"step {step}: distance from {MINIMUM} {distance:.1e}")
        if plot is not None:
            from pictures import draw_paths  # noqa: PLC0415 - matplotlib is optional

            draw_paths(plot, client, FUNCTION, {"Newton": path})
            console.print(f"drawn: {plot}")


if __name__ == "__main__":
    main()
