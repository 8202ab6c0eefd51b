# ruff: noqa: F722, F821 - jaxtyping's shapes are strings, not forward references
"""A function whose tracing waits for the test."""

import queue
import threading
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from nablad_server.functions.registration import build


class Held:
    """A function that is traced only as far as the test lets it.

    Attributes:
        entered: has an item for each time that it was held.
        let_go: what it waits for.
        memory: bytes that it takes meanwhile.
    """

    def __init__(self) -> None:
        self.entered: queue.SimpleQueue[None] = queue.SimpleQueue()
        self.let_go = threading.Event()
        self.let_go.set()
        self.memory = 0
        self.function = build(self._call(), "test")
        self.let_go.clear()

    def _call(self) -> Any:
        def held(x: Float[Array, "n"]) -> Float[Array, ""]:
            if not self.let_go.is_set():
                self.entered.put(None)
                taken = np.ones(self.memory, np.uint8)
                while not self.let_go.is_set():
                    taken[:1] = 1
            return jnp.sum(jnp.sin(x[1:]) * x[:-1])

        return held
