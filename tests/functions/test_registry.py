# jaxtyping writes shapes as strings, which are not forward references:
# ruff: noqa: F821

import pytest
from jaxtyping import Array, Float

from nablad.errors import FunctionNotFound, InvalidReference, VersionNotFound
from nablad_server.functions.function import Function
from nablad_server.functions.registration import build, function
from nablad_server.functions.registry import Registry


def named(name: str, version: int = 1, source: str = "test") -> Function:
    @function(name=name, version=version)
    def call(x: Float[Array, "n"]) -> Float[Array, "n"]:
        return x

    return build(call, source)


ROSENBROCK = [named("rosenbrock", version) for version in (2, 10, 1)]
MATYAS = named("matyas")


def registry() -> Registry:
    return Registry([*ROSENBROCK, MATYAS])


def test_a_name_alone_is_the_latest_version() -> None:
    assert registry().get("rosenbrock") is ROSENBROCK[1]


@pytest.mark.parametrize("function", [*ROSENBROCK, MATYAS], ids=lambda function: function.reference)
def test_a_name_with_a_version_is_that_version(function: Function) -> None:
    assert registry().get(function.reference) is function


def test_all_and_the_latest_by_name() -> None:
    assert registry().latest() == [MATYAS, ROSENBROCK[1]]
    assert set(registry().all()) == {*ROSENBROCK, MATYAS}


def test_the_same_name_and_version_twice_is_refused_and_says_where_both_are() -> None:
    with pytest.raises(ValueError, match=r"file:b\.py and file:a\.py both define f@3"):
        Registry([named("f", 3, "file:a.py"), named("f", 3, "file:b.py")])


def test_a_near_miss_is_suggested() -> None:
    with pytest.raises(FunctionNotFound, match=r"'rosenbrok'; did you mean rosenbrock\?") as missed:
        registry().get("rosenbrok@2")
    assert missed.value.metadata == {"function": "rosenbrok@2"}
    assert missed.value.field == "function"


def test_far_from_every_name_the_list_is_suggested() -> None:
    with pytest.raises(FunctionNotFound, match="ListFunctions"):
        registry().get("zzz")


@pytest.mark.parametrize("version", [0, 3, 999999999])
def test_a_version_that_is_not_there_names_those_that_are(version: int) -> None:
    with pytest.raises(VersionNotFound, match=f"no version {version}; it has 1, 2, 10"):
        registry().get(f"rosenbrock@{version}")


@pytest.mark.parametrize(
    "reference",
    ["", "@", "@1", "rosenbrock@", "rosenbrock@x", "rosenbrock@-1", "rosenbrock@1@2", "rosenbrock@1 ", " rosenbrock",
     "rosenbrock@²", "rosenbrock@9999999999", "1st", "a b", "a\n", "a" * 129],
)  # fmt: skip
def test_what_is_no_reference_is_refused(reference: str) -> None:
    with pytest.raises(InvalidReference) as refused:
        registry().get(reference)
    assert refused.value.field == "function"


def test_a_long_wrong_reference_is_not_repeated_whole() -> None:
    with pytest.raises(InvalidReference) as refused:
        registry().get("?" * 100_000)
    assert len(str(refused.value)) < 1000


def test_an_empty_registry_finds_nothing() -> None:
    assert Registry([]).latest() == []
    with pytest.raises(FunctionNotFound):
        Registry([]).get("rosenbrock")
