"""Values given on the command line."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

from nablad import trees


def parse_assignments(texts: Sequence[str]) -> dict[str, Any]:
    """`x=1,2` and `params.hidden.w=w.npy` as arguments; paths below one argument become its structure.

    Raises click.BadParameter if a text is not of that form.
    """
    values: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise click.BadParameter(f"{text!r}; expected NAME=VALUE, such as x=1,2,3")
        if name in values:
            raise click.BadParameter(f"{name!r} is given twice")
        values[name] = parse_value(value)
    try:
        nested: dict[str, Any] = trees.nest(values)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None
    return nested


def parse_value(text: str) -> Any:
    """A number, a comma-separated list of numbers, JSON, or what a .npy or .json file holds.

    Raises click.BadParameter if it is none of these.
    """
    path = Path(text)
    try:
        if path.suffix == ".npy":
            return np.load(path, allow_pickle=False)
        if path.suffix == ".json":
            return json.loads(path.read_text())
        if text.startswith("["):
            return json.loads(text)
        numbers = [_number(part) for part in text.split(",")]
    except (OSError, ValueError) as error:
        raise click.BadParameter(
            f"cannot read {text!r}: {error}; expected a number, 1,2,3, JSON, or the path of a .npy or .json file"
        ) from None
    return numbers if len(numbers) > 1 else numbers[0]


def _number(text: str) -> bool | int | float:
    word = text.strip().lower()
    if word in ("true", "false"):
        return word == "true"
    try:
        return int(word)
    except ValueError:
        return float(word)
