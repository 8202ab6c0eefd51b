"""What waits to be compiled, in fair turns of those who asked. Sans-IO: no clock, no thread, no lock.

Invariants:
 1. Every item added is taken exactly once, and counts until it is finished.
 2. Turns are shared by the time that items really take: next is whoever was worked for least since all of those who
    wait began to; of several, who has waited longest.
 3. One asker's items are taken in the order in which it asked, whether it added them or joined.
 4. An item that several asked for is taken in the turn that comes first.
 5. No asker adds more than its limit; with a quarter of the room left, only those add who have added nothing.
"""

from collections.abc import Hashable
from typing import Generic, TypeVar

from nablad_server.turns import Turns

_Item = TypeVar("_Item", bound=Hashable)


class Pending(Generic[_Item]):
    """Items by who asked for them."""

    def __init__(self, limit: int, limit_each: int) -> None:
        """Sets how many items there may be, and how many that one asker added; 0: as many as there is room for."""
        self._limit = limit
        self._limit_each = limit_each or limit
        self._added: dict[_Item, Hashable] = {}  # the items not yet finished, and who added each
        self._counts: dict[Hashable, int] = {}  # by asker, how many of those
        self._waiting: set[_Item] = set()  # those not yet taken
        self._asked: dict[Hashable, dict[_Item, None]] = {}  # who waits, longest first; its items, the next one first
        self._turns = Turns()
        self._taken: dict[_Item, Hashable] = {}  # in whose turn each item not yet finished was

    def __len__(self) -> int:
        return len(self._added)

    def held(self, asker: Hashable) -> int:
        """How many of the items not yet finished an asker added."""
        return self._counts.get(asker, 0)

    def has_room(self, asker: Hashable) -> bool:
        """Whether an asker may add one more."""
        held, reserved = self.held(asker), self._limit // 4
        return held < self._limit_each and len(self._added) < self._limit - (reserved if held else 0)

    def add(self, item: _Item, asker: Hashable) -> None:
        """Adds an item that is not here."""
        self._added[item] = asker
        self._counts[asker] = self.held(asker) + 1
        self._waiting.add(item)
        self._asked.setdefault(asker, {})[item] = None

    def join(self, item: _Item, asker: Hashable) -> None:
        """Asks for an item that another may have added; nothing if it waits no longer."""
        if item in self._waiting:
            self._asked.setdefault(asker, {})[item] = None

    def take(self) -> _Item | None:
        """The next item, which waits no longer; None if there is none."""
        while self._asked:
            asker = self._turns.next(self._asked)
            items = self._asked.pop(asker)
            item = next((item for item in items if item in self._waiting), None)
            if item is None:
                continue  # all of it was taken in others' turns
            self._waiting.remove(item)
            self._taken[item] = asker
            rest = {other: None for other in items if other in self._waiting}
            if rest:
                self._asked[asker] = rest  # behind all others
            return item
        return None

    def finish(self, item: _Item, seconds: float) -> Hashable:
        """An item that was taken, and took so long, no longer counts; in whose turn it was."""
        asker = self._added.pop(item)
        self._counts[asker] -= 1
        if not self._counts[asker]:
            del self._counts[asker]
        turn = self._taken.pop(item)
        self._turns.charge(turn, seconds)
        return turn
