"""Callers that ask without pause and know every answer."""

import json
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Protocol, Self

import grpc
import numpy as np
from numpy.typing import NDArray

import nablad
from nablad import errors
from nablad.v1 import differentiation_pb2 as pb
from resilience.questions import GRADIENT, gradient_in, gradient_of_rosenbrock, question

Point = NDArray[np.float64]

SECONDS = 30.0
"""The deadline of each call."""

SERVICE_CONFIG: dict[str, Any] = {
    "loadBalancingConfig": [{"round_robin": {}}],
    "methodConfig": [
        {
            "name": [{"service": "nablad.v1.DifferentiationService"}],
            "retryPolicy": {
                "maxAttempts": 4,
                "initialBackoff": "0.1s",
                "maxBackoff": "2s",
                "backoffMultiplier": 3,
                "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"],
            },
        }
    ],
}
"""What a client in any language gives its channel, as JSON, so that no call is lost while servers come and go.

CANCELLED, too: a gRPC server that shuts down resets calls with it that reach it before its client has heard of that.
A call that its own caller cancels is not made again.
"""


class Caller(Protocol):
    """Asks for gradients of Rosenbrock's function, over one connection to each server."""

    def ask(self, x: Point) -> Point:
        """The answer, float64[n]. Raises NabladError or grpc.RpcError if there is none."""

    def close(self) -> None:
        """Hangs up."""


class ByClient:
    """As users of the Python client do."""

    def __init__(self, address: str, tls: nablad.Tls | None = None) -> None:
        self._client = nablad.Client(address, timeout=SECONDS, tls=tls)

    def ask(self, x: Point) -> Point:
        """See Caller."""
        return np.asarray(self._client.gradient("rosenbrock", x=x).gradient)

    def close(self) -> None:
        """See Caller."""
        self._client.close()


class ByStub:
    """As programs in other languages do: a generated method, and a channel that is told what to do by configuration."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.insecure_channel(
            address,
            # Channels of one process would share their connections, unlike those of many processes.
            [("grpc.service_config", json.dumps(SERVICE_CONFIG)), ("grpc.use_local_subchannel_pool", 1)],
        )
        self._gradient: Any = self._channel.unary_unary(GRADIENT)

    def ask(self, x: Point) -> Point:
        """See Caller."""
        return gradient_in(pb.GradientResponse.FromString(self._gradient(question(x), timeout=SECONDS)))

    def close(self) -> None:
        """See Caller."""
        self._channel.close()


class Load:
    """Threads, each with a caller, that ask until they are told to stop.

    Attributes:
        calls: how many were made.
        wrong: how many were answered with something else than the gradient.
        lost: the errors of those that were not answered.
        slowest_seconds: the longest that anybody waited for an answer that came since `mark`.
    """

    def __init__(
        self,
        connect: Callable[[], Caller],
        callers: int = 4,
        think_seconds: float = 0.0,
        calls_each: int | None = None,
    ) -> None:
        """Prepares it.

        Args:
            connect: makes a caller.
            callers: how many there are.
            think_seconds: so long each pauses after an answer.
            calls_each: after so many calls a caller hangs up, and another one takes its place; None for never.
        """
        self.calls = self.wrong = 0
        self.lost: list[str] = []
        self.slowest_seconds = 0.0
        self._connect = connect
        self._think = think_seconds
        self._each = calls_each
        self._more = threading.Condition()
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(seed,), daemon=True) for seed in range(callers)]

    def __enter__(self) -> Self:
        first = self._connect()
        try:
            first.ask(np.zeros(3))  # compiled before the load begins
        finally:
            first.close()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Has every caller finish its call, and no other one made."""
        self._stopped.set()
        for thread in self._threads:
            thread.join()

    def mark(self) -> None:
        """Measures the longest wait anew."""
        with self._more:
            self.slowest_seconds = 0.0

    def go_on(self, seconds: float) -> int:
        """Lets it run for so long; how many calls were made meanwhile."""
        before = self.calls
        time.sleep(seconds)
        return self.calls - before

    def until(self, calls: int, seconds: float = 60.0) -> bool:
        """Waits for so many calls in all; False if they have not been made after so many seconds."""
        with self._more:
            return self._more.wait_for(lambda: self.calls >= calls, seconds)

    def _run(self, seed: int) -> None:
        points = np.random.default_rng(seed)
        caller, made = self._connect(), 0
        while not self._stopped.wait(self._think):
            if self._each is not None and made == self._each:
                caller.close()
                caller, made = self._connect(), 0
            self._ask(caller, points.uniform(-2, 2, 3))
            made += 1
        caller.close()

    def _ask(self, caller: Caller, x: Point) -> None:
        right, lost, began = True, "", time.monotonic()
        try:
            right = bool(np.allclose(caller.ask(x), gradient_of_rosenbrock(x), rtol=1e-10, atol=1e-10))
        except errors.NabladError as error:
            lost = f"{type(error).__name__}: {error}"
        except grpc.RpcError as error:
            lost = f"{error.code().name}: {error.details()}"
        waited = time.monotonic() - began
        with self._more:
            self.calls += 1
            self.wrong += not right
            if lost:
                self.lost.append(lost)
            self.slowest_seconds = max(self.slowest_seconds, waited)
            self._more.notify_all()
