"""The data that the benchmark's own functions hold, from a fixed seed. Shared with the closed forms, so without JAX."""

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_RANDOM = np.random.default_rng(20240229)

FEATURES: Array = _RANDOM.standard_normal((2000, 50))
"""Of the logistic regression: rows × weights."""

LABELS: Array = (_RANDOM.random(2000) < 1 / (1 + np.exp(-FEATURES @ _RANDOM.standard_normal(50)))).astype(np.float64)
"""Of the logistic regression: 0 or 1 a row."""

PRIOR_PRECISION = 0.5
"""Of the Gaussian prior on each weight of the logistic regression."""

LAYERS = (16, 48, 24, 1)
"""Widths of the multilayer perceptron, from its input to its output."""

PARAMETERS = sum(width * (before + 1) for before, width in pairwise(LAYERS))
"""Weights and biases of the multilayer perceptron: 2,017."""

ROWS: Array = _RANDOM.standard_normal((640, LAYERS[0]))
"""Inputs of the multilayer perceptron; so many that one gradient takes about 0.2 ms on one core."""

TARGETS: Array = np.sin(ROWS.sum(axis=1))
"""What the multilayer perceptron is to give for each row."""

# The relaxation's.
STEPS, COUPLING, GRAVITY = 200, 0.1, 0.01
