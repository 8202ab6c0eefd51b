"""A Lane: the tickets of one key that wait. Sans-IO: no clock, no thread, no lock.

Invariants:
 1. Every ticket offered leaves exactly once: taken, expired, cancelled or flushed; what is put back was not taken.
 2. `points`, `tickets` and `size` count the waiting tickets, and only those, after every call.
 3. Tickets are taken by earliest deadline; among equal ones by order of arrival.
 4. A ticket whose deadline has passed is never taken.
 5. A batch has at most `max_points` points, unless its only ticket has more by itself.
 6. A ticket that must be alone is the only one of its batch.
 7. Cancelling costs O(1), amortised.
"""

import heapq
import itertools
from collections.abc import Hashable, Sequence
from typing import NamedTuple

from nablad_server.batching.ticket import State, Ticket


class Taken(NamedTuple):
    """What leaves a lane at once."""

    batch: list[Ticket]
    expired: list[Ticket]


class Lane:
    """The waiting tickets of one key.

    Attributes:
        key: theirs.
        tickets: how many wait.
        points: how many points they hold.
        size: how many bytes they keep in memory.
        heavy: whether a batch of it was found to be heavy.
        aside: what a batch of it was found to wait for; None for nothing but the processor.
    """

    def __init__(self, key: Hashable) -> None:
        self.key = key
        self.tickets = 0
        self.points = 0
        self.size = 0
        self.heavy = False
        self.aside: Hashable = None
        self._heap: list[tuple[float, int, Ticket]] = []
        self._order = itertools.count()
        self._returned = 0

    def offer(self, ticket: Ticket) -> None:
        """Adds a ticket, which waits from now on."""
        self._enter(ticket, next(self._order))

    def put_back(self, batch: Sequence[Ticket]) -> None:
        """Adds the tickets of a batch just taken, before all others of their deadlines."""
        for ticket in reversed(batch):
            self._returned -= 1
            self._enter(ticket, self._returned)

    def cancel(self, ticket: Ticket) -> bool:
        """Drops a ticket that still waits; False if it does not."""
        if ticket.state is not State.WAITING:
            return False
        self._leave(ticket, State.DROPPED)
        # Dropped tickets stay in the heap until they surface; half of it being such is reason to sweep.
        if len(self._heap) > 64 and self.tickets * 2 < len(self._heap):
            self._heap = [entry for entry in self._heap if entry[2].state is State.WAITING]
            heapq.heapify(self._heap)
        return True

    def take(self, now: float, max_points: int) -> Taken:
        """Removes the next batch, and every ticket found to be past its deadline on the way."""
        batch: list[Ticket] = []
        expired: list[Ticket] = []
        points = 0
        while self._heap:
            ticket = self._heap[0][2]
            if ticket.state is not State.WAITING:
                heapq.heappop(self._heap)
                continue
            if ticket.deadline <= now:
                heapq.heappop(self._heap)
                self._leave(ticket, State.DROPPED)
                expired.append(ticket)
                continue
            if batch and (ticket.alone or batch[0].alone or points + ticket.points > max_points):
                break
            heapq.heappop(self._heap)
            self._leave(ticket, State.RUNNING)
            batch.append(ticket)
            points += ticket.points
        return Taken(batch, expired)

    def flush(self) -> list[Ticket]:
        """Removes every waiting ticket."""
        waiting = [
            entry[2] for entry in sorted(self._heap, key=lambda entry: entry[:2]) if entry[2].state is State.WAITING
        ]
        for ticket in waiting:
            self._leave(ticket, State.DROPPED)
        self._heap.clear()
        return waiting

    def waiting(self) -> list[Ticket]:
        """The waiting tickets, in no particular order."""
        return [entry[2] for entry in self._heap if entry[2].state is State.WAITING]

    def _enter(self, ticket: Ticket, order: int) -> None:
        ticket.state = State.WAITING
        heapq.heappush(self._heap, (ticket.deadline, order, ticket))
        self._count(ticket, 1)

    def _leave(self, ticket: Ticket, state: State) -> None:
        ticket.state = state
        self._count(ticket, -1)

    def _count(self, ticket: Ticket, sign: int) -> None:
        self.tickets += sign
        self.points += sign * ticket.points
        self.size += sign * ticket.size
