"""The scenarios by name, and runs of some of them."""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from resilience.faults.cache import corrupt_cache, full_disk
from resilience.faults.certificates import certificate_swap
from resilience.faults.clock import clock_jump
from resilience.faults.connections import idle_connections, never_reads, slow_loris
from resilience.faults.servers import killed, terminated, terminated_for_others
from resilience.outcome import Outcome

SCENARIOS: dict[str, Callable[[float], Outcome]] = {
    "kill": killed,
    "terminate": terminated,
    "terminate-stubs": terminated_for_others,
    "full-disk": full_disk,
    "corrupt-cache": corrupt_cache,
    "clock-jump": clock_jump,
    "certificate-swap": certificate_swap,
    "never-reads": never_reads,
    "idle-connections": idle_connections,
    "slow-loris": slow_loris,
}
"""Each takes the seconds for which it is to keep its load up, about."""


@dataclass(frozen=True, slots=True)
class Run:
    """One scenario that was run.

    Attributes:
        scenario: its name.
        outcome: what came of it.
        seconds: how long it took, start of its servers included.
    """

    scenario: str
    outcome: Outcome
    seconds: float

    def report(self) -> dict[str, Any]:
        """As JSON has it."""
        return {"scenario": self.scenario, "verdict": self.outcome.verdict, "seconds": round(self.seconds, 1),
                **asdict(self.outcome)}  # fmt: skip


def run(names: Iterable[str], seconds: float) -> Iterator[Run]:
    """Runs scenarios one after the other, each with load for about so many seconds."""
    for name in names:
        began = time.monotonic()
        outcome = SCENARIOS[name](seconds)
        yield Run(name, outcome, time.monotonic() - began)
