"""Statistical models and small networks, and two chains whose gradients vanish and explode."""

# jaxtyping writes shapes as strings, which are not forward references:
# ruff: noqa: F722, F821

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.scipy import stats
from jaxtyping import Array, Float, Int

from nablad_server.functions.domains import positive_definite
from nablad_server.functions.registration import function


def deep_sigmoid(x: Float[Array, ""]) -> Float[Array, ""]:
    """Ten sigmoids on top of one another, σ(σ(…σ(x)…)).

    A scalar, any real x. The derivative is the product of the ten layers' own, each at most 1/4: at most 4⁻¹⁰ ≈ 10⁻⁶,
    a vanishing gradient. It falls below what float16 can hold; use a wider dtype.
    """
    top: Array = jax.lax.fori_loop(0, 10, lambda _, value: jax.nn.sigmoid(value), x)
    return top


def doubling_chain(x: Float[Array, ""]) -> Float[Array, ""]:
    """A hundred doublings one after the other, 2¹⁰⁰ x.

    A scalar. The derivative is the product of a hundred factors of 2, 2¹⁰⁰ ≈ 1.27·10³⁰: an exploding gradient. It
    overflows to infinity in float16; use a wider dtype.
    """
    end: Array = jax.lax.fori_loop(0, 100, lambda _, value: 2 * value, x)
    return end


@function(domain={"precision": (0.1, 10.0)})
def logistic_regression(
    w: Float[Array, "d"], X: Float[Array, "n d"], y: Int[Array, "n"], precision: Float[Array, ""]
) -> Float[Array, ""]:
    """The negative log posterior of logistic regression, −Σᵢ ln p(yᵢ | Xᵢ, w) − ln N(w; 0, I/precision).

    d weights, n rows of d features, n labels in {0, 1}, and the prior's precision, a scalar > 0. It leaves out the
    evidence, which does not depend on w. Gradient by w: Xᵀ(σ(Xw) − y) + precision · w; Hessian by w:
    Xᵀ diag(σ(1 − σ)) X + precision · I.
    """
    likelihood = jnp.sum(optax.losses.sigmoid_binary_cross_entropy(X @ w, y))
    prior = jnp.sum(stats.norm.logpdf(w, scale=precision**-0.5))
    return likelihood - prior


@function(domain={"cov": positive_definite})
def gaussian_logpdf(x: Float[Array, "n"], mean: Float[Array, "n"], cov: Float[Array, "n n"]) -> Float[Array, ""]:
    """The log density of a multivariate normal, −½(x − μ)ᵀΣ⁻¹(x − μ) − ½ ln det Σ − (n/2) ln 2π.

    Two vectors of length n and a positive definite n × n covariance, of which only the symmetric part counts; float64
    or float32, since it goes through a Cholesky factorisation. Gradients: −Σ⁻¹(x − μ) by x, its negative by μ, and
    ½(Σ⁻¹(x − μ)(x − μ)ᵀΣ⁻¹ − Σ⁻¹) by Σ.
    """
    return jnp.asarray(stats.multivariate_normal.logpdf(x, mean, cov))


@function(
    inputs={
        "params": {
            "hidden": {"w": Float[Array, "d h"], "b": Float[Array, "h"]},
            "output": {"w": Float[Array, "h c"], "b": Float[Array, "c"]},
        }
    }
)
def mlp_loss(params: Any, x: Float[Array, "b d"], labels: Int[Array, "b"]) -> Float[Array, ""]:
    """The mean softmax cross-entropy of a network with one hidden layer, logits = tanh(x W₁ + b₁) W₂ + b₂.

    The parameters are a tree, hidden.w (d × h), hidden.b (h), output.w (h × c) and output.b (c); x has b rows of d
    features, labels b classes from 0 to c − 1.
    """
    hidden = jnp.tanh(x @ params["hidden"]["w"] + params["hidden"]["b"])
    logits = hidden @ params["output"]["w"] + params["output"]["b"]
    return jnp.mean(optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels))


@function(outputs={"loss": Float[Array, ""], "correct": Int[Array, ""]})
def linear_classifier(
    w: Float[Array, "d c"], b: Float[Array, "c"], x: Float[Array, "n d"], labels: Int[Array, "n"]
) -> dict[str, Array]:
    """The mean softmax cross-entropy of the logits xw + b, and how many of the labels their maximum hits.

    Weights d × c, c biases, n rows of d features and n labels from 0 to c − 1. The loss can be differentiated; the
    count `correct` is an int32 and only comes along. Gradients of the loss, with e = softmax(xw + b) − onehot(labels):
    xᵀe/n by w, the column means of e by b, and e wᵀ/n by x.
    """
    logits = x @ w + b
    loss = jnp.mean(optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels))
    return {"loss": loss, "correct": jnp.sum(jnp.argmax(logits, axis=1) == labels, dtype=jnp.int32)}
