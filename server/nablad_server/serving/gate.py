"""The Gate: whether calls are let in, and how many of them may run Python at once."""

import enum
import threading
from types import TracebackType

from nablad.errors import Draining, Loading


class Phase(enum.Enum):
    """Where a server is in its life; it only ever moves down this list."""

    LOADING = enum.auto()
    SERVING = enum.auto()
    """Calls are served; while the server drains, until its pause is over, too."""
    CLOSED = enum.auto()
    """New calls are sent elsewhere; those inside finish."""


class Gate:
    """A call enters the gate for as long as it lasts: `with gate: …`.

    Inside it holds a permit while it decodes, computes and encodes, and gives it back while it only waits
    (`with gate.parked: …`). Permits are few: threads that run Python contend for the interpreter lock, and beyond a
    handful they only make each other late.
    """

    def __init__(self, running: int) -> None:
        """`running` is how many calls may run at once."""
        self._phase = Phase.LOADING
        self._inside = 0
        self._changed = threading.Condition(threading.Lock())
        self._permits = threading.BoundedSemaphore(running)
        self.parked = _Parked(self._permits)

    def open(self) -> None:
        """Lets calls in."""
        self._phase = Phase.SERVING

    def close(self, timeout: float) -> bool:
        """Sends new calls elsewhere and waits until none is inside; False if some still are after `timeout` seconds."""
        with self._changed:
            self._phase = Phase.CLOSED
            return self._changed.wait_for(lambda: not self._inside, timeout)

    def __enter__(self) -> None:
        """Raises Loading or Draining if calls are not let in."""
        with self._changed:
            if self._phase is Phase.LOADING:
                raise Loading("the server is warming up; retry in a moment", retry_after=1.0)
            if self._phase is Phase.CLOSED:
                raise Draining("the server is shutting down; retry elsewhere")
            self._inside += 1
        self._permits.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._permits.release()
        with self._changed:
            self._inside -= 1
            if not self._inside and self._phase is Phase.CLOSED:
                self._changed.notify_all()


class _Parked:
    """Gives a permit back on entering, and takes one again on leaving."""

    def __init__(self, permits: threading.BoundedSemaphore) -> None:
        self._permits = permits

    def __enter__(self) -> None:
        self._permits.release()

    def __exit__(self, *_: object) -> None:
        self._permits.acquire()
