"""What became of the callers while something was broken, and whether it was broken at all."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from resilience.load import Load
from resilience.server import Server


@dataclass(frozen=True, slots=True)
class Outcome:
    """The end of a scenario.

    Attributes:
        calls: made by callers.
        lost: not answered, retries included.
        wrong: answered with something else.
        recovery_seconds: the longest that anybody waited for an answer from the fault on, retries included.
        evidence: what shows that the server met the fault: counts and sizes that were observed.
        missing: what would have shown it and was not observed; empty if the fault was met.
        violations: what is bad besides lost and wrong calls.
        skipped: what the machine lacks for the scenario; empty if it ran.
    """

    calls: int = 0
    lost: int = 0
    wrong: int = 0
    recovery_seconds: float = 0.0
    evidence: str = ""
    missing: tuple[str, ...] = ()
    violations: tuple[str, ...] = ()
    skipped: str = ""

    @property
    def verdict(self) -> str:
        """In a few words: "fine" if the fault was met and callers noticed nothing but a wait."""
        if self.skipped:
            return "skipped"
        if self.missing or not self.calls:  # without calls nothing is known
            return "fault not met"
        return "broken" if self.lost or self.wrong or self.violations else "fine"


def judged(
    loads: Sequence[Load],
    servers: Collection[Server],
    evidence: str,
    met: dict[str, bool],
    kept: dict[str, bool] | None = None,
) -> Outcome:
    """The outcome for these callers.

    Args:
        loads: the callers.
        servers: none of which may have logged a defect of its own.
        evidence: see Outcome.
        met: what shows that there was a fault, and whether it was seen.
        kept: what has to hold besides, and whether it did.
    """
    violations = [promise for promise, holds in (kept or {}).items() if not holds]
    violations += [f"the server logged a defect: {line}" for server in servers for line in server.defects]
    violations += [error for load in loads for error in load.lost[:2]]
    return Outcome(
        calls=sum(load.calls for load in loads),
        lost=sum(len(load.lost) for load in loads),
        wrong=sum(load.wrong for load in loads),
        recovery_seconds=max(load.slowest_seconds for load in loads),
        evidence=evidence,
        missing=tuple(sign for sign, seen in met.items() if not seen),
        violations=tuple(violations),
    )
