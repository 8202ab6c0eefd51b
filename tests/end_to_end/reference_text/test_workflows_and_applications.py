"""The reference text's sections Practical Workflows, AI/ML Applications, Interview Focus and Connections."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.testing import assert_allclose, assert_array_equal

import nablad
from end_to_end.reference_text import numerical
from end_to_end.reference_text.numerical import Array
from end_to_end.reference_text.properties import REALS, class_labels, property_test, tensors


def sum_of_squares(client: nablad.Client) -> numerical.Rowwise:
    """x² + y², …, of one point in each row, computed by the server."""
    return lambda points: client.evaluate("sum_of_squares", points, batched=True).value


# Practical Workflows: NumPy Implementation


def test_numerical_derivative_of_the_square_at_2(client: nablad.Client) -> None:
    served = client.derivative("integer_power", 2.0, 2)
    secant = numerical.derivative(lambda x: float(client.evaluate("integer_power", x, 2).value), 2.0)
    assert_array_equal(served.derivatives, [4])
    assert_allclose(secant, 4, rtol=1e-9)


def test_numerical_gradient_at_1_1(client: nablad.Client) -> None:
    x = np.array([1.0, 1.0])
    assert_array_equal(client.gradient("sum_of_squares", x).gradient, [2, 2])
    assert_allclose(numerical.gradient(sum_of_squares(client), x), [2, 2], rtol=1e-9)


def test_numerical_hessian_at_1_1(client: nablad.Client) -> None:
    x = np.array([1.0, 1.0])
    assert_array_equal(client.hessian("sum_of_squares", x).hessian, [[2, 0], [0, 2]])
    assert_allclose(numerical.hessian(sum_of_squares(client), x), [[2, 0], [0, 2]], atol=1e-5)


@property_test
@given(x=hnp.arrays(np.float64, 3, elements=st.floats(-2, 2, allow_subnormal=False)))
def test_numerical_derivatives_approximate_the_served_ones(client: nablad.Client, x: Array) -> None:
    rosenbrock: numerical.Rowwise = lambda points: client.evaluate("rosenbrock", points, batched=True).value
    served = client.hessian("rosenbrock", x)
    assert_allclose(numerical.gradient(rosenbrock, x), served.gradient, rtol=1e-6, atol=1e-5)
    assert_allclose(numerical.hessian(rosenbrock, x, h=1e-4), served.hessian, rtol=1e-5, atol=1e-2)


# Practical Workflows: Automatic Differentiation


def test_automatic_gradient_and_hessian_of_the_sum_of_squares(client: nablad.Client) -> None:
    answer = client.hessian("sum_of_squares", [1.0, 2.0, 3.0])
    assert_array_equal(answer.value, 14)
    assert_array_equal(answer.gradient, [2, 4, 6])
    assert_array_equal(answer.hessian, 2 * np.eye(3))


# AI/ML Applications: Gradient Descent


def descend(client: nablad.Client, start: Array, rate: float, steps: int = 1000) -> list[Array]:
    """All points of gradient descent, until the gradient is shorter than 1e-6."""
    history = [start]
    for _ in range(steps):
        gradient = client.gradient("sum_of_squares", history[-1]).gradient
        history.append(history[-1] - rate * gradient)
        if np.linalg.norm(gradient) < 1e-6:
            break
    return history


def test_gradient_descent_from_5_5_reaches_the_minimum(client: nablad.Client) -> None:
    history = np.array(descend(client, np.array([5.0, 5.0]), rate=0.1))
    assert_allclose(history[-1], [0, 0], atol=1e-6)
    steps = len(history) - 1
    assert steps == math.ceil(math.log(10 * math.sqrt(2) / 1e-6) / math.log(1.25)) + 1  # ‖∇f‖ = 10√2 · 0.8ᵏ
    assert_allclose(history, 5 * 0.8 ** np.arange(steps + 1)[:, None] * [1, 1], rtol=1e-12)


# AI/ML Applications: Backpropagation


@property_test
@given(
    x=tensors(4, 3),
    W=tensors(3, 2),
    grad_output=tensors(4, 2),
)
def test_backpropagation_through_a_linear_layer_for_any_gradient_of_its_output(
    client: nablad.Client, x: Array, W: Array, grad_output: Array
) -> None:
    """A batched Vjp answers for each example; the weights, which all share, get the sum."""
    back = client.vjp("vecmat", x, W, cotangent=grad_output, batched="x", cotangent_batched=True)
    assert_allclose(back.value, x @ W, rtol=1e-11, atol=1e-12)
    assert_allclose(np.sum(back.vjp["A"], axis=0), x.T @ grad_output, rtol=1e-11, atol=1e-12)
    assert_allclose(back.vjp["x"], grad_output @ W.T, rtol=1e-11, atol=1e-12)


def classifier_backward(w: Array, b: Array, x: Array, labels: Array) -> tuple[Array, Array, Array]:
    """By w, b and x: the text's layer, behind its gradient of the cross-entropy."""
    grad_output = (numerical.softmax(x @ w + b) - np.eye(len(b))[labels]) / len(labels)
    return x.T @ grad_output, np.sum(grad_output, axis=0), grad_output @ w.T


CLASSIFIER = {
    "w": tensors(3, 2),
    "b": tensors(2),
    "x": tensors(4, 3),
    "labels": class_labels(4, 2),
}


@property_test
@given(**CLASSIFIER)
def test_backpropagation_through_a_linear_layer_with_bias(
    client: nablad.Client, w: Array, b: Array, x: Array, labels: Array
) -> None:
    served = client.gradient("linear_classifier", w, b, x, labels).gradient
    grad_W, grad_b, grad_input = classifier_backward(w, b, x, labels)
    assert_allclose(served["w"], grad_W, rtol=1e-10, atol=1e-12)
    assert_allclose(served["b"], grad_b, rtol=1e-10, atol=1e-12)
    assert_allclose(served["x"], grad_input, rtol=1e-10, atol=1e-12)


def test_backpropagation_updates_lower_the_loss(client: nablad.Client) -> None:
    rng = np.random.default_rng(5)
    x = rng.normal(size=(20, 3))
    labels = (x[:, 0] > 0).astype(np.int64)
    w, b = rng.normal(size=(3, 2)) * 0.01, np.zeros(2)
    losses = []
    for _ in range(20):
        answer = client.gradient("linear_classifier", w, b, x, labels, wrt=["w", "b"])
        losses.append(float(answer.value["loss"]))
        w, b = w - 0.1 * answer.gradient["w"], b - 0.1 * answer.gradient["b"]
    assert_allclose(losses[0], math.log(2), atol=0.05)  # small weights cannot tell two classes apart
    assert np.all(np.diff(losses) < 0)


# AI/ML Applications: Loss Function Gradients


@property_test
@given(y=tensors(2, 5))
def test_loss_gradient_of_the_mean_squared_error(client: nablad.Client, y: Array) -> None:
    predicted, true = y
    answer = client.gradient("mse", predicted, true, wrt="predictions")
    assert_allclose(answer.value, np.mean((predicted - true) ** 2), rtol=1e-12, atol=1e-300)
    assert_allclose(answer.gradient, 2 * (predicted - true) / 5, rtol=1e-12, atol=1e-300)


@property_test
@given(
    logits=tensors(4, 3),
    labels=class_labels(4, 3),
)
def test_loss_gradient_of_the_cross_entropy(client: nablad.Client, logits: Array, labels: Array) -> None:
    expected = np.exp(logits) / np.sum(np.exp(logits), axis=1, keepdims=True)
    loss = -np.mean(np.log(expected[np.arange(4), labels]))
    expected[np.arange(4), labels] -= 1
    answer = client.gradient("softmax_cross_entropy", logits, labels)
    assert_allclose(answer.value, loss, rtol=1e-11)
    assert_allclose(answer.gradient, expected / 4, rtol=1e-11, atol=1e-14)


# Interview Focus: Key Questions


def test_key_question_3_the_chain_rule_layer_by_layer_is_backpropagation(client: nablad.Client) -> None:
    """tanh(x W₁ + b₁) W₂ + b₂ and a cross-entropy: one layer's answer is the cotangent of the layer below."""
    rng = np.random.default_rng(3)
    hidden = {"w": rng.normal(size=(3, 4)), "b": rng.normal(size=4)}
    output = {"w": rng.normal(size=(4, 2)), "b": rng.normal(size=2)}
    x, label = rng.normal(size=3), np.array([1])

    before = client.evaluate("vecmat", x, hidden["w"]).value + hidden["b"]
    squashed = client.evaluate("tanh", before, batched=True).value
    logits = client.evaluate("vecmat", squashed, output["w"]).value + output["b"]
    to_logits = client.gradient("softmax_cross_entropy", logits[None], label).gradient[0]
    upper = client.vjp("vecmat", squashed, output["w"], cotangent=to_logits).vjp
    to_before = client.vjp("tanh", before, cotangent=upper["x"], batched=True).vjp
    lower = client.vjp("vecmat", x, hidden["w"], cotangent=to_before).vjp

    # The same by hand, and in one call.
    h = np.tanh(x @ hidden["w"] + hidden["b"])
    delta = numerical.softmax(h @ output["w"] + output["b"]) - [0, 1]
    back = (output["w"] @ delta) * (1 - h**2)
    whole = client.gradient("mlp_loss", {"hidden": hidden, "output": output}, x[None], label, wrt="params").gradient
    for found, served, expected in [
        (upper["A"], whole["output"]["w"], np.outer(h, delta)),
        (to_logits, whole["output"]["b"], delta),
        (lower["A"], whole["hidden"]["w"], np.outer(x, back)),
        (to_before, whole["hidden"]["b"], back),
    ]:
        assert_allclose(found, expected, rtol=1e-10, atol=1e-13)
        assert_allclose(served, expected, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize(
    ("function", "minimum"),
    [
        ("sum_of_squares", [0.0, 0.0, 0.0]),
        ("rosenbrock", [1.0, 1.0, 1.0]),
        ("himmelblau", [3.0, 2.0]),
        ("beale", [3.0, 0.5]),
        ("booth", [1.0, 3.0]),
        ("matyas", [0.0, 0.0]),
        ("levy", [1.0, 1.0]),
    ],
)
def test_key_question_5_the_hessian_is_positive_definite_at_a_local_minimum(
    client: nablad.Client, function: str, minimum: list[float]
) -> None:
    answer = client.hessian(function, minimum)
    assert_allclose(answer.gradient, 0, atol=1e-12)
    assert np.all(np.linalg.eigvalsh(answer.hessian) > 0)
    nearby = np.array(minimum) + 1e-3 * np.concatenate([np.eye(len(minimum)), -np.eye(len(minimum))])
    assert np.all(client.evaluate(function, nearby, batched=True).value > answer.value)


def test_key_question_5_the_hessian_is_not_positive_definite_elsewhere(client: nablad.Client) -> None:
    saddle = client.hessian("six_hump_camel", [0.0, 0.0])
    assert_array_equal(saddle.gradient, 0)
    assert_allclose(saddle.hessian, [[8, 1], [1, -8]], rtol=1e-14)
    assert np.prod(np.linalg.eigvalsh(saddle.hessian)) < 0
    maximum = client.hessian("himmelblau", [-0.27084459, -0.92303856])
    assert_allclose(maximum.gradient, 0, atol=1e-5)
    assert np.all(np.linalg.eigvalsh(maximum.hessian) < 0)


# Interview Focus: Must-Know Formulas


@property_test
@given(x=tensors(3), rate=st.sampled_from([0.01, 0.1, 0.25]))
def test_must_know_step_of_gradient_descent(client: nablad.Client, x: Array, rate: float) -> None:
    x_next = x - rate * client.gradient("sum_of_squares", x).gradient
    assert_allclose(x_next, (1 - 2 * rate) * x, rtol=1e-14, atol=1e-300)


@property_test
@given(x=REALS)
def test_must_know_chain_rule_and_sigmoid_derivative_together(client: nablad.Client, x: float) -> None:
    """d/dx σ(x²) = σ(x²)(1 − σ(x²)) · 2x, the outer slope at the inner value, by one Jvp after the other."""
    inner = client.jvp("integer_power", x, 2, tangent=1.0)
    outer = client.jvp("sigmoid", inner.value, tangent=inner.jvp)
    s = 1 / (1 + math.exp(-(x**2)))
    assert_allclose(outer.jvp, s * (1 - s) * 2 * x, rtol=1e-10, atol=1e-14)


# Interview Focus: Common Pitfalls


def test_pitfall_of_forgetting_the_chain_rule(client: nablad.Client) -> None:
    """cos(x²) alone lacks the inner slope 2x; a gradient check sees it."""
    f: numerical.Rowwise = lambda points: client.evaluate("chain_rule", points[:, 0], batched=True).value
    x = np.array([1.5])
    assert numerical.gradient_check(f, lambda x: np.cos(x**2), x) > 0.1
    assert numerical.gradient_check(f, lambda x: client.gradient("chain_rule", x[0]).gradient[None], x) < 1e-5


def test_pitfall_of_confusing_gradient_and_directional_derivative(client: nablad.Client) -> None:
    gradient = client.gradient("sum_of_squares", [1.0, 1.0]).gradient
    rate = client.directional_derivative("sum_of_squares", [1.0, 1.0], direction=[1.0, 1.0]).derivative
    assert gradient.shape == (2,)  # a vector
    assert rate.shape == ()  # a number, and that of the unit direction: not [2, 2] · [1, 1] = 4
    assert_allclose(rate, 2 * math.sqrt(2), rtol=1e-14)


def test_pitfall_of_the_wrong_sign(client: nablad.Client) -> None:
    start = np.array([5.0, 5.0])
    down, up = (descend(client, start, rate, steps=10) for rate in (0.1, -0.1))
    assert np.all(np.diff(np.linalg.norm(down, axis=1)) < 0)
    assert np.all(np.diff(np.linalg.norm(up, axis=1)) > 0)


# Connections: Applications in AI


def test_application_feature_importance_is_the_gradient_magnitude(client: nablad.Client) -> None:
    """The second of three features decides the class alone, and has the only gradient."""
    w = np.array([[0.0, 0.0], [2.0, -2.0], [0.0, 0.0]])
    x = np.array([[1.0, 0.25, -3.0]])
    found = client.gradient("linear_classifier", w, np.zeros(2), x, np.array([0]), wrt="x").gradient
    s = 1 / (1 + math.exp(1.0))  # the logits are ±0.5
    assert_allclose(found, [[0, -4 * s, 0]], rtol=1e-12)


@property_test
@given(**CLASSIFIER)
def test_application_adversarial_examples_follow_the_gradient_of_the_input(
    client: nablad.Client, w: Array, b: Array, x: Array, labels: Array
) -> None:
    """A step along its sign raises this loss, which is convex in x, by at least the step times Σ|∂L/∂x|."""
    before = client.gradient("linear_classifier", w, b, x, labels, wrt="x")
    attacked = x + 0.01 * np.sign(before.gradient)
    rise = client.evaluate("linear_classifier", w, b, attacked, labels).value["loss"] - before.value["loss"]
    assert rise >= 0.01 * np.sum(np.abs(before.gradient)) - 1e-12
