"""A clock that stands still until it is moved by hand."""


class HandClock:
    """Reads like time.monotonic, in seconds."""

    def __init__(self, now: float = 0.0) -> None:
        self._now = now

    def __call__(self) -> float:
        return self._now

    def advance(self, seconds: float) -> None:
        """Lets time pass."""
        self._now += seconds
