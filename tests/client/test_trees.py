"""Names of leaves: unambiguous, readable, and the way back."""

from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nablad import trees


class Pair(NamedTuple):
    first: Any
    second: Any


KEYS = st.text(max_size=5) | st.sampled_from(["w", "b", "0", "a.b", 'quo"te', "x[0]", "ü"])
TREES = st.recursive(
    st.integers(0, 99),
    lambda inner: st.dictionaries(KEYS, inner, min_size=1, max_size=3) | st.lists(inner, min_size=1, max_size=3),
    max_leaves=8,
)


def never(_: str) -> bool:
    return False


@given(TREES)
def test_names_are_unique_and_lead_back(tree: Any) -> None:
    pairs = list(trees.leaves("root", tree, never))
    names = [name for name, _ in pairs]
    assert len(set(names)) == len(names)
    assert trees.nest(dict(pairs)) == {"root": tree}
    assert trees.rebuild("root", tree, never, dict(pairs)) == tree


@given(st.lists(KEYS | st.integers(0, 20), min_size=1, max_size=4))
def test_parse_inverts_name(steps: list[str | int]) -> None:
    assert list(trees.parse(trees.name("", steps))) == steps


def test_names_read_like_python() -> None:
    tree = {"layers": [Pair(1, 2)], "a b": 3}
    names = [name for name, _ in trees.leaves("params", tree, never)]
    assert names == ["params.layers[0].first", "params.layers[0].second", 'params["a b"]']


def test_rebuilding_keeps_the_types_of_containers() -> None:
    tree = (Pair([1], {"k": 2}), None)
    values = {name: leaf * 10 for name, leaf in trees.leaves("t", tree, never)}
    assert trees.rebuild("t", tree, never, values) == (Pair([10], {"k": 20}), None)


def test_a_leaf_may_be_a_nested_list() -> None:
    tree = {"w": [[1.0, 2.0]], "b": [3.0]}
    assert dict(trees.leaves("p", tree, {"p.w", "p.b"}.__contains__)) == {"p.w": [[1.0, 2.0]], "p.b": [3.0]}


@pytest.mark.parametrize("path", ["a..b", "a[", "a[x]", "[", "a b", ".", 'a["x]'])
def test_what_is_no_path_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match="is not a path"):
        trees.parse(path)
