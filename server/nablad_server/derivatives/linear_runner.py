"""Runs what is linearised: openings, whose residuals stay on the device, and products at a point opened before."""

import threading
from collections.abc import Hashable, Sequence
from typing import Any

import jax
import numpy as np

from nablad.errors import Cancelled
from nablad_server.derivatives.cache import Done, ProgramCache
from nablad_server.derivatives.inspection import Inspection
from nablad_server.derivatives.linear import Linear, Opening
from nablad_server.derivatives.program import Program
from nablad_server.derivatives.query import Query
from nablad_server.derivatives.runner import DerivativeRunner, Points, Prepared, execution_failed
from nablad_server.functions.function import Function

Residuals = tuple[jax.Array, ...]


class Budget:
    """Bytes that residuals may take together. Safe for threads.

    Attributes:
        used: bytes reserved now.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self.used = 0

    def reserve(self, size: int) -> bool:
        """Sets bytes aside; False if there are not so many left."""
        with self._lock:
            if self.used + size > self._limit:
                return False
            self.used += size
            return True

    def release(self, size: int) -> None:
        """Gives bytes back."""
        with self._lock:
            self.used -= size


class Linearization:
    """A linear map at one point: the key of a lane of its own, equal to itself alone.

    Lanes may be remembered for longer than they are used, so what it holds is given back by `release`.

    Attributes:
        linear: the map.
        residuals: what the opening left over; None once released.
    """

    def __init__(self, linear: Linear, residuals: Residuals) -> None:
        self.linear = linear
        self.residuals: Residuals | None = residuals

    @property
    def function(self) -> Function:
        """Whose derivative it is."""
        return self.linear.query.function

    @property
    def query(self) -> Query:
        """The product, as a call would ask for it."""
        return self.linear.query

    def release(self) -> None:
        """Lets the residuals go; what runs meanwhile has them until it is done."""
        self.residuals = None


class PreparedOpening:
    """An opening that can run now. See Prepared, whose attributes it has."""

    points = computed = first = 1

    def __init__(self, opening: Opening, program: Program) -> None:
        self._opening = opening
        self._program = program
        self.seconds = program.seconds
        self.calls_back = program.calls_back
        self.aside = program.aside

    def __call__(self, members: Sequence[Points]) -> list[Residuals]:
        """The residuals of the one member. Raises as Prepared does."""
        (member,) = members
        arrays = [
            np.frombuffer(data, spec.dtype).reshape(1, *spec.shape)
            for data, spec in zip(member.data, self._opening.arrays, strict=True)
        ]
        try:
            outputs = tuple(self._program.executable(self._program.hoisted, *arrays))
            jax.block_until_ready(outputs)  # until then the bytes of the point must stay
        except Exception as error:
            raise execution_failed(self._opening, error) from error
        return [outputs]


class LinearRunner:
    """Prepares queries, openings and products at linearisations. See batching.ticket.Runner."""

    def __init__(self, runner: DerivativeRunner, cache: ProgramCache) -> None:
        self._runner = runner
        self._cache = cache

    def prepare(
        self, key: Query | Inspection | Opening | Linearization, points: int, done: Done, asker: Hashable = None
    ) -> Prepared | PreparedOpening | None:
        """What runs `points` points of a key; None if that is being compiled, in the asker's turn: then `done`
        will be called.

        Raises:
            Cancelled: the linearisation was released.
            NabladError: as DerivativeRunner.prepare.
        """
        if isinstance(key, Query | Inspection):
            return self._runner.prepare(key, points, done, asker)
        if isinstance(key, Opening):
            program = self._cache.buckets(key).get(1)
            if program is not None:
                return PreparedOpening(key, program)
            self._cache.request(key, 1, done, asker)
            return None
        residuals: Any = key.residuals
        if residuals is None:
            raise Cancelled("the stream of this product has ended")
        return self._runner.prepare(key.linear.product, points, done, asker, residuals)
