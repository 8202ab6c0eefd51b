"""Every decision of the batcher that is a matter of degree, in one place."""

from dataclasses import dataclass

from nablad_server.batching.ticket import Prepared


@dataclass(frozen=True)
class Policy:
    """The batcher's limits and thresholds.

    Attributes:
        max_points: the most points of a batch. Larger batches gain little and make everybody wait longer.
        max_tickets: the most calls that may wait, over all lanes.
        max_bytes: the most bytes of arguments that waiting calls may hold.
        direct_seconds: a batch estimated to take no longer for each of its calls, and not to be heavy, runs at once in
            the thread that they arrived in, if nothing of its lane waits: handing it over would cost as much.
        heavy_seconds: a batch estimated to take longer is left to the workers for heavy work, so that one worker is
            always near its next batch.
        heavy_workers: threads that execute batches of any kind; one more takes all but the heavy ones.
        aside_workers: threads for batches that wait for something else than this process.
        retry_seconds: how long a caller refused for a full queue is told to wait.
    """

    max_points: int = 1024
    max_tickets: int = 4096
    max_bytes: int = 1 << 30
    direct_seconds: float = 100e-6
    heavy_seconds: float = 5e-3
    heavy_workers: int = 2
    aside_workers: int = 8
    retry_seconds: float = 0.1

    def direct(self, prepared: Prepared, calls: int) -> bool:
        """Whether a batch of so many calls should run in the thread that they arrived in."""
        limit = min(self.direct_seconds * calls, self.heavy_seconds)
        return prepared.seconds <= limit and not prepared.calls_back

    def heavy(self, prepared: Prepared) -> bool:
        """Whether a batch may keep others waiting for long."""
        return prepared.seconds > self.heavy_seconds or prepared.calls_back
