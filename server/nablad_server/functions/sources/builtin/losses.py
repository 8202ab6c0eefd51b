"""Losses, averaged over the examples unless they say otherwise."""

# jaxtyping writes shapes as strings, which are not forward references:
# ruff: noqa: F722, F821

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from nablad_server.functions.registration import function


def linear_layer_loss(
    W: Float[Array, "m n"], x: Float[Array, "n"], b: Float[Array, "m"], y_true: Float[Array, "m"]
) -> Float[Array, ""]:
    """Half the squared error of a linear layer, ½‖Wx + b − y_true‖².

    W is m × n, x has length n, b and y_true have length m. The factor ½ makes the gradients, with y = Wx + b, come out
    as (y − y_true) ⊗ xᵀ by W, y − y_true by b and Wᵀ(y − y_true) by x; without it each would be doubled.
    """
    return jnp.sum(optax.losses.l2_loss(W @ x + b, y_true))


def mse(predictions: Float[Array, "n"], targets: Float[Array, "n"]) -> Float[Array, ""]:
    """The mean squared error Σᵢ (pᵢ − tᵢ)² / n.

    Two vectors of one length. Gradient by the predictions: 2(p − t)/n; by the targets: its negative.
    """
    return jnp.mean(optax.losses.squared_error(predictions, targets))


@function(domain={"delta": (0.5, 2.0)})
def huber(predictions: Float[Array, "n"], targets: Float[Array, "n"], delta: Float[Array, ""]) -> Float[Array, ""]:
    """The mean Huber loss: of e = p − t, ½e² where |e| ≤ δ, and δ(|e| − ½δ) beyond.

    Two vectors of one length and a scalar δ > 0. Gradient by the predictions: e limited to [−δ, δ], over n.
    Source: Huber (1964), Robust estimation of a location parameter.
    """
    return jnp.mean(optax.losses.huber_loss(predictions, targets, delta=delta))


def binary_cross_entropy(logits: Float[Array, "n"], labels: Int[Array, "n"]) -> Float[Array, ""]:
    """The mean cross-entropy of two classes, −Σᵢ (yᵢ ln σ(zᵢ) + (1 − yᵢ) ln(1 − σ(zᵢ))) / n.

    Logits z and labels y ∈ {0, 1} of one length; stable for large logits. Gradient: (σ(z) − y)/n, with σ the sigmoid.
    """
    return jnp.mean(optax.losses.sigmoid_binary_cross_entropy(logits, labels))


def softmax_cross_entropy(logits: Float[Array, "b c"], labels: Int[Array, "b"]) -> Float[Array, ""]:
    """The mean cross-entropy of c classes, −Σᵢ ln softmax(zᵢ)[yᵢ] / b.

    A row of logits for each of the b examples, and b labels from 0 to c − 1; stable for large logits. Gradient:
    (softmax(z) − onehot(y))/b.
    """
    return jnp.mean(optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels))
