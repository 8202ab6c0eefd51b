"""When a product at a point is computed by itself, and when from a linearisation that is kept."""

import enum
import threading
from collections.abc import Callable

from nablad.errors import NabladError
from nablad_server.batching.batcher import Batcher
from nablad_server.batching.ticket import NOBODY, Outcome, Ticket
from nablad_server.derivatives.cache import ProgramCache
from nablad_server.derivatives.linear import Linear, Linears
from nablad_server.derivatives.linear_runner import Budget, Linearization
from nablad_server.derivatives.query import Query
from nablad_server.derivatives.runner import Bytes, Points

KEPT_SECONDS = 200e-6
"""Products that take longer than this by themselves are computed from a linearisation that is kept. Those of a scan of
180 µs then took 75 µs, 16 together 326 µs in place of 2.1 ms, and opening cost as much as one of them; those of 60 µs
took 57 µs. They gain more from riding with those of other points."""


class Linearizer:
    """What linearisations need of the server."""

    def __init__(self, cache: ProgramCache, batcher: Batcher, budget: Budget) -> None:
        self.cache = cache
        self.batcher = batcher
        self.budget = budget
        self.linears = Linears()

    def seconds(self, query: Query) -> float | None:
        """What one product takes by itself; None while that is not known."""
        try:
            programs = self.cache.buckets(query)
        except NabladError:  # its callers are told
            return None
        return min((program.seconds / bucket for bucket, program in programs.items()), default=None)

    def ready(self, linear: Linear) -> bool:
        """Whether the programs of a linear map are compiled. Raises the error that tracing it gave, if it did."""
        return bool(self.cache.buckets(linear.opening)) and bool(self.cache.buckets(linear.product))


class _State(enum.Enum):
    UNDECIDED = enum.auto()
    """It is not known what a product takes."""
    COMPILING = enum.auto()
    OPENING = enum.auto()
    """The programs are there, the residuals are being computed: products wait for them."""
    KEPT = enum.auto()
    BY_ITSELF = enum.auto()
    """It does not pay, cannot be, or did not fit: as calls are."""


class Kept:
    """The products of one kind at one point. Safe for threads."""

    def __init__(self, linearizer: Linearizer, query: Query, point: tuple[Bytes, ...]) -> None:
        """`query` is the product, as `whole` gives it; `point` the elements of the inputs."""
        self._linearizer = linearizer
        self._query = query
        self._point = point
        self._lock = threading.Lock()
        self._state = _State.UNDECIDED
        self._waiting: list[tuple[Ticket, Callable[[], Points]]] = []
        self._linear: Linear | None = None
        self._opening: Ticket | None = None
        self._kept: Linearization | None = None
        self._reserved = 0
        self._closed = False
        self._owner = NOBODY  # of the first product, until there is one

    def direct(self, ticket: Ticket, vectors: Callable[[], Points]) -> bool:
        """Says how a product is computed: its ticket, made for a call, is changed if it is not as calls are.

        `vectors` gives the vectors of the whole query. True: the ticket is ready for the batcher; False: it will be
        handed to the batcher once the residuals are there.
        """
        if self._state is _State.UNDECIDED:
            self._owner = ticket.owner
            self._decide(ticket.key)  # type: ignore[arg-type]  # a ticket made for a call has a query
        with self._lock:
            if self._state is _State.OPENING:
                self._waiting.append((ticket, vectors))
                return False
            kept = self._kept
        if kept is not None:
            _redirect(ticket, kept, vectors)
        return True

    def close(self) -> None:
        """Lets go of everything. Tickets that wait here are their owner's to cancel."""
        with self._lock:
            self._closed = True
            self._state = _State.BY_ITSELF
            self._waiting.clear()
            kept, self._kept = self._kept, None
            opening, self._opening = self._opening, None
        if kept is not None:
            kept.release()
            self._give_back()
        if opening is not None and self._linearizer.batcher.cancel(opening):
            self._give_back()

    def _decide(self, query: Query) -> None:
        seconds = self._linearizer.seconds(query)
        if seconds is None:
            return
        if seconds <= KEPT_SECONDS:
            self._state = _State.BY_ITSELF
            return
        linear = self._linear = self._linearizer.linears.of(self._query)
        self._state = _State.COMPILING
        try:
            if self._linearizer.ready(linear):
                self._open(linear)
            else:
                self._linearizer.cache.request(linear.opening, 1, self._opening_compiled, self._owner)
        except NabladError:  # it cannot be traced; or there is no room to compile, for this point
            self._state = _State.BY_ITSELF

    def _opening_compiled(self, error: NabladError | None, _: float) -> None:
        linear = self._linear
        if error is None and linear is not None:
            try:
                self._linearizer.cache.request(linear.product, 1, self._product_compiled, self._owner)
            except NabladError as refused:
                error = refused
        if error is not None:
            self._go_on()

    def _product_compiled(self, error: NabladError | None, _: float) -> None:
        if error is None and self._linear is not None:
            self._open(self._linear)
        else:
            self._go_on()

    def _open(self, linear: Linear) -> None:
        """Has the residuals computed, if there is room for them."""
        budget = self._linearizer.budget
        if not budget.reserve(linear.residual_bytes):
            self._go_on()
            return
        ticket = Ticket(linear.opening, Points(1, self._point), 1, 0, self._opened, alone=True, owner=self._owner)
        with self._lock:
            closed = self._closed
            if not closed:
                self._reserved = linear.residual_bytes
                self._opening = ticket
                self._state = _State.OPENING
        if closed:
            budget.release(linear.residual_bytes)
        else:
            self._linearizer.batcher.offer(ticket)

    def _opened(self, outcome: Outcome | NabladError) -> None:
        with self._lock:
            self._opening = None
            if self._linear is not None and isinstance(outcome, Outcome) and not self._closed:
                self._kept = Linearization(self._linear, outcome.result)
                self._state = _State.KEPT
            kept = self._kept is not None
        if not kept:
            self._give_back()
        self._go_on()

    def _go_on(self) -> None:
        """Hands over what has waited: to be computed from the residuals if there are any, else by itself."""
        with self._lock:
            kept = self._kept
            if kept is None:
                self._state = _State.BY_ITSELF
            waiting, self._waiting = self._waiting, []
        for ticket, vectors in waiting:
            if kept is not None:
                _redirect(ticket, kept, vectors)
            self._linearizer.batcher.offer(ticket)

    def _give_back(self) -> None:
        size, self._reserved = self._reserved, 0
        self._linearizer.budget.release(size)


def _redirect(ticket: Ticket, kept: Linearization, vectors: Callable[[], Points]) -> None:
    points = vectors()
    ticket.key, ticket.payload, ticket.points = kept, points, points.count
