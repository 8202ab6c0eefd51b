"""The NIST nonlinear regression problems, fitted with values and Jacobians from a real server."""

import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import nablad
from nist_strd import fitting, problems
from nist_strd.problems import Problem
from servers import ServerProcess

ROOT = Path(__file__).resolve().parents[2]
NAMES = problems.names()


@dataclass(frozen=True)
class Pair:
    """The same fit with the server's derivatives and with those of this process."""

    remote: fitting.Digits
    in_process: fitting.Digits


class Fits:
    """Every fit, made when it is first asked for."""

    def __init__(self, client: nablad.Client) -> None:
        self._client = client
        self._made: dict[tuple[str, int], Pair] = {}

    def __call__(self, name: str, start: int) -> Pair:
        """The problem of this name from start 1 or 2."""
        if (name, start) not in self._made:
            problem = problems.load(name)
            models = fitting.remote(self._client, problem.function), fitting.in_process(problem.function)
            found = [fitting.digits(problem, fitting.fit(problem, start, model)) for model in models]
            self._made[name, start] = Pair(*found)
        return self._made[name, start]


@pytest.fixture(scope="module")
def models() -> Iterator[nablad.Client]:
    """A client of a server that serves the problems' models."""
    with ServerProcess(ROOT / "tests" / "nist_strd" / "functions.py") as server:
        with nablad.Client(server.address, timeout=120) as client:
            yield client
        assert server.errors() == []


@pytest.fixture(scope="module")
def fits(models: nablad.Client) -> Fits:
    return Fits(models)


@pytest.fixture(params=NAMES)
def problem(request: pytest.FixtureRequest) -> Problem:
    return problems.load(request.param)


def test_there_are_27_problems_of_three_levels_of_difficulty() -> None:
    difficulties = Counter(problems.load(name).difficulty for name in NAMES)
    assert difficulties == {"Lower": 8, "Average": 11, "Higher": 8}


def test_a_file_is_read() -> None:
    misra = problems.load("Misra1a")
    assert (misra.name, misra.difficulty, misra.function) == ("Misra1a", "Lower", "misra1a")
    assert [start.tolist() for start in misra.starts] == [[500, 0.0001], [250, 0.0005]]
    assert misra.parameters.tolist() == [2.3894212918e2, 5.5015643181e-4]
    assert misra.deviations.tolist() == [2.7070075241, 7.2668688436e-6]
    assert (misra.rss, misra.residual_deviation, misra.degrees_of_freedom) == (1.2455138894e-1, 1.0187876330e-1, 12)
    assert misra.x.shape == misra.y.shape == (14,)
    assert (misra.x[0], misra.y[0], misra.x[-1], misra.y[-1]) == (77.6, 10.07, 760.0, 81.78)


def test_several_predictors_and_the_logarithm_of_a_response_are_read() -> None:
    nelson = problems.load("Nelson")
    assert nelson.x.shape == (128, 2)
    assert nelson.x[0].tolist() == [1, 180]
    assert nelson.y[0] == np.log(15.0)


def test_degrees_of_freedom_are_counted_and_not_read() -> None:
    rat43 = (problems.DATA / "Rat43.dat").read_text(encoding="ascii")
    assert re.search(r"Degrees of Freedom: +9\n", rat43)
    assert problems.parse(rat43).degrees_of_freedom == 15 - 4


@pytest.mark.parametrize(
    ("line", "instead", "complaint"),
    [
        (r"      10.07E0      77.6E0\n", "", r"Misra1a: read .*'observations': 13.*announces .*'observations': 14"),
        (r"  b2 = .*\n", "", r"Misra1a: read .*'parameters': 1.*announces .*'parameters': 2"),
        (r"  b1 = .*\n", "", r"Misra1a: the parameters are numbered \['2'\]"),
        (r"1.2455138894E-01", "1.2455138894E+01", r"Misra1a: its residual sum of squares and standard deviation"),
        (r"Lower Level of Difficulty", "", r"not a file of this collection: nothing in it matches"),
    ],
)  # fmt: skip
def test_a_damaged_file_is_refused(line: str, instead: str, complaint: str) -> None:
    text = (problems.DATA / "Misra1a.dat").read_text(encoding="ascii")
    damaged, count = re.subn(line, instead, text)
    assert count == 1
    with pytest.raises(ValueError, match=complaint):
        problems.parse(damaged)


def test_digits_are_those_of_the_worst_element_between_0_and_11() -> None:
    certified = np.array([100.0, 2.0])
    assert fitting.right_digits(certified, certified) == 11
    assert fitting.right_digits(np.array([100.0, 2.002]), certified) == pytest.approx(3)
    assert fitting.right_digits(np.array([-500.0, 2.0]), certified) == 0
    assert fitting.right_digits(np.array([np.nan, 2.0]), certified) == 0


def test_deviations_of_a_jacobian_without_full_rank_are_nan() -> None:
    assert np.isnan(fitting.standard_deviations(np.array([[1.0, 0.0], [2.0, 0.0]]), 1.0)).all()


def test_the_residuals_are_right_at_the_certified_parameters(problem: Problem) -> None:
    values, _ = fitting.in_process(problem.function)(problem.parameters, problem.x)
    rss = float(np.sum((problem.y - values) ** 2))
    if problem.name == "Lanczos1":
        # The eleventh digit of its parameters matters more than its residuals of 1e-13.
        assert rss < 1e-20
    else:
        assert fitting.right_digits(np.array([rss]), np.array([problem.rss])) >= 10


def test_the_jacobian_is_right_at_the_certified_parameters(models: nablad.Client, problem: Problem) -> None:
    _, jacobian = fitting.remote(models, problem.function)(problem.parameters, problem.x)
    assert jacobian.dtype == np.float64
    deviations = fitting.standard_deviations(jacobian, problem.rss / problem.degrees_of_freedom)
    assert fitting.right_digits(deviations, problem.deviations) >= 9


@pytest.mark.parametrize("name", NAMES)
def test_from_start_2_all_that_is_certified_is_met(fits: Fits, name: str) -> None:
    found = fits(name, 2).remote
    assert found.parameters >= fitting.PARAMETER_DIGITS
    assert found.deviations >= fitting.deviation_digits(name)


@pytest.mark.parametrize("name", NAMES)
def test_from_start_1_a_fit_succeeds_if_it_does_in_process(fits: Fits, name: str) -> None:
    pair = fits(name, 1)
    assert pair.remote.enough >= pair.in_process.enough


def test_from_start_1_no_fewer_fits_succeed_than_in_process(fits: Fits) -> None:
    pairs = [fits(name, 1) for name in NAMES]
    assert sum(pair.remote.enough for pair in pairs) >= sum(pair.in_process.enough for pair in pairs)


def test_the_report_can_be_run_for_some_problems() -> None:
    ran = subprocess.run(
        [sys.executable, "tests/nist_strd", "misra1a", "Nelson"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert re.findall(r"│ (Misra1a|Nelson) +│ (\w+) +│ +([12]) │", ran.stdout) == [
        ("Misra1a", "Lower", "1"), ("Misra1a", "Lower", "2"), ("Nelson", "Average", "1"), ("Nelson", "Average", "2"),
    ]  # fmt: skip
