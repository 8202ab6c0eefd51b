"""The functions that a server has, by name and version."""

import difflib
from collections.abc import Iterable
from typing import NamedTuple

from nablad.errors import FunctionNotFound, InvalidReference, VersionNotFound
from nablad_server.functions.function import NAME, Function


class _Tables(NamedTuple):
    """One set of functions, which never changes."""

    versions: dict[str, dict[int, Function]]
    latest: dict[str, Function]


class Registry:
    """A set of functions, which a reload changes all at once: whoever asks finds the old one or the new one."""

    def __init__(self, functions: Iterable[Function]) -> None:
        """Raises ValueError if two functions share a name and a version."""
        by_name: dict[str, dict[int, Function]] = {}
        for function in functions:
            versions = by_name.setdefault(function.name, {})
            if function.version in versions:
                other = versions[function.version]
                raise ValueError(
                    f"{function.source} and {other.source} both define {function.reference}; "
                    "give one of them another name= or version="
                )
            versions[function.version] = function
        latest = {name: versions[max(versions)] for name, versions in sorted(by_name.items())}
        self._tables = _Tables(by_name, latest)

    def become(self, other: "Registry") -> None:
        """Has the functions of another registry from now on. From any thread."""
        self._tables = other._tables

    def latest(self) -> list[Function]:
        """The latest version of every function, by name."""
        return list(self._tables.latest.values())

    def all(self) -> list[Function]:
        """Every version of every function."""
        return [function for versions in self._tables.versions.values() for function in versions.values()]

    def get(self, reference: str) -> Function:
        """The function that `name` or `name@version` refers to.

        Raises:
            InvalidReference: not of that form.
            FunctionNotFound: no function of that name.
            VersionNotFound: no such version.
        """
        tables = self._tables  # once: a reload may come between two looks
        found = tables.latest.get(reference)
        if found is not None:
            return found
        name, at, version = reference.partition("@")
        if not NAME.fullmatch(name) or (at and not (version.isascii() and version.isdigit() and len(version) < 10)):
            raise InvalidReference(
                f"{reference[:150]!r} is not a function reference; expected a name, or name@version such as "
                "rosenbrock@1",
                field="function",
            )
        versions = tables.versions.get(name)
        if versions is None:
            near = difflib.get_close_matches(name, tables.versions, n=3)
            hint = f"did you mean {' or '.join(near)}?" if near else "ListFunctions names those there are"
            raise FunctionNotFound(
                f"no function is called {name!r}; {hint}", field="function", metadata={"function": reference}
            )
        if int(version) not in versions:
            raise VersionNotFound(
                f"{name} has no version {version}; it has {', '.join(map(str, sorted(versions)))}",
                field="function",
                metadata={"function": reference},
            )
        return versions[int(version)]
