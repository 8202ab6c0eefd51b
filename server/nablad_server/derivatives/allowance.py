"""How much time of the compile thread each asker may have."""

import time
from collections.abc import Callable, Hashable

WINDOW_SECONDS = 60.0

MAX_ASKERS = 4096


class Allowance:
    """So many seconds a minute, over time, for each asker; after a pause, as many as in a minute at once.

    Not safe for threads.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        """`seconds` may be 0, for no such limit."""
        self.seconds = seconds
        self._clock = clock
        self._used: dict[Hashable, tuple[float, float]] = {}  # seconds, as of when; they wear off evenly

    def patience(self, asker: Hashable) -> float:
        """For how many seconds an asker has to wait until it may ask for more work; 0 if it may."""
        if not self.seconds:
            return 0.0
        return max(0.0, self._owed(asker) - self.seconds) / self._rate

    def charge(self, asker: Hashable, seconds: float) -> None:
        """Work for an asker took so long."""
        if not self.seconds:
            return
        if len(self._used) >= MAX_ASKERS:
            self._used = {other: used for other, used in self._used.items() if self._owed(other)}
        self._used[asker] = (self._owed(asker) + seconds, self._clock())

    @property
    def _rate(self) -> float:
        return self.seconds / WINDOW_SECONDS

    def _owed(self, asker: Hashable) -> float:
        used, since = self._used.get(asker, (0.0, 0.0))
        return max(0.0, used - (self._clock() - since) * self._rate)
