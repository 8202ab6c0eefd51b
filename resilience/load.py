"""Callers that ask without pause and know every answer."""

import threading
import time
from types import TracebackType
from typing import Self

import grpc
import numpy as np

import nablad
from nablad import errors
from resilience.questions import gradient_of_rosenbrock


class Load:
    """Threads that ask for gradients of Rosenbrock's function until they are told to stop.

    Attributes:
        calls: how many were made.
        wrong: how many were answered with something else than the gradient.
        lost: the errors of those that were not answered.
        gap_seconds: the longest time without an answer to anybody, since `mark`.
    """

    def __init__(self, address: str, callers: int = 4, think_seconds: float = 0.0) -> None:
        """`address` may name several servers, as `ipv4:127.0.0.1:1,127.0.0.1:2`."""
        self.calls = self.wrong = 0
        self.lost: list[str] = []
        self.gap_seconds = 0.0
        self._client = nablad.Client(address, timeout=30)
        self._think = think_seconds
        self._last = time.monotonic()
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(seed,), daemon=True) for seed in range(callers)]

    def __enter__(self) -> Self:
        self._client.gradient("rosenbrock", x=np.zeros(3))  # compiled before the load begins
        self.mark()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join()
        self._client.close()

    def mark(self) -> None:
        """Measures the longest gap anew."""
        with self._lock:
            self.gap_seconds, self._last = 0.0, time.monotonic()

    def _ask(self, seed: int) -> None:
        points = np.random.default_rng(seed)
        while not self._stopped.wait(self._think):
            x = points.uniform(-2, 2, 3)
            right, lost = True, ""
            try:
                answer = np.asarray(self._client.gradient("rosenbrock", x=x).gradient)
                right = bool(np.allclose(answer, gradient_of_rosenbrock(x), rtol=1e-10, atol=1e-10))
            except (errors.NabladError, grpc.RpcError) as error:
                lost = f"{type(error).__name__}: {error}"
            now = time.monotonic()
            with self._lock:
                self.calls += 1
                self.wrong += not right
                if lost:
                    self.lost.append(lost)
                else:
                    self.gap_seconds, self._last = max(self.gap_seconds, now - self._last), now
