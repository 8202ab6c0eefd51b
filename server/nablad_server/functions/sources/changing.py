"""The functions of files and modules, loaded once and then again where these have changed.

What is loaded again is imported as new modules beside the old ones, so that functions of the old ones go on as they
were. A module imported in place would put new globals under functions that calls are still being answered with.
"""

import importlib
import importlib.util
import linecache
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from nablad_server.functions.function import Function
from nablad_server.functions.registration import FILE_PREFIX
from nablad_server.functions.sources import python

UNSURE_NANOSECONDS = 10_000_000
"""A file that was written so shortly before it was read may have been written again since, in the same tick of the file
system's clock."""

_OURS = ("nablad", "nablad_server")

Stamp = tuple[int, int, int] | None
"""When a file was changed, its size, and which file it is; None if it must count as changed."""


class Refused(Exception):
    """Something that has changed does not load. Nothing is changed then.

    Attributes:
        reasons: what is wrong, by the file, module or function.
    """

    def __init__(self, reasons: Mapping[str, str]) -> None:
        super().__init__("; ".join(f"{source}: {reason}" for source, reason in reasons.items()))
        self.reasons = dict(reasons)


@dataclass(frozen=True)
class _Loaded:
    functions: tuple[Function, ...]
    stamps: Mapping[str, Stamp]


class Change:
    """What was loaded again: to be kept, or undone.

    Attributes:
        functions: all of them now; those of what has not changed are the very same as before.
    """

    def __init__(self, targets: "Targets", loaded: Mapping[str, _Loaded], modules: Mapping[str, ModuleType]) -> None:
        self._targets = targets
        self._loaded = loaded
        self._modules = modules
        self.functions = [function for each in loaded.values() for function in each.functions]

    def keep(self) -> None:
        """From now on these are what there is."""
        self._targets.loaded = self._loaded

    def undo(self) -> None:
        """Has the modules imported that were before."""
        _restore(self._modules)


class Targets:
    """Files and modules of functions.

    Attributes:
        loaded: what they gave, by target.
    """

    def __init__(self, targets: Sequence[str], black_box_seconds: float = 60.0) -> None:
        """Loads all; a call of a black box may take so long.

        Raises:
            ValueError: one does not load; the message says which and why.
        """
        self._black_box_seconds = black_box_seconds
        self.loaded: Mapping[str, _Loaded] = {target: self._load(target) for target in dict.fromkeys(targets)}

    @property
    def functions(self) -> list[Function]:
        """Those of all."""
        return [function for each in self.loaded.values() for function in each.functions]

    def again(self) -> Change:
        """Loads what has changed.

        Raises:
            Refused: some of it does not load; all of that is named.
        """
        changed = [target for target, each in self.loaded.items() if _changed(each.stamps)]
        if not changed:
            return Change(self, self.loaded, {})
        modules = {name: module for target in changed for name, module in _modules(target)}
        for name, module in modules.items():
            _drop_bytecode(str(module.__file__))
            del sys.modules[name]
        importlib.invalidate_caches()
        linecache.checkcache()
        found: dict[str, _Loaded] = {}
        reasons: dict[str, str] = {}
        for target in self.loaded:
            try:
                found[target] = self._load(target) if target in changed else self.loaded[target]
            except ValueError as error:
                reasons[target] = str(error)
        if reasons:
            _restore(modules)
            raise Refused(reasons)
        return Change(self, found, modules)

    def _load(self, target: str) -> _Loaded:
        started = time.time_ns()
        functions = tuple(python.load(target))
        for function in functions:
            if function.black_box is not None:
                function.black_box.seconds = self._black_box_seconds
        files = [str(module.__file__) for _, module in _modules(target)]
        return _Loaded(functions, {file: _stamp(file, started) for file in files})


def _modules(target: str) -> Iterator[tuple[str, ModuleType]]:
    """The modules that a target is made of, by name: its own, and those beside it or of its package."""
    path = Path(target)
    by_path = path.suffix == ".py" or path.is_file()
    directory = path.resolve().parent
    package = target.partition(".")[0]
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if file is None or not file.endswith(".py") or name.partition(".")[0] in _OURS or name == "__main__":
            continue
        if name.startswith(FILE_PREFIX):
            belongs = by_path and Path(file).resolve() == path.resolve()
        elif by_path:
            belongs = Path(file).is_relative_to(directory) and not _installed(Path(file))
        else:
            belongs = name.partition(".")[0] == package
        if belongs:
            yield name, module


def _installed(file: Path) -> bool:
    """Whether a file belongs to the interpreter or to an installed package."""
    return "site-packages" in file.parts or file.is_relative_to(Path(os.__file__).parent)


def _stamp(file: str, read: int) -> Stamp:
    """A file's stamp, as it was read at a time in nanoseconds."""
    with suppress(OSError):
        status = Path(file).stat()
        if status.st_mtime_ns < read - UNSURE_NANOSECONDS:
            return status.st_mtime_ns, status.st_size, status.st_ino
    return None


def _changed(stamps: Mapping[str, Stamp]) -> bool:
    now = time.time_ns() + 2 * UNSURE_NANOSECONDS
    return any(stamp is None or _stamp(file, now) != stamp for file, stamp in stamps.items())


def _drop_bytecode(file: str) -> None:
    """Removes what Python has compiled: it takes a file to be unchanged if its size and its second are."""
    with suppress(OSError, NotImplementedError):
        Path(importlib.util.cache_from_source(file)).unlink(missing_ok=True)


def _restore(modules: Mapping[str, ModuleType]) -> None:
    """Puts modules back in the place of those imported since."""
    sys.modules.update(modules)


def references(functions: Iterable[Function]) -> tuple[str, ...]:
    """The names and versions of functions, in order."""
    return tuple(sorted(function.reference for function in functions))
