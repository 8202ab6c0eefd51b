"""The file that says who may call: names, the hashes of their tokens, certificates, roles and functions.

    [[identity]]
    name = "training"
    token_sha256 = ["9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"]
    roles = ["evaluate"]
    functions = ["rosenbrock", "loss@2", "team_*"]

A token is 256 random bits. Nobody can find it by guessing, however fast a guess is tested, so a plain SHA-256 keeps it
as well as a slow hash would; and a slow one, as passwords need it, would take a tenth of a second of every call.
"""

import dataclasses
import hashlib
import hmac
import re
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from nablad_server.functions.function import NAME
from nablad_server.serving.caller import Allowed, Caller
from nablad_server.serving.limits import Limits

_ENTRY = re.compile(rf"{NAME.pattern}(@[0-9]{{1,9}}|\*)?|\*")
_HASH = re.compile(r"[0-9a-f]{64}")


class Identity(BaseModel):
    """One entry of the file.

    Attributes:
        name: who it is, for the log and for limits.
        token_sha256: the SHA-256 of its tokens, in hexadecimal; several while one takes over from another.
        certificate: the common name, or an alternative name, of its client certificate; or several.
        roles: what it may do.
        functions: those that it may use, by `name`, `name@version` or `prefix*`; all if there is no such list.
        calls, streams, rate, unread_bytes, share: its own limits in place of everybody's, as `Limits` has them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, Field(min_length=1, max_length=100)]
    token_sha256: list[str] = []
    certificate: list[str] = []
    roles: Annotated[list[Literal["evaluate", "catalogue", "admin"]], Field(min_length=1)]
    functions: list[str] | None = None
    calls: Annotated[int, Field(ge=0)] | None = None
    streams: Annotated[int, Field(ge=0)] | None = None
    rate: Annotated[float, Field(ge=0)] | None = None
    unread_bytes: Annotated[int, Field(ge=0)] | None = None
    share: Annotated[float, Field(gt=0, le=1)] | None = None

    @field_validator("token_sha256", "certificate", mode="before")
    @classmethod
    def _one(cls, value: object) -> object:
        return [value] if isinstance(value, str) else value

    @field_validator("token_sha256")
    @classmethod
    def _hashes(cls, value: list[str]) -> list[str]:
        for text in value:
            if not _HASH.fullmatch(text):
                raise ValueError("expected 64 hexadecimal digits in lower case, as `nablad token` prints them")
        return value

    @field_validator("functions")
    @classmethod
    def _entries(cls, value: list[str] | None) -> list[str] | None:
        for text in value or ():
            if not _ENTRY.fullmatch(text):
                raise ValueError(f"{text!r} is none of name, name@version and prefix*")
        return value


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    identity: list[Identity] = []


class Identities:
    """Who may call. Immutable: a changed file makes a new one."""

    def __init__(self, identities: Iterable[Identity], defaults: Limits) -> None:
        """`defaults` are the limits of those that have none of their own.

        Raises:
            ValueError: two have the same name, token or certificate, or one has neither a token nor a certificate.
        """
        self._tokens: list[tuple[bytes, Caller]] = []
        self._certificates: dict[str, Caller] = {}
        names = set()
        for identity in identities:
            if identity.name in names:
                raise ValueError(f"two identities are called {identity.name!r}; give one of them another name")
            names.add(identity.name)
            if not identity.token_sha256 and not identity.certificate:
                raise ValueError(f"{identity.name!r} has neither token_sha256 nor certificate; nobody could be it")
            for text in identity.token_sha256:
                digest = bytes.fromhex(text)
                if any(digest == other for other, _ in self._tokens):
                    raise ValueError(f"a token of {identity.name!r} is also another's; make a token for each")
                self._tokens.append((digest, _caller(identity, text, defaults)))
            for name in identity.certificate:
                if name in self._certificates:
                    raise ValueError(f"the certificate {name!r} of {identity.name!r} is also another's")
                self._certificates[name] = _caller(identity, name, defaults)
        self._by_proof = {caller.proof: caller for _, caller in self._tokens} | self._certificates

    def by_token(self, token: str) -> Caller | None:
        """Whose token it is. Takes as long for one that is nearly right as for any other."""
        given = hashlib.sha256(token.encode(errors="surrogatepass")).digest()
        found = None
        for digest, caller in self._tokens:
            if hmac.compare_digest(digest, given):
                found = caller
        return found

    def by_certificate(self, names: Iterable[str]) -> Caller | None:
        """Whose certificate has one of these names."""
        return next((self._certificates[name] for name in names if name in self._certificates), None)

    def renewed(self, caller: Caller) -> Caller | None:
        """The same caller, by what it showed, with what it may do now; None if it is nobody any more."""
        found = self._by_proof.get(caller.proof)
        return found if found is not None and found.identity == caller.identity else None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Identities) and other._by_proof == self._by_proof

    __hash__ = None  # type: ignore[assignment]  # compared, and never looked up


def read_identities(path: Path, defaults: Limits) -> Identities:
    """What the file says.

    Raises:
        OSError: it cannot be read, or others can write to it: they could let themselves in.
        ValueError: it is not as it should be.
    """
    if path.stat().st_mode & 0o002:
        raise PermissionError(f"{path}: everybody can write to it, and let themselves in; chmod o-w it")
    try:
        return Identities(_File.model_validate(tomllib.loads(path.read_text())).identity, defaults)
    except ValidationError as error:
        # What was given is left out: a token put there by mistake would come into the log.
        problems = [f"{'.'.join(map(str, found['loc']))}: {found['msg']}" for found in error.errors()]
        raise ValueError(f"{path}: {'; '.join(problems)}") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _caller(identity: Identity, proof: str, defaults: Limits) -> Caller:
    own = {field.name: getattr(identity, field.name) for field in dataclasses.fields(Limits)}
    own = {name: value for name, value in own.items() if value is not None}
    return Caller(
        key=f"identity:{identity.name}",
        identity=identity.name,
        roles=frozenset(identity.roles),
        functions=None if identity.functions is None else Allowed(frozenset(identity.functions)),
        limits=dataclasses.replace(defaults, **own) if own else None,
        proof=proof,
    )
