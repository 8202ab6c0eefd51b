"""The Gate: whether work is let in, and whether some is still inside."""

import enum
import threading

from nablad.errors import Draining, Loading, NabladError


class Phase(enum.Enum):
    """Where a server is in its life; it only ever moves down this list."""

    LOADING = enum.auto()
    SERVING = enum.auto()
    """Work is taken on; while the server drains, until its pause is over, too."""
    CLOSED = enum.auto()
    """New work is sent elsewhere; what is inside is finished."""


class Gate:
    """Every call, and every operation of a stream, is inside from when it is let in until it is answered."""

    def __init__(self) -> None:
        """The gate of a server that loads."""
        self._phase = Phase.LOADING
        self._inside = 0
        self._changed = threading.Condition(threading.Lock())

    @property
    def serving(self) -> bool:
        """Whether work is let in."""
        return self._phase is Phase.SERVING

    @property
    def inside(self) -> int:
        """How many are inside."""
        return self._inside

    def open(self) -> None:
        """Lets work in."""
        self._phase = Phase.SERVING

    def close(self, timeout: float) -> bool:
        """Sends new work elsewhere and waits until none is inside; False if some is after `timeout` seconds."""
        with self._changed:
            self._phase = Phase.CLOSED
            return self._changed.wait_for(lambda: not self._inside, timeout)

    def enter(self) -> NabladError | None:
        """Lets one in; or says why not: Loading, or Draining."""
        with self._changed:
            if self._phase is Phase.SERVING:
                self._inside += 1
                return None
        if self._phase is Phase.LOADING:
            return Loading("the server is warming up; retry in a moment", retry_after=1.0)
        return Draining("the server is shutting down; retry elsewhere")

    def leave(self) -> None:
        """One that was let in is answered."""
        with self._changed:
            self._inside -= 1
            if not self._inside and self._phase is Phase.CLOSED:
                self._changed.notify_all()
