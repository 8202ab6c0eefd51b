"""Nested structures of arrays ↔ flat mappings from names to arrays.

A name is a path through the structure, written the way Python would: `params.hidden[0].w`. A key that is not an
identifier is quoted as in JSON, `params["a.b"]`, so no two paths share a name. Dictionaries, lists, tuples,
named tuples and dataclasses are structure; everything else is a leaf. None holds no leaf.
"""

import dataclasses
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

Step = str | int
"""One step down: a key or field name, or an index."""

_TOKEN = re.compile(r'\.?([A-Za-z_]\w*)|\[(\d+)\]|\[("(?:[^"\\]|\\.)*")\]')


def name(root: str, steps: Sequence[Step]) -> str:
    """The name of the leaf that `steps` lead to from the structure called `root`; `root` may be empty."""
    text = root
    for step in steps:
        if isinstance(step, int):
            text += f"[{step}]"
        elif step.isidentifier() and step.isascii():
            text += f".{step}" if text else step
        else:
            text += f"[{json.dumps(step)}]"
    return text


def parse(path: str) -> tuple[Step, ...]:
    """The steps that a name is made of, the root among them. Raises ValueError if it is not such a name."""
    steps: list[Step] = []
    position = 0
    while position < len(path):
        match = _TOKEN.match(path, position)
        if match is None:
            raise ValueError(f'{path!r} is not a path such as a.b[0]["c d"]: cannot read {path[position:]!r}')
        key, index, quoted = match.groups()
        steps.append(key if key is not None else int(index) if index is not None else json.loads(quoted))
        position = match.end()
    return tuple(steps)


def _children(node: Any) -> list[tuple[Step, Any]] | None:
    """The named children of a structure; None if `node` is a leaf."""
    if node is None:
        return []
    if isinstance(node, Mapping):
        return [(key if isinstance(key, int) else str(key), child) for key, child in node.items()]
    if isinstance(node, tuple) and hasattr(node, "_fields"):
        return [(field, getattr(node, field)) for field in node._fields]
    if isinstance(node, list | tuple):
        return list(enumerate(node))
    if dataclasses.is_dataclass(node) and not isinstance(node, type):
        return [(field.name, getattr(node, field.name)) for field in dataclasses.fields(node)]
    return None


def leaves(root: str, tree: Any, is_leaf: Callable[[str], bool]) -> Iterator[tuple[str, Any]]:
    """Pairs (name, leaf) of a structure. `is_leaf(name)` stops the descent, so that nested lists can be arrays."""
    children = None if is_leaf(root) else _children(tree)
    if children is None:
        yield root, tree
        return
    for step, child in children:
        yield from leaves(name(root, [step]), child, is_leaf)


def rebuild(root: str, tree: Any, is_leaf: Callable[[str], bool], values: Mapping[str, Any]) -> Any:
    """The same structure with each leaf replaced by `values[name]`; leaves without a value become None."""
    children = None if is_leaf(root) else _children(tree)
    if children is None:
        return values.get(root)
    fresh = [rebuild(name(root, [step]), child, is_leaf, values) for step, child in children]
    if tree is None:
        return None
    if isinstance(tree, Mapping):
        return dict(zip(tree, fresh, strict=True))
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*fresh)
    if isinstance(tree, list | tuple):
        return type(tree)(fresh)
    return dataclasses.replace(tree, **{str(step): child for (step, _), child in zip(children, fresh, strict=True)})


def nest(values: Mapping[str, Any]) -> Any:
    """The structure that a set of names describes: dictionaries for keys, lists for indices."""
    parsed = {parse(path): value for path, value in values.items()}
    return _nest(parsed)


def _nest(values: Mapping[tuple[Step, ...], Any]) -> Any:
    if () in values:
        return values[()]
    groups: dict[Step, dict[tuple[Step, ...], Any]] = {}
    for steps, value in values.items():
        groups.setdefault(steps[0], {})[steps[1:]] = value
    fresh = {step: _nest(group) for step, group in groups.items()}
    if fresh and list(fresh) == list(range(len(fresh))):
        return list(fresh.values())
    return fresh
