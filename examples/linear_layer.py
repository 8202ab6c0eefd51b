"""A linear layer y = Wx + b trained by served gradients, and by NumPy in process: the same losses, step by step."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from connection import address_option, connected, plot_option
from nablad import Client

Array = NDArray[np.float64]
Gradient = Callable[[Array, Array, Array, Array], tuple[Array, Array, Array]]
"""From W, b, inputs (examples × n) and targets (examples × m) to each example's loss and gradients by W and b."""


class Training(NamedTuple):
    """W (m × n) and b (m) after the last step, and the mean loss before each step."""

    W: Array
    b: Array
    losses: list[float]


def served(client: Client) -> Gradient:
    """By the catalogue's `linear_layer_loss`, ½‖Wx + b − y_true‖², all examples in one call."""

    def gradient(W: Array, b: Array, inputs: Array, targets: Array) -> tuple[Array, Array, Array]:
        answer = client.gradient(
            "linear_layer_loss", W, inputs, b, targets, wrt=["W", "b"], batched=["x", "y_true"]
        )  # fmt: skip
        return answer.value, answer.gradient["W"], answer.gradient["b"]

    return gradient


def in_process(W: Array, b: Array, inputs: Array, targets: Array) -> tuple[Array, Array, Array]:
    """By hand: with e = Wx + b − y_true, e xᵀ by W and e by b."""
    errors = inputs @ W.T + b - targets
    return np.sum(errors**2, axis=1) / 2, errors[:, :, None] * inputs[:, None, :], errors


def train(gradient: Gradient, inputs: Array, targets: Array, *, rate: float = 0.3, steps: int = 100) -> Training:
    """Gradient descent on the mean loss, from zeros."""
    W, b, losses = np.zeros((targets.shape[1], inputs.shape[1])), np.zeros(targets.shape[1]), []
    for _ in range(steps):
        loss, by_W, by_b = gradient(W, b, inputs, targets)
        losses.append(float(np.mean(loss)))
        W, b = W - rate * by_W.mean(axis=0), b - rate * by_b.mean(axis=0)
    return Training(W, b, losses)


def examples(count: int = 200, seed: int = 0) -> tuple[Array, Array, Array, Array]:
    """W (2 × 3) and b (2) to be found, inputs, and the targets that they give, free of noise."""
    random = np.random.default_rng(seed)
    W, b, inputs = random.normal(size=(2, 3)), random.normal(size=2), random.normal(size=(count, 3))
    return W, b, inputs, inputs @ W.T + b


@click.command(help=__doc__)
@address_option
@plot_option
def main(address: str | None, plot: Path | None) -> None:
    """Prints the losses of both runs and how far the parameters are from those that made the data."""
    console = Console()
    W, b, inputs, targets = examples()
    with connected(address) as client:
        remote, local = train(served(client), inputs, targets), train(in_process, inputs, targets)
    apart = max(abs(one - other) for one, other in zip(remote.losses, local.losses, strict=True))
    found = max(np.abs(remote.W - W).max(), np.abs(remote.b - b).max())
    console.print(f"mean loss every 20 steps: {', '.join(f'{loss:.1e}' for loss in remote.losses[::20])}")
    console.print(f"furthest from the in-process run's loss: {apart:.1e}; parameters from the true ones: {found:.1e}")
    if plot is not None:
        from pictures import draw_curves  # noqa: PLC0415 - matplotlib is optional

        draw_curves(plot, "mean loss", {"served gradients": remote.losses, "in process": local.losses})
        console.print(f"drawn: {plot}")


if __name__ == "__main__":
    main()
