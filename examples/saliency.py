"""Which pixels a classifier looks at: |∂p/∂pixel| of the label it gives, by served gradients. Needs scikit-learn."""

from pathlib import Path

import click
import numpy as np
from rich.console import Console

from classifier import Array, Weights, load, probabilities, train
from connection import address_option, connected, plot_option
from digits import served
from nablad import Client


def saliency(client: Client, weights: Weights, images: Array, labels: Array) -> Array:
    """|∂p/∂pixel| of the probability p of each image's label: images × 64, in one call."""
    answer = client.gradient(
        "digit_probability", weights.w, weights.b, images, labels, wrt="image", batched=["image", "label"]
    )
    return np.asarray(np.abs(answer.gradient))


@click.command(help=__doc__)
@address_option
@plot_option
def main(address: str | None, plot: Path | None) -> None:
    """Prints the three pixels that matter most for one digit of each kind."""
    console = Console()
    seen, unseen = load()
    images = unseen.images[[int(np.argmax(unseen.labels == kind)) for kind in range(10)]]
    with connected(address) as client:
        weights = train(served(client), seen)[0][-1]
        likely = probabilities(weights, images)
        labels, chances = np.argmax(likely, axis=1), likely.max(axis=1)
        maps = saliency(client, weights, images, labels)
    for label, chance, pixels in zip(labels, chances, maps, strict=True):
        most = ", ".join(str(divmod(int(pixel), 8)) for pixel in np.argsort(pixels)[:-4:-1])
        console.print(f"a {label}, it says ({chance:.1%}); the pixels (row, column) that matter most: {most}")
    if plot is not None:
        from pictures import draw_images  # noqa: PLC0415 - matplotlib is optional

        titles = {"digit": [f"{label} ({chance:.0%})" for label, chance in zip(labels, chances, strict=True)]}
        draw_images(plot, {"digit": images, "saliency": maps}, titles)
        console.print(f"drawn: {plot}")


if __name__ == "__main__":
    main()
