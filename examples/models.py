"""The functions of the examples: `nablad serve examples/models.py`."""

# jaxtyping writes shapes as strings, which are not forward references:
# ruff: noqa: F722, F821

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int


def digit_loss(
    w: Float[Array, "d c"], b: Float[Array, "c"], images: Float[Array, "n d"], labels: Int[Array, "n"]
) -> Float[Array, ""]:
    """The mean cross-entropy of softmax regression, −Σᵢ ln softmax(imagesᵢ w + b)[labelsᵢ] / n.

    Gradients, with e = softmax(images w + b) − onehot(labels): imagesᵀe/n by w, the column means of e by b, and e wᵀ/n
    by the images.
    """
    return jnp.mean(optax.losses.softmax_cross_entropy_with_integer_labels(images @ w + b, labels))


def digit_probability(
    w: Float[Array, "d c"], b: Float[Array, "c"], image: Float[Array, "d"], label: Int[Array, ""]
) -> Float[Array, ""]:
    """The probability p of one label, softmax(image w + b)[label].

    Gradient by the image: p (w's column of the label − the mean of all columns, weighted by their probabilities).
    """
    return jax.nn.softmax(image @ w + b)[label]
