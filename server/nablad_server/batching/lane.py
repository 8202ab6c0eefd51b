"""A Lane: the tickets of one key that wait. Sans-IO: no clock, no thread, no lock.

Invariants:
 1. Every ticket offered leaves exactly once: taken, expired, cancelled or flushed; what is put back was not taken.
 2. `points`, `tickets` and `size` count the waiting tickets, and only those, after every call; `owners` are theirs.
 3. Of one owner's tickets those are taken first whose deadline is earliest; among equal ones by order of arrival.
 4. A ticket whose deadline has passed is never taken.
 5. A batch has at most `max_points` points, unless its only ticket has more by itself.
 6. A ticket that must be alone is the only one of its batch.
 7. Cancelling costs O(1), amortised.
 8. A batch begins with a ticket of the owner whose turn it is. Every further one is of an owner that has the fewest
    points in the batch so far, of all that have tickets waiting which could ride in it.
"""

import heapq
import itertools
from collections.abc import Collection, Hashable, Sequence
from typing import NamedTuple

from nablad_server.batching.ticket import Owner, State, Ticket

_Heap = list[tuple[float, int, Ticket]]


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
        # Dropped tickets stay in their heap until they surface; a heap has at least one that waits.
        self._heaps: dict[Owner, _Heap] = {}
        self._waiting: dict[Owner, int] = {}
        self._order = itertools.count()
        self._returned = 0

    @property
    def owners(self) -> Collection[Owner]:
        """Whose tickets wait."""
        return self._waiting.keys()

    def offer(self, ticket: Ticket) -> None:
        """Adds a ticket, which waits from now on."""
        self._enter(ticket, next(self._order))

    def put_back(self, batch: Sequence[Ticket]) -> None:
        """Adds the tickets of a batch just taken, before all others of their owners and deadlines."""
        for ticket in reversed(batch):
            self._returned -= 1
            self._enter(ticket, self._returned)

    def cancel(self, ticket: Ticket) -> bool:
        """Drops a ticket that still waits; False if it does not."""
        if ticket.state is not State.WAITING:
            return False
        self._leave(ticket, State.DROPPED)
        heap, waiting = self._heaps.get(ticket.owner, []), self._waiting.get(ticket.owner, 0)
        if len(heap) > 64 and waiting * 2 < len(heap):  # half of it being dropped is reason to sweep
            heap[:] = [entry for entry in heap if entry[2].state is State.WAITING]
            heapq.heapify(heap)
        return True

    def take(self, now: float, max_points: int, first: Owner | None = None) -> Taken:
        """Removes the next batch, and every ticket found to be past its deadline on the way.

        It begins with a ticket of the owner `first`, if one waits; else with one of whoever has waited here longest.
        """
        batch: list[Ticket] = []
        expired: list[Ticket] = []
        points = 0
        owners = [owner for owner in self._heaps if owner != first]
        if first in self._heaps:
            owners.insert(0, first)
        riding = [(0, order, owner) for order, owner in enumerate(owners)]  # a heap: by points in the batch
        while riding:
            ridden, order, owner = riding[0]
            ticket = self._surfaced(owner, now, expired)
            if ticket is None:
                heapq.heappop(riding)
                continue
            if batch and (ticket.alone or points + ticket.points > max_points):
                heapq.heappop(riding)
                continue
            heapq.heappop(self._heaps[owner])
            self._leave(ticket, State.RUNNING)
            batch.append(ticket)
            if ticket.alone:
                break
            points += ticket.points
            heapq.heapreplace(riding, (ridden + ticket.points, order, owner))
        return Taken(batch, expired)

    def flush(self, owner: Owner | None = None) -> list[Ticket]:
        """Removes every waiting ticket, or every one of an owner."""
        heaps = list(self._heaps.values()) if owner is None else [self._heaps.get(owner, [])]
        waiting = [
            entry[2]
            for heap in heaps
            for entry in sorted(heap, key=lambda entry: entry[:2])
            if entry[2].state is State.WAITING
        ]
        for ticket in waiting:
            self._leave(ticket, State.DROPPED)
        return waiting

    def waiting(self) -> list[Ticket]:
        """The waiting tickets, in no particular order."""
        return [entry[2] for heap in self._heaps.values() for entry in heap if entry[2].state is State.WAITING]

    def _surfaced(self, owner: Owner, now: float, expired: list[Ticket]) -> Ticket | None:
        """An owner's next ticket, once what was dropped or has expired before it is gone; None if it has none."""
        heap = self._heaps.get(owner)
        while heap:
            ticket = heap[0][2]
            if ticket.state is State.WAITING and ticket.deadline > now:
                return ticket
            heapq.heappop(heap)
            if ticket.state is State.WAITING:
                expired.append(ticket)
                self._leave(ticket, State.DROPPED)
        return None

    def _enter(self, ticket: Ticket, order: int) -> None:
        ticket.state = State.WAITING
        heapq.heappush(self._heaps.setdefault(ticket.owner, []), (ticket.deadline, order, ticket))
        self._waiting[ticket.owner] = self._waiting.get(ticket.owner, 0) + 1
        self._count(ticket, 1)

    def _leave(self, ticket: Ticket, state: State) -> None:
        ticket.state = state
        left = self._waiting[ticket.owner] - 1
        if left:
            self._waiting[ticket.owner] = left
        else:
            del self._waiting[ticket.owner], self._heaps[ticket.owner]
        self._count(ticket, -1)

    def _count(self, ticket: Ticket, sign: int) -> None:
        self.tickets += sign
        self.points += sign * ticket.points
        self.size += sign * ticket.size
