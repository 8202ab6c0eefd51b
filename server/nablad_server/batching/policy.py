"""Every decision of the batcher that is a matter of degree, in one place."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Policy:
    """The batcher's limits and thresholds.

    Attributes:
        max_points: the most points of a batch. Larger batches gain little and make everybody wait longer.
        max_tickets: the most calls that may wait, over all lanes.
        max_bytes: the most bytes of arguments that waiting calls may hold.
        direct_seconds: a call whose execution is estimated to take no longer runs at once in its caller's thread, if
            nothing of its lane waits: handing it to another thread and back would cost more.
        workers: threads that execute batches.
        retry_seconds: how long a caller refused for a full queue is told to wait.
    """

    max_points: int = 1024
    max_tickets: int = 4096
    max_bytes: int = 1 << 30
    direct_seconds: float = 100e-6
    workers: int = 2
    retry_seconds: float = 0.1

    def direct(self, seconds: float | None) -> bool:
        """Whether a call that takes so long (None: unknown) should run in its caller's thread, its lane being empty."""
        return seconds is not None and seconds <= self.direct_seconds

    def blended(self, estimate: float | None, measured: float) -> float:
        """The new estimate of a cost: follows a fall at once, and slowly a rise, which is mostly noise."""
        if estimate is None or measured < estimate:
            return measured
        return estimate + 0.1 * (measured - estimate)
