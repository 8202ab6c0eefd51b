"""Reloading: load → check → warm up → swap, while the server goes on serving what it has."""

import gc
import threading
import time
import weakref
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import structlog

from nablad.errors import DeadlineExceeded, NabladError
from nablad_server.functions.function import Function, Warm
from nablad_server.functions.registry import Registry
from nablad_server.functions.sources.changing import Refused, Targets, references
from nablad_server.serving.statistics import Distribution

log = structlog.get_logger("nablad")

Forget = Callable[[Collection[Function]], None]
"""Lets go of what is known of some functions and can be done without."""

FIRST_COLLECTION, NEXT_COLLECTION = 4, 30
"""Looks until garbage is collected, which keeps all waiting for a fraction of a second: programs that nobody uses are
dropped by the third."""

RELOAD_SECONDS = tuple(base * 10.0**exponent for exponent in range(-2, 3) for base in (1, 2, 5))
"""Upper bounds of the buckets of times: 10 ms to 500 s."""


@dataclass(frozen=True)
class Report:
    """What a reload came to; functions by `name@version`.

    Attributes:
        added: those that there were not.
        replaced: those in whose place another one is now.
        removed: those that there are no more.
        refused: what kept it from changing anything, by file, module or function.
        seconds: how long it took.
    """

    added: Sequence[str] = ()
    replaced: Sequence[str] = ()
    removed: Sequence[str] = ()
    refused: Sequence[tuple[str, str]] = ()
    seconds: float = 0.0

    @property
    def outcome(self) -> str:
        """`refused`, `changed` or `unchanged`."""
        return "refused" if self.refused else "changed" if self.added or self.replaced or self.removed else "unchanged"


@dataclass
class Counts:
    """What reloads have come to.

    Attributes:
        outcomes: how many came to what.
        seconds: how long they took.
        last_refused: whether the last one was.
    """

    outcomes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("changed", "unchanged", "refused"), 0))
    seconds: Distribution = field(default_factory=lambda: Distribution(RELOAD_SECONDS))
    last_refused: bool = False


class Retired:
    """Functions that have left the registry, for as long as calls that began with them are under way.

    Nothing is counted for that: what is under way holds the function, and what only remembers it is told to let go.
    Modules and traced programs are cycles, so that the collector has to be asked; and as a server that is ready has its
    objects frozen, they are not while there are some that may have become garbage.
    """

    def __init__(self, renew: Sequence[Callable[[], None]], forget: Sequence[Forget]) -> None:
        """`renew` are those whose answers depend on what is registered; `forget` are all who remember functions."""
        self._renew = renew
        self._forget = forget
        self._functions: weakref.WeakSet[Function] = weakref.WeakSet()
        self._collect_in = 0  # looks; 0: there is nothing to collect

    def add(self, functions: Iterable[Function]) -> None:
        """Takes on functions that nobody will ask for any more. The process of a black box ends with the last call."""
        functions = list(functions)
        if not functions:
            return
        for function in functions:
            if function.black_box is not None:
                weakref.finalize(function, function.black_box.close)
            self._functions.add(function)
        for renew in self._renew:
            renew()
        gc.unfreeze()
        self._collect_in = FIRST_COLLECTION
        self.look()

    def look(self) -> None:
        """Has those that are still there forgotten: a call under way may have made somebody remember one."""
        functions = set(self._functions)
        if functions:
            for forget in self._forget:
                forget(functions)
        del functions
        if self._collect_in:
            self._collect_in -= 1
            if not self._collect_in:
                gc.collect()
                if self._functions:
                    self._collect_in = NEXT_COLLECTION
                else:
                    gc.freeze()

    def close(self) -> None:
        """Ends what still runs."""
        for function in list(self._functions):
            if function.black_box is not None:
                function.black_box.close()


class Reloader:
    """Reloads the functions of files and modules, one reload at a time."""

    def __init__(
        self,
        registry: Registry,
        targets: Targets,
        retired: Retired,
        *,
        warmed: Callable[[Registry], list[tuple[Function, Warm]]],
        warm: Callable[[Registry, Function, Warm], Any],
    ) -> None:
        """Reloads nothing yet.

        Args:
            registry: what is served.
            targets: what of it can change; the rest stays.
            retired: takes on what is replaced.
            warmed: what is to be warm of a registry.
            warm: makes it so.
        """
        self._registry = registry
        self._targets = targets
        self._retired = retired
        self._warmed = warmed
        self._warm = warm
        self._lock = threading.Lock()
        self.counts = Counts()

    def reload(self, seconds: float) -> Report:
        """Reloads what has changed, and says what came of it; logs it, too. Blocks.

        Raises:
            DeadlineExceeded: another reload was still under way after so many seconds.
        """
        if not self._lock.acquire(timeout=min(max(0.0, seconds), threading.TIMEOUT_MAX)):
            raise DeadlineExceeded("another reload is still under way; ask again a little later")
        try:
            started = time.monotonic()
            try:
                added, replaced, removed = self._changed()
                report = Report(added, replaced, removed, (), time.monotonic() - started)
            except Refused as refused:
                report = Report(refused=tuple(refused.reasons.items()), seconds=time.monotonic() - started)
            self.counts.outcomes[report.outcome] += 1
            self.counts.seconds.add(report.seconds)
            self.counts.last_refused = bool(report.refused)
        finally:
            self._lock.release()
        for source, reason in report.refused:
            log.error("reload refused", source=source, reason=reason)
        log.info("reload finished", outcome=report.outcome, added=report.added, replaced=report.replaced,
                 removed=report.removed, seconds=round(report.seconds, 2))  # fmt: skip
        return report

    def _changed(self) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
        """Changes what has changed. Raises Refused, and nothing is changed."""
        own = set(self._targets.functions)
        before = {function.reference: function for function in self._registry.all()}
        change = self._targets.again()
        made = [function for function in change.functions if function not in own]
        try:
            try:
                after = Registry([f for f in before.values() if f not in own] + change.functions)
            except ValueError as error:
                raise Refused({"functions": str(error)}) from error
            self._warm_up(after, made)
        except Refused:
            change.undo()
            self._retired.add(made)
            raise
        gone = own - set(change.functions)
        change.keep()
        self._registry.become(after)
        self._retired.add(gone)
        names = {function.reference for function in after.all()}
        return (
            references(function for function in made if function.reference not in before),
            references(function for function in made if function.reference in before),
            references(function for function in gone if function.reference not in names),
        )

    def _warm_up(self, registry: Registry, made: Collection[Function]) -> None:
        """Warms up what is new. Raises Refused."""
        if not made:
            return
        try:
            wanted = self._warmed(registry)
        except NabladError as error:  # what a setting names is there no more
            raise Refused({"warm": str(error)}) from error
        for function, warm in wanted:
            if function in made:
                try:
                    self._warm(registry, function, warm)
                except (ValueError, NabladError) as error:
                    raise Refused({function.reference: f"warming up {warm.operator}: {error}"}) from error
