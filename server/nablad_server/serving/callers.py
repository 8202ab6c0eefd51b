"""Who calls: found out once for each call."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from nablad.errors import PermissionDenied, Unauthenticated
from nablad_server.serving.caller import ADMIN, CATALOGUE, EVALUATE, REMOTE_ROLES, Caller, address_of, anonymous
from nablad_server.serving.identities import Identities
from nablad_server.serving.watched import Watched

OPEN = frozenset({"grpc.health.v1.Health"})
"""The services that anybody may call."""

_ROLES = {
    "nablad.v1.DifferentiationService": frozenset({EVALUATE}),
    "nablad.v1.DiagnosticsService": frozenset({EVALUATE}),
    "nablad.v1.CatalogService": frozenset({CATALOGUE}),
    "grpc.reflection.v1alpha.ServerReflection": frozenset({CATALOGUE}),
    # Arguments are bound by what it says: without it no function can be called by the names of its inputs.
    "/nablad.v1.CatalogService/DescribeFunction": frozenset({EVALUATE, CATALOGUE}),
}
_OTHERWISE = frozenset({ADMIN})

MAX_ANONYMOUS = 4096
"""So many addresses of callers without a name are remembered, so that theirs need not be made anew for each call."""

Metadata = Iterable[tuple[str, str | bytes]]
Certificate = Callable[[], Mapping[Any, Any] | None]
"""Gives what TLS knows of the other end: byte strings by name, as grpc.ServicerContext.auth_context does."""

_COMMON_NAME, _ALTERNATIVE_NAME = "x509_common_name", "x509_subject_alternative_name"


class Callers:
    """Finds out who calls.

    Attributes:
        known: whether callers say who they are, by a token or a certificate.
    """

    def __init__(self, identities: Watched[Identities] | None = None, *, certificates: bool = False) -> None:
        """`certificates`: every connection has shown a certificate that is to be trusted."""
        self._identities = identities
        self._certificates = certificates
        self._anonymous: dict[str, Caller] = {}  # by address
        self.known = identities is not None or certificates

    def of(self, metadata: Metadata, peer: Callable[[], str], certificate: Certificate) -> Caller:
        """Who makes a call with this metadata, from this address, over a connection with this certificate.

        Raises:
            Unauthenticated: it is nobody known. The reason is the same whatever is amiss.
        """
        if not self.known:
            return self.anybody(peer())
        if self._identities is None:
            name = next(iter(_names(certificate)), "")
            return Caller(key=f"certificate:{name}", identity=name, roles=REMOTE_ROLES, proof=name)
        identities = self._identities.value
        found = None
        given = next((value for key, value in metadata if key == "authorization"), None)
        if given is not None:
            scheme, _, token = given.partition(" ") if isinstance(given, str) else ("", "", "")
            found = identities.by_token(token.strip()) if scheme.lower() == "bearer" else None
        elif self._certificates:
            found = identities.by_certificate(_names(certificate))
        if found is None:
            raise unauthenticated()
        return found

    def anybody(self, peer: str) -> Caller:
        """Whoever calls from an address, without having to say who they are."""
        address = address_of(peer)
        found = self._anonymous.get(address)
        if found is None:
            if len(self._anonymous) >= MAX_ANONYMOUS:
                self._anonymous.clear()
            found = self._anonymous[address] = anonymous(peer)
        return found

    def refresh(self) -> bool:
        """Reads the identities anew if their file has changed; whether somebody may do other things than before."""
        return self._identities is not None and self._identities.refresh()

    def renewed(self, caller: Caller) -> Caller | None:
        """The caller of a call that is under way, with what it may do now; None if it is nobody any more."""
        return caller if self._identities is None else self._identities.value.renewed(caller)


def roles_of(method: str) -> frozenset[str]:
    """Any of these roles allows calls of the method `/package.Service/Method`. What is not listed is for `admin`."""
    found = _ROLES.get(method)
    return found if found is not None else _ROLES.get(method.split("/")[1], _OTHERWISE)


def check_role(caller: Caller, method: str) -> None:
    """Raises PermissionDenied if the caller's roles do not allow calls of the method."""
    needed = roles_of(method)
    if not caller.roles & needed:
        raise PermissionDenied(
            f"{method.rpartition('/')[2]} needs the role {' or '.join(sorted(needed))}, which this caller has not; ask "
            "whoever runs the server"
        )


def unauthenticated() -> Unauthenticated:
    """Why a call of somebody unknown is refused."""
    return Unauthenticated(
        "this server has to know its callers, and no valid credentials came with this call; send the metadata "
        "'authorization: Bearer TOKEN' (Client(token=...), --token or NABLAD_TOKEN), or connect with a client "
        "certificate that it knows"
    )


def _names(certificate: Certificate) -> list[str]:
    """The names in a certificate: the common name first."""
    context = {key.decode() if isinstance(key, bytes) else key: value for key, value in (certificate() or {}).items()}
    return [name.decode(errors="replace") for key in (_COMMON_NAME, _ALTERNATIVE_NAME) for name in context.get(key, ())]
