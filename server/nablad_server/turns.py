"""Whose turn it is: fair sharing of the executor among lanes, weighted by the time that they really take.

Start-time fair queueing (Goyal, Vin, Cheng 1996): a lane's tag is the executor time that it has used; the lane with the
smallest tag is next. A lane that comes back after a rest starts at the tag of those active, so that resting saves up no
claim. A stream of Hessians therefore cannot starve gradients.
"""

from collections.abc import Callable, Hashable, Iterable

MAX_TAGS = 4096


class Turns:
    """The tags of the lanes that are known."""

    def __init__(self) -> None:
        self._tags: dict[Hashable, float] = {}
        self._now = 0.0

    def next(self, waiting: Iterable[Hashable]) -> Hashable | None:
        """The lane whose turn it is among those that wait; None if there are none."""
        key = min(waiting, key=lambda lane: self._tags.get(lane, self._now), default=None)
        if key is not None:
            self._now = self._tags[key] = max(self._now, self._tags.get(key, self._now))
        return key

    def charge(self, key: Hashable, seconds: float) -> None:
        """Adds executor time to a lane's account."""
        self._tags[key] = max(self._tags.get(key, self._now), self._now) + seconds
        if len(self._tags) > MAX_TAGS:  # lanes behind the present have no claim and no debt: nothing to remember
            self._tags = {lane: tag for lane, tag in self._tags.items() if tag > self._now}
            if len(self._tags) > MAX_TAGS:  # all in debt: the smaller half of the debts is forgiven
                largest = sorted(self._tags.items(), key=lambda item: item[1])[-MAX_TAGS // 2 :]
                self._tags = dict(largest)

    def forget(self, gone: Callable[[Hashable], bool]) -> None:
        """Lets go of the lanes that there will be no more."""
        self._tags = {lane: tag for lane, tag in self._tags.items() if not gone(lane)}
