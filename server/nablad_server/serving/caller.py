"""Who calls, and what that caller may do."""

from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from nablad.errors import NotFound, PermissionDenied
from nablad_server.serving.limits import Limits

EVALUATE = "evaluate"
CATALOGUE = "catalogue"
ADMIN = "admin"
ROLES = frozenset({EVALUATE, CATALOGUE, ADMIN})

REMOTE_ROLES = ROLES - {ADMIN}
"""What anybody may do who calls from elsewhere, where nobody has to say who they are."""

LOCAL = ("ipv4:127.", "ipv6:[::1]", "ipv6:%5B::1%5D", "unix")
"""How the peers of calls from the same machine begin."""

_Result = TypeVar("_Result")


class Allowed:
    """The functions that a caller may use.

    It depends on what a request says alone, and never on what there is: so a refusal cannot tell whether a function
    exists.
    """

    def __init__(self, entries: frozenset[str]) -> None:
        """Each entry is a `name` (all its versions), a `name@version`, or a `prefix*` of names."""
        self._exact = frozenset(entry for entry in entries if not entry.endswith("*"))
        self._prefixes = tuple(entry[:-1] for entry in entries if entry.endswith("*"))
        self._entries = entries

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Allowed) and other._entries == self._entries

    def __hash__(self) -> int:
        return hash(self._entries)

    def permits(self, reference: str) -> bool:
        """Whether requests may be about `name` or `name@version`."""
        name = reference.partition("@")[0]
        return reference in self._exact or name in self._exact or name.startswith(self._prefixes)

    def check(self, reference: str) -> None:
        """Raises PermissionDenied if requests may not be about this function."""
        if not self.permits(reference):
            raise denied(reference)

    def only(self, request: Message, work: Callable[[], _Result]) -> _Result:
        """What `work` gives for a request.

        Raises:
            PermissionDenied: it is about a function that the caller may not use.
            NotFound: it is about one that is not there; what else there is, is not said.
        """
        for reference in references(request):
            self.check(reference)
        try:
            return work()
        except NotFound as error:
            reference = error.metadata.get("function", "")
            raise type(error)(
                f"there is no function {reference!r}", field=error.field, metadata=error.metadata
            ) from None


@dataclass(frozen=True, slots=True)
class Caller:
    """Who makes a call.

    Attributes:
        key: what limits count by: the identity, or the address without its port where nobody says who they are.
        identity: its name; empty if it has none.
        roles: what it may do.
        functions: those that it may use; None for all.
        limits: its own; None for those of everybody.
        proof: what it showed: the hash of a token, or a name in its certificate. Empty if nothing.
    """

    key: str
    identity: str = ""
    roles: frozenset[str] = ROLES
    functions: Allowed | None = None
    limits: Limits | None = None
    proof: str = field(default="", repr=False)


CURRENT: ContextVar[Caller] = ContextVar("caller")
"""Whose call the running thread works on, if it is one of an Endpoint's."""


def current() -> Caller:
    """Whose call the running thread works on."""
    return CURRENT.get()


NOBODY = Caller(key="", roles=frozenset())
"""Whose a call is before it is known whose it is."""


def address_of(peer: str) -> str:
    """Where a connection comes from, without its port; all Unix sockets are one address."""
    return peer.rpartition(":")[0] if peer.startswith("ip") else peer.partition(":")[0]


def anonymous(peer: str) -> Caller:
    """Whoever calls from this address, where nobody has to say who they are."""
    return Caller(
        key=address_of(peer),
        roles=ROLES if peer.startswith(LOCAL) else REMOTE_ROLES,
    )


def references(request: Message) -> Iterator[str]:
    """The functions that a request is about, as it names them."""
    for part, value in request.ListFields():
        if part.name == "function" and part.type == FieldDescriptor.TYPE_STRING:
            yield value
        elif part.message_type is not None and not part.is_repeated:
            yield from references(value)


def denied(reference: str, field: str = "function") -> PermissionDenied:
    """Why a request about a function is refused: the same whether or not that function exists."""
    return PermissionDenied(
        f"this caller may not use {reference[:100]!r}; ask whoever runs the server for it, or ask ListFunctions which "
        "functions it may use",
        field=field,
    )
