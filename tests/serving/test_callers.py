"""Who calls, by what came with the call; and files that are read anew."""

from pathlib import Path
from typing import Any

import pytest

from credentials import replace, write_identities
from nablad.errors import PermissionDenied, Unauthenticated
from nablad.v1 import catalog_pb2, diagnostics_pb2, differentiation_pb2
from nablad.v1.tensor_pb2 import NamedTensor
from nablad_server.serving.caller import ADMIN, CATALOGUE, EVALUATE, ROLES, Allowed, anonymous, references
from nablad_server.serving.callers import Callers, check_role, roles_of
from nablad_server.serving.identities import Identities, read_identities
from nablad_server.serving.limits import Limits
from nablad_server.serving.watched import Watched


@pytest.mark.parametrize(
    ("peer", "key", "local"),
    [
        ("ipv4:127.0.0.1:5000", "ipv4:127.0.0.1", True),
        ("ipv4:127.9.9.9:5000", "ipv4:127.9.9.9", True),
        ("ipv6:[::1]:5000", "ipv6:[::1]", True),
        ("ipv6:%5B::1%5D:5000", "ipv6:%5B::1%5D", True),
        ("unix:", "unix", True),
        ("unix:/run/nablad.sock", "unix", True),
        ("ipv4:10.0.0.1:5000", "ipv4:10.0.0.1", False),
        ("ipv6:[::10]:5000", "ipv6:[::10]", False),
        ("ipv6:[2001:db8::1]:5000", "ipv6:[2001:db8::1]", False),
    ],
)
def test_somebody_unknown_is_counted_by_address_and_administers_only_from_the_same_machine(
    peer: str, key: str, local: bool
) -> None:
    caller = Callers().of((), lambda: peer, lambda: None)
    assert caller == anonymous(peer)
    assert (caller.key, caller.identity, caller.functions) == (key, "", None)
    assert caller.roles == (ROLES if local else {EVALUATE, CATALOGUE})


def test_credentials_mean_nothing_where_nobody_has_to_say_who_they_are() -> None:
    bearing = (("authorization", "Bearer whatever"),)
    assert Callers().of(bearing, lambda: "ipv4:10.0.0.1:5000", lambda: None).identity == ""


@pytest.mark.parametrize(
    ("method", "roles"),
    [
        ("/nablad.v1.DifferentiationService/Gradient", {EVALUATE}),
        ("/nablad.v1.DiagnosticsService/CheckGradient", {EVALUATE}),
        ("/nablad.v1.CatalogService/ListFunctions", {CATALOGUE}),
        ("/nablad.v1.CatalogService/DescribeFunction", {CATALOGUE, EVALUATE}),
        ("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", {CATALOGUE}),
        ("/nablad.v1.AdminService/Reload", {ADMIN}),
        ("/some.NewService/Anything", {ADMIN}),
    ],
)
def test_what_nobody_thought_of_is_for_administrators(method: str, roles: set[str]) -> None:
    assert roles_of(method) == roles


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "identities.toml"
    people: list[dict[str, Any]] = [
        {"name": "one", "tokens": ["first", "second"], "roles": ["evaluate"], "functions": ["f"], "rate": 5.0},
        {"name": "two", "certificate": "two.test", "roles": ["admin"]},
    ]
    write_identities(path, people)
    return path


def watched(path: Path) -> Watched[Identities]:
    return Watched("identities", [path], lambda: read_identities(path, Limits(calls=7, rate=1.0)))


def bearer(callers: Callers, token: str | bytes) -> Any:
    value = f"Bearer {token}" if isinstance(token, str) else token
    return callers.of([("user-agent", "x"), ("authorization", value)], lambda: "ipv4:10.0.0.1:1", lambda: None)


def test_each_token_of_an_identity_is_that_identity_with_its_own_limits(file: Path) -> None:
    callers = Callers(watched(file))
    one = bearer(callers, "first")
    assert (one.key, one.identity, one.roles) == ("identity:one", "one", {EVALUATE})
    assert one.functions == Allowed(frozenset({"f"}))
    assert one.limits == Limits(calls=7, rate=5.0)
    assert bearer(callers, "second").key == one.key
    with pytest.raises(PermissionDenied, match="Reload needs the role admin"):
        check_role(one, "/nablad.v1.AdminService/Reload")


@pytest.mark.parametrize("token", ["", "firs", "first ", "firstt", "one", b"Bearer first", "\udc80"])
def test_what_is_no_token_is_nobody(file: Path, token: str | bytes) -> None:
    if token == "first ":  # noqa: S105 - blanks around a token are not part of it
        assert bearer(Callers(watched(file)), token).identity == "one"
        return
    with pytest.raises(Unauthenticated):
        bearer(Callers(watched(file)), token)


def test_a_certificate_counts_only_where_it_was_verified(file: Path) -> None:
    shown = lambda: {"x509_common_name": [b"other"], b"x509_subject_alternative_name": [b"two.test"]}
    assert Callers(watched(file), certificates=True).of((), lambda: "x", shown).identity == "two"
    with pytest.raises(Unauthenticated):
        Callers(watched(file)).of((), lambda: "x", shown)


def test_without_identities_a_caller_is_known_by_its_certificate() -> None:
    caller = Callers(certificates=True).of((), lambda: "x", lambda: {"x509_common_name": [b"three.test"]})
    assert (caller.key, caller.identity) == ("certificate:three.test", "three.test")
    assert caller.roles == {EVALUATE, CATALOGUE}


def test_a_caller_is_renewed_by_what_it_showed(file: Path) -> None:
    callers = Callers(watched(file))
    first, second = bearer(callers, "first"), bearer(callers, "second")
    assert not callers.refresh()
    write_identities(file, [{"name": "one", "tokens": ["second"], "roles": ["evaluate", "admin"]}])
    assert callers.refresh()
    assert callers.renewed(first) is None
    renewed = callers.renewed(second)
    assert renewed is not None
    assert (renewed.identity, renewed.functions) == ("one", None)
    assert renewed.roles == {EVALUATE, ADMIN}
    write_identities(file, [{"name": "somebody else", "tokens": ["second"], "roles": ["evaluate"]}])
    assert callers.refresh()
    assert callers.renewed(second) is None


def test_a_file_that_says_the_same_again_changes_nobody(file: Path) -> None:
    callers = Callers(watched(file))
    replace(file, file.read_bytes() + b"# a comment\n")
    assert not callers.refresh()


def test_two_identities_share_nothing(tmp_path: Path) -> None:
    path = tmp_path / "identities.toml"
    one = {"name": "a", "tokens": ["x"], "roles": ["evaluate"]}
    for other, says in (
        (one | {"tokens": ["y"]}, "two identities are called 'a'"),
        (one | {"name": "b"}, "is also another's"),
    ):
        write_identities(path, [one, other])
        with pytest.raises(ValueError, match=says):
            read_identities(path, Limits())


@pytest.mark.parametrize(
    ("entries", "permitted", "refused"),
    [
        ({"f"}, ["f", "f@1", "f@22"], ["g", "ff", "f2", "", "@1", "F"]),
        ({"f@2"}, ["f@2"], ["f", "f@1", "f@22", "f@"]),
        ({"team_*"}, ["team_", "team_a", "team_a@3"], ["team", "ateam_a", "Team_a"]),
        ({"*"}, ["f", "g@1"], []),
        (set(), [], ["f", "f@1", ""]),
    ],
)
def test_what_a_list_of_functions_permits(entries: set[str], permitted: list[str], refused: list[str]) -> None:
    allowed = Allowed(frozenset(entries))
    assert [reference for reference in permitted if not allowed.permits(reference)] == []
    assert [reference for reference in refused if allowed.permits(reference)] == []


def test_the_functions_of_a_request_are_found_wherever_they_stand() -> None:
    gradient = differentiation_pb2.GradientRequest(function="f@1", inputs=[NamedTensor(name="function")])
    assert list(references(gradient)) == ["f@1"]
    assert list(references(catalog_pb2.ExplainRequest(gradient=gradient))) == ["f@1"]
    assert list(references(diagnostics_pb2.InspectLayersRequest(function="g"))) == ["g"]
    assert list(references(catalog_pb2.ListFunctionsRequest(page_token="f"))) == []  # noqa: S106 - of pages


def test_a_file_is_read_anew_only_when_it_changed_and_makes_sense(tmp_path: Path) -> None:
    path = tmp_path / "number"
    path.write_text("1")
    reads = []

    def read() -> int:
        reads.append(path.read_text())
        return int(reads[-1])

    number = Watched("number", [path], read)
    assert (number.value, number.refresh(), reads) == (1, False, ["1"])
    replace(path, b"2")
    assert (number.refresh(), number.value) == (True, 2)
    replace(path, b"two")
    assert (number.refresh(), number.refresh(), number.value) == (False, False, 2)
    path.unlink()
    assert (number.refresh(), number.value) == (False, 2)
    replace(path, b"2")
    assert (number.refresh(), number.value) == (False, 2)
    replace(path, b"3")
    assert (number.refresh(), number.value) == (True, 3)
    assert reads == ["1", "2", "two", "2", "3"]
