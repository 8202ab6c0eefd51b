"""A classifier of handwritten digits, trained by served gradients of four shards at a time. Needs scikit-learn."""

from itertools import repeat
from pathlib import Path

import click
import numpy as np
from rich.console import Console

from classifier import Array, Gradient, Weights, accuracy, in_process, load, train
from connection import address_option, connected, plot_option
from nablad import Client

SHARDS = 4
"""Into so many calls a minibatch is split, as among the workers of data-parallel training."""


def served(client: Client) -> Gradient:
    """The mean over the shards, whose gradients are on their way together."""

    def gradient(weights: Weights, images: Array, labels: Array) -> tuple[float, Weights]:
        shards = np.split(images, SHARDS), np.split(labels, SHARDS)
        answers = list(
            client.map("gradient", "digit_loss", repeat(weights.w), repeat(weights.b), *shards, wrt=["w", "b"])
        )
        mean = {name: np.mean([answer.gradient[name] for answer in answers], axis=0) for name in ("w", "b")}
        return float(np.mean([answer.value for answer in answers])), Weights(**mean)

    return gradient


@click.command(help=__doc__)
@address_option
@plot_option
def main(address: str | None, plot: Path | None) -> None:
    """Prints what share of unseen digits is recognised, and how close the training is to one in process."""
    console = Console()
    seen, unseen = load()
    with connected(address) as client:
        path, losses = train(served(client), seen)
    local_path, local_losses = train(in_process, seen)
    apart = max(np.abs(one.w - other.w).max() for one, other in zip(path, local_path, strict=True))
    console.print(
        f"{len(losses)} steps of {SHARDS} calls; of {unseen.labels.size} unseen digits recognised: "
        f"{accuracy(path[-1], unseen):.2%} by served gradients, {accuracy(local_path[-1], unseen):.2%} by those in "
        f"process; weights at most {apart:.1e} apart"
    )
    if plot is not None:
        from pictures import draw_curves  # noqa: PLC0415 - matplotlib is optional

        draw_curves(plot, "loss of the minibatch", {"served gradients": losses, "in process": local_losses})
        console.print(f"drawn: {plot}")


if __name__ == "__main__":
    main()
