"""A few threads for calls whose answer has to be waited for, so that the transport's own waits for none."""

import queue
import threading
from collections.abc import Callable


class Threads:
    """Up to so many daemon threads, started when they are first needed: none keeps the process from ending."""

    def __init__(self, name: str, count: int, *, waiting: int = 0) -> None:
        """`count` pieces of work may be under way, and `waiting` more may wait until one is done."""
        self._name = name
        self._count = count
        self._room = threading.BoundedSemaphore(count + waiting)
        self._work: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._started = 0

    def run(self, work: Callable[[], None]) -> bool:
        """Has something done, which must not raise; False if there is no room for it. From one thread alone."""
        if not self._room.acquire(blocking=False):
            return False
        if self._started < self._count:
            self._started += 1
            threading.Thread(target=self._run, name=f"{self._name}-{self._started}", daemon=True).start()
        self._work.put(work)
        return True

    def _run(self) -> None:
        while True:
            work = self._work.get()
            try:
                work()
            finally:
                del work  # what it holds is let go of before the wait
                self._room.release()
