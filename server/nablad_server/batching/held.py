"""What each owner holds of the queue, and who makes room for others once it is full. Sans-IO, as a Lane is."""

from nablad_server.batching.ticket import Owner, Ticket


class Held:
    """The waiting tickets of all lanes, by owner.

    Attributes:
        tickets: how many wait.
        size: how many bytes they keep in memory.
    """

    def __init__(self, max_tickets: int, max_size: int) -> None:
        """Sets how many tickets, and bytes, may wait."""
        self.tickets = 0
        self.size = 0
        self._max_tickets = max_tickets
        self._max_size = max_size
        self._tickets: dict[Owner, dict[Ticket, None]] = {}  # in the order of their arrival
        self._sizes: dict[Owner, int] = {}

    def add(self, ticket: Ticket) -> None:
        """A ticket waits from now on."""
        owner = ticket.owner
        self._tickets.setdefault(owner, {})[ticket] = None
        self._sizes[owner] = self._sizes.get(owner, 0) + ticket.size
        self.tickets += 1
        self.size += ticket.size

    def remove(self, ticket: Ticket) -> None:
        """A ticket waits no longer."""
        owner = ticket.owner
        theirs = self._tickets[owner]
        del theirs[ticket]
        if theirs:
            self._sizes[owner] -= ticket.size
        else:
            del self._tickets[owner], self._sizes[owner]
        self.tickets -= 1
        self.size -= ticket.size

    def fits(self, ticket: Ticket) -> bool:
        """Whether there is room for one more."""
        return self.tickets < self._max_tickets and self.size + ticket.size <= self._max_size

    def makes_room(self, ticket: Ticket) -> Ticket | None:
        """Of a full queue, what has to leave for a ticket; None if nothing does, and the ticket is to be refused.

        That is the newest ticket of the owner who is furthest beyond its share, unless the newcomer's owner would be
        beyond its own.
        """
        if self._used(ticket.owner, 1, ticket.size) > ticket.owner.share:
            return None
        most = max(self._tickets, key=lambda owner: self._used(owner) - owner.share, default=None)
        if most is None or self._used(most) <= most.share:
            return None
        return next(reversed(self._tickets[most]))

    def _used(self, owner: Owner, tickets: int = 0, size: int = 0) -> float:
        """The part of the queue that an owner would hold with so much more: of tickets or of bytes, the larger one."""
        tickets += len(self._tickets.get(owner, ()))
        size += self._sizes.get(owner, 0)
        return max(tickets / max(1, self._max_tickets), size / max(1, self._max_size))
