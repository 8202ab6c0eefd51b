"""Refusals that wait before they are sent.

A refusal costs no less than a light call: whoever asks again at once, and is refused again, would take the transport's
thread from everybody else.
"""

import time
from collections import deque

from nablad.errors import NabladError
from nablad_server.serving.call import Call

REFUSAL_SECONDS = 0.2
"""So long a refusal waits."""

REFUSED_TOGETHER = 4
"""So many are sent between two looks at the queue of events: those that came together must not leave so."""

MAX_HELD = 1024
"""At most so many wait; the others are sent at once."""


class Refusals:
    """The calls that were refused and do not know it yet. Used in the transport's thread."""

    def __init__(self) -> None:
        self._held: deque[tuple[float, Call, NabladError]] = deque()  # and when each is to be sent

    def __len__(self) -> int:
        """How many wait."""
        return len(self._held)

    def hold(self, call: Call, error: NabladError) -> None:
        """Has a call ended with an error, in a while."""
        if len(self._held) < MAX_HELD:
            self._held.append((time.monotonic() + REFUSAL_SECONDS, call, error))
        else:
            call.end(error)

    def patience(self) -> float:
        """For how many seconds the first of those that wait has to; there must be one."""
        return max(0.0, self._held[0][0] - time.monotonic())

    def send(self, *, all_: bool) -> None:
        """Sends some of those that have waited long enough, or of `all_`."""
        now = time.monotonic()
        for _ in range(REFUSED_TOGETHER):
            if not self._held or (self._held[0][0] > now and not all_):
                return
            _, call, refused = self._held.popleft()
            call.end(refused)
