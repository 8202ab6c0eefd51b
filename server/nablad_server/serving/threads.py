"""A few threads for calls whose answer has to be waited for, so that the transport's own waits for none."""

import queue
import threading
from collections.abc import Callable

MAX_BYTES = 64 << 20
"""What is under way or waits may hold so many bytes, or one piece of work alone any number."""


class Threads:
    """Up to so many daemon threads, started when they are first needed: none keeps the process from ending."""

    def __init__(self, name: str, count: int, *, waiting: int) -> None:
        """`count` pieces of work may be under way, and `waiting` more may wait until one is done."""
        self._name = name
        self._count = count
        self._most = count + waiting
        self._work: queue.SimpleQueue[tuple[Callable[[], None], int]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._held = 0  # pieces of work
        self._bytes = 0
        self._started = 0

    def run(self, work: Callable[[], None], size: int) -> bool:
        """Has something done, which must not raise and holds so many bytes; False if there is no room for it."""
        with self._lock:
            if self._held == self._most or (self._held and self._bytes + size > MAX_BYTES):
                return False
            self._held += 1
            self._bytes += size
            if self._started < min(self._held, self._count):
                self._started += 1
                threading.Thread(target=self._run, name=f"{self._name}-{self._started}", daemon=True).start()
        self._work.put((work, size))
        return True

    def _run(self) -> None:
        while True:
            work, size = self._work.get()
            try:
                work()
            finally:
                del work  # what it holds is let go of before the wait
                with self._lock:
                    self._held -= 1
                    self._bytes -= size
