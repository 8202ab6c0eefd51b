"""Adversarial digits by the fast gradient sign method, x + ε sign(∇ₓ loss), by served gradients. Needs scikit-learn."""

from pathlib import Path

import click
import numpy as np
from rich.console import Console

from classifier import Array, Digits, Weights, accuracy, load, probabilities, train
from connection import address_option, connected, plot_option
from digits import served
from nablad import Client


def attack(client: Client, weights: Weights, digits: Digits, epsilon: float) -> Digits:
    """The digits with each pixel moved by ε to where the loss grows, and kept between 0 and 1.

    The loss is the mean over the images, so that one call gives the gradients of all, each over n: the same signs.
    Source: Goodfellow, Shlens and Szegedy (2015), Explaining and harnessing adversarial examples.
    """
    answer = client.gradient("digit_loss", weights.w, weights.b, digits.images, digits.labels, wrt="images")
    return Digits(np.clip(digits.images + epsilon * np.sign(answer.gradient), 0, 1), digits.labels)


@click.command(help=__doc__)
@click.option("--epsilon", default=0.1, show_default=True, help="Of pixels from 0 to 1.")
@address_option
@plot_option
def main(epsilon: float, address: str | None, plot: Path | None) -> None:
    """Prints what share of unseen digits is recognised before and after, beside random noise of the same size."""
    console = Console()
    seen, unseen = load()
    with connected(address) as client:
        weights = train(served(client), seen)[0][-1]
        moved = attack(client, weights, unseen, epsilon)
    signs = np.random.default_rng(0).choice([-1.0, 1.0], unseen.images.shape)
    noisy = Digits(np.clip(unseen.images + epsilon * signs, 0, 1), unseen.labels)
    console.print(
        f"of {unseen.labels.size} unseen digits recognised: {accuracy(weights, unseen):.1%} as they are, "
        f"{accuracy(weights, moved):.1%} with ε = {epsilon} along the gradient's signs, "
        f"{accuracy(weights, noisy):.1%} along random signs"
    )
    if plot is not None:
        from pictures import draw_images  # noqa: PLC0415 - matplotlib is optional

        before, after = (_said(weights, images) for images in (unseen.images, moved.images))
        fooled = np.flatnonzero((before == unseen.labels) & (after != unseen.labels))[:8]
        if not fooled.size:
            raise click.ClickException(f"no label changes with ε = {epsilon}: nothing to draw; try a larger ε")
        pictures = {"before": unseen.images[fooled], "after": moved.images[fooled]}
        titles = {"before": list(map(str, before[fooled])), "after": list(map(str, after[fooled]))}
        draw_images(plot, pictures, titles)
        console.print(f"drawn: {plot}")


def _said(weights: Weights, images: Array) -> Array:
    return np.asarray(np.argmax(probabilities(weights, images), axis=1))


if __name__ == "__main__":
    main()
