"""The sums of docs/running.md: what a server may hold in memory at the same time, and how long it takes to end."""

from nablad_server.config import Settings

PROCESS_BYTES = 300 << 20
PROGRAM_BYTES = 1 << 20

DRAIN_ENDS_SECONDS = 7.2
"""After drain_seconds the server still gives each of its parts a second, and spans two."""


def memory_bytes(settings: Settings, scratch_bytes: int, workers: int) -> int:
    """Bytes of a server whose callers ask for all that they may; `scratch_bytes` of its cache are in memory, too."""
    return (
        PROCESS_BYTES
        + settings.programs * PROGRAM_BYTES
        + settings.queue_bytes
        + workers * settings.memory_bytes
        + settings.linearization_bytes
        + settings.unread_bytes_per_caller
        + scratch_bytes
    )
