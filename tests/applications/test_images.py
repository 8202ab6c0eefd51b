"""The examples saliency and fgsm: gradients by the pixels of images."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import nablad
from classifier import Weights, accuracy, load, probabilities
from fgsm import attack
from saliency import saliency


def test_saliency_is_the_closed_form_of_softmax_regression(remote: nablad.Client, weights: Weights) -> None:
    """∂p/∂x = p (w of the label − Σ pₖ wₖ)."""
    _, unseen = load()
    images, labels = unseen.images[:20], unseen.labels[:20]
    likely = probabilities(weights, images)
    chosen = likely[np.arange(20), labels, None]

    found = saliency(remote, weights, images, labels)

    assert_allclose(found, np.abs(chosen * (weights.w.T[labels] - likely @ weights.w.T)), rtol=1e-10, atol=1e-14)


def test_saliency_predicts_what_a_small_change_of_a_pixel_does(remote: nablad.Client, weights: Weights) -> None:
    image, label = load()[1].images[3], load()[1].labels[3]
    (slopes,) = saliency(remote, weights, image[None], np.array([label]))

    moved = probabilities(weights, image + 1e-5 * np.eye(64)) - probabilities(weights, image - 1e-5 * np.eye(64))

    assert_allclose(slopes, np.abs(moved[:, label]) / 2e-5, rtol=1e-6, atol=1e-9)


def test_fgsm_follows_the_signs_of_the_closed_form_within_epsilon(remote: nablad.Client, weights: Weights) -> None:
    _, unseen = load()
    errors = probabilities(weights, unseen.images) - np.eye(10)[unseen.labels]
    slopes = errors @ weights.w.T

    moved = attack(remote, weights, unseen, 0.1)

    clear = np.abs(slopes) > 1e-12 * np.abs(slopes).max()
    expected = np.clip(unseen.images + 0.1 * np.sign(slopes), 0, 1)
    assert_array_equal(moved.images[clear], expected[clear])
    assert np.abs(moved.images - unseen.images).max() <= 0.1 + 1e-12
    assert_array_equal(moved.labels, unseen.labels)


@pytest.mark.parametrize(("epsilon", "recognised"), [(0.1, 0.8), (0.2, 0.35)])
def test_fgsm_flips_the_stated_share_where_noise_of_the_same_size_does_not(
    remote: nablad.Client, weights: Weights, epsilon: float, recognised: float
) -> None:
    _, unseen = load()
    signs = np.random.default_rng(0).choice([-1.0, 1.0], unseen.images.shape)
    noisy = unseen._replace(images=np.clip(unseen.images + epsilon * signs, 0, 1))

    moved = attack(remote, weights, unseen, epsilon)

    assert accuracy(weights, unseen) > 0.96
    assert accuracy(weights, moved) < recognised
    assert accuracy(weights, noisy) > 0.9


def test_fgsm_with_no_step_changes_nothing(remote: nablad.Client, weights: Weights) -> None:
    _, unseen = load()
    assert_array_equal(attack(remote, weights, unseen, 0.0).images, unseen.images)
