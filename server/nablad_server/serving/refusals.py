"""Refusals that wait before they are sent.

A refusal costs no less than a light call: whoever asks again at once, and is refused again, would take the transport's
thread from everybody else.
"""

import time
from collections import deque
from collections.abc import Callable

from nablad.errors import NabladError
from nablad_server.serving.call import Call

REFUSAL_SECONDS = 0.2
"""So long a refusal waits."""

PACE_SECONDS, REFUSED_TOGETHER = 350e-6, 4
"""They leave so far apart, or after a pause so many together: those that came together must not leave so, nor come back
so. Each makes three events, and what somebody else asks for stands behind those that are there already."""

MAX_HELD = 4096
"""At most so many wait; the others are sent at once."""


class Refusals:
    """The calls that were refused and do not know it yet. Used in the transport's thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._held: deque[tuple[float, Call, NabladError]] = deque()  # and when each is to be sent
        self._sent = -REFUSAL_SECONDS  # when the last one was

    def __len__(self) -> int:
        """How many wait."""
        return len(self._held)

    def hold(self, call: Call, error: NabladError) -> None:
        """Has a call ended with an error, in a while."""
        if len(self._held) < MAX_HELD:
            self._held.append((self._clock() + REFUSAL_SECONDS, call, error))
        else:
            call.end(error)

    def patience(self) -> float:
        """For how many seconds the first of those that wait has to; there must be one."""
        return max(0.0, max(self._held[0][0], self._sent + PACE_SECONDS) - self._clock())

    def send(self, *, all_: bool) -> None:
        """Sends some of those that have waited long enough, or of `all_`."""
        now = self._clock()
        room = REFUSED_TOGETHER if all_ else min(REFUSED_TOGETHER, int((now - self._sent) / PACE_SECONDS))
        for _ in range(room):
            if not self._held or (self._held[0][0] > now and not all_):
                return
            _, call, refused = self._held.popleft()
            call.end(refused)
            self._sent = now
