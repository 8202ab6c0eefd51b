"""Files that are read anew when they change."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

import structlog

_Value = TypeVar("_Value")
_Stamp = tuple[tuple[int, int, int], ...]

log = structlog.get_logger("nablad")


class Watched(Generic[_Value]):
    """What some files say. Files that cannot be read, or say nothing sensible, change nothing.

    Attributes:
        value: what they said last.
    """

    def __init__(self, what: str, paths: Sequence[Path], read: Callable[[], _Value]) -> None:
        """Reads the files. `what` they are, for the log; what `read` raises is to be an OSError or a ValueError.

        Raises:
            OSError, ValueError: what `read` raised.
        """
        self._what = what
        self._paths = paths
        self._read = read
        self._stamp = self._look()
        self.value = read()

    def refresh(self) -> bool:
        """Reads the files if they have changed since the last time; whether that gave a new value."""
        stamp = self._look()
        if stamp == self._stamp:
            return False
        # Before they are read: what changes while they are is seen the next time.
        self._stamp = stamp
        try:
            value = self._read()
        except (OSError, ValueError) as error:
            # Its message says it all: a traceback would only be of this file.
            log.error("not reloaded, the old stays", what=self._what, error=str(error))  # noqa: TRY400
            return False
        changed = value != self.value
        self.value = value
        log.info("reloaded", what=self._what)
        return changed

    def _look(self) -> _Stamp:
        """What tells one version of the files from another; of a missing one nothing is known."""
        try:
            found = [path.stat() for path in self._paths]
        except OSError:
            return ()
        return tuple((status.st_mtime_ns, status.st_size, status.st_ino) for status in found)
