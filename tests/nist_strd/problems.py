"""The 27 problems, read from the files that NIST publishes."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Floats: TypeAlias = npt.NDArray[np.float64]

DATA = Path(__file__).parent / "data"

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_PARAMETER = re.compile(rf"^\s*b(\d+)\s*=\s*({_NUMBER})\s+({_NUMBER})\s+({_NUMBER})\s+({_NUMBER})\s*$")
_ROW = re.compile(rf"^\s*{_NUMBER}(?:\s+{_NUMBER})+\s*$")


@dataclass(frozen=True)
class Problem:
    """One problem, with all that NIST certifies of its solution to eleven significant digits.

    Attributes:
        name: as NIST writes it, such as `Misra1a`.
        difficulty: `Lower`, `Average` or `Higher`.
        starts: the two points to start from, the second close to the solution: [parameters] each.
        parameters: the certified estimates: [parameters].
        deviations: their certified standard deviations: [parameters].
        rss: the certified residual sum of squares.
        residual_deviation: the certified residual standard deviation, √(rss / degrees of freedom).
        degrees_of_freedom: observations less parameters. (The file of Rat43 says 9 of 15 − 4 = 11; its certified
            deviations are made with 11.)
        x: the predictor: [observations], or [observations, predictors] if there are several.
        y: the response that the model describes (for Nelson the logarithm of the measured one): [observations].
    """

    name: str
    difficulty: str
    starts: tuple[Floats, Floats] = field(repr=False)
    parameters: Floats = field(repr=False)
    deviations: Floats = field(repr=False)
    rss: float
    residual_deviation: float
    degrees_of_freedom: int
    x: Floats = field(repr=False)
    y: Floats = field(repr=False)

    @property
    def function(self) -> str:
        """The name of its model among the served functions."""
        return self.name.lower()


def names() -> list[str]:
    """The names of all problems, in the order of the alphabet."""
    return sorted((path.stem for path in DATA.glob("*.dat")), key=str.lower)


def load(name: str) -> Problem:
    """One problem. Raises ValueError if its file does not agree with itself; the message says in what."""
    return parse((DATA / f"{name}.dat").read_text(encoding="ascii"))


def parse(text: str) -> Problem:
    """A problem from the text of its file.

    Everything is found by its label, not by the line numbers at the top of each file, and everything that the file
    says twice is compared.

    Raises:
        ValueError: a label is missing, or the file does not agree with itself.
    """
    lines = text.splitlines()
    name = _labelled(text, r"Dataset Name:\s*(\S+)")
    rows = [match.groups() for line in lines if (match := _PARAMETER.match(line))]
    # "Data:" heads a paragraph of the description too; the table is the last one.
    table = [line.split() for line in lines[_last(lines, "Data:") + 1 :] if _ROW.match(line)]
    if [int(row[0]) for row in rows] != list(range(1, len(rows) + 1)):
        raise ValueError(f"{name}: the parameters are numbered {[row[0] for row in rows]}")
    first, second, parameters, deviations = np.array([row[1:] for row in rows], dtype=np.float64).T.copy()
    data = np.array(table, dtype=np.float64)
    y, x = data[:, 0].copy(), data[:, 1:].copy()
    if re.search(r"^\s*log\[y\]\s*=", text, re.MULTILINE):
        y = np.log(y)
    problem = Problem(
        name=name,
        difficulty=_labelled(text, r"(\w+)\s+Level of Difficulty"),
        starts=(first, second),
        parameters=parameters,
        deviations=deviations,
        rss=float(_labelled(text, rf"Residual Sum of Squares:\s*({_NUMBER})")),
        residual_deviation=float(_labelled(text, rf"Residual Standard Deviation:\s*({_NUMBER})")),
        degrees_of_freedom=len(data) - len(rows),
        x=x[:, 0].copy() if x.shape[1] == 1 else x,
        y=y,
    )
    _check(problem, text)
    return problem


def _check(problem: Problem, text: str) -> None:
    said = {
        "parameters": int(_labelled(text, r"(\d+) Parameters")),
        "observations": int(_labelled(text, r"Number of Observations:\s*(\d+)")),
        "predictors": int(_labelled(text, r"(\d+) Predictor")),
    }
    found = {
        "parameters": problem.parameters.size,
        "observations": problem.y.size,
        "predictors": 1 if problem.x.ndim == 1 else problem.x.shape[1],
    }
    if found != said:
        raise ValueError(f"{problem.name}: read {found}; the file announces {said}")
    if not np.isclose(problem.rss, problem.residual_deviation**2 * problem.degrees_of_freedom, rtol=1e-9):
        raise ValueError(f"{problem.name}: its residual sum of squares and standard deviation do not fit {found}")


def _labelled(text: str, pattern: str) -> str:
    found = re.search(pattern, text)
    if found is None:
        raise ValueError(f"not a file of this collection: nothing in it matches {pattern!r}")
    return found[1]


def _last(lines: list[str], label: str) -> int:
    return max((index for index, line in enumerate(lines) if line.startswith(label)), default=len(lines))
