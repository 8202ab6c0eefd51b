"""The examples linear_layer and digits: training by served gradients is training in process, step by step."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

import digits
import linear_layer
import nablad
from classifier import Digits, Weights, accuracy, in_process, load, train
from nablad.errors import WrongShape


def test_a_linear_layer_trains_as_in_process_and_finds_what_made_the_data(client: nablad.Client) -> None:
    W, b, inputs, targets = linear_layer.examples(50)

    remote = linear_layer.train(linear_layer.served(client), inputs, targets, steps=60)
    local = linear_layer.train(linear_layer.in_process, inputs, targets, steps=60)

    assert_allclose(remote.losses, local.losses, rtol=1e-10, atol=1e-10)
    assert_allclose(remote.W, local.W, rtol=1e-10)
    assert_allclose(remote.b, local.b, rtol=1e-10)
    assert_allclose(remote.W, W, atol=1e-4)
    assert_allclose(remote.b, b, atol=1e-4)
    assert np.all(np.diff(remote.losses) < 0)


def test_each_step_of_the_classifier_is_the_one_in_process(remote: nablad.Client) -> None:
    seen, _ = load()
    few = Digits(seen.images[:256], seen.labels[:256])

    path, losses = train(digits.served(remote), few, epochs=10)
    local_path, local_losses = train(in_process, few, epochs=10)

    assert len(losses) == 20
    assert_allclose(losses, local_losses, rtol=1e-10)
    for step, local in zip(path, local_path, strict=True):
        assert_allclose(step.w, local.w, rtol=0, atol=1e-10)
        assert_allclose(step.b, local.b, rtol=0, atol=1e-10)
    assert losses[0] == pytest.approx(np.log(10), rel=1e-12)  # all labels equally likely
    assert losses[-1] < 0.7


def test_the_whole_training_recognises_as_many_digits_as_the_one_in_process(
    remote: nablad.Client, weights: Weights
) -> None:
    seen, unseen = load()
    found = train(digits.served(remote), seen)[0][-1]
    assert accuracy(found, unseen) == accuracy(weights, unseen) > 0.96


def test_a_minibatch_of_the_wrong_width_is_refused(remote: nablad.Client) -> None:
    zeros = Weights(np.zeros((64, 10)), np.zeros(10))
    with pytest.raises(WrongShape):
        digits.served(remote)(zeros, np.zeros((8, 63)), np.zeros(8, np.int64))
