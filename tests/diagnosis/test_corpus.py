"""CheckGradient on functions that are right and functions that are not: no false alarm, and no fault missed.

All functions of the catalogue and all planted faults; of the catalogue in bad units two each, in one dtype or the
other. `python tests/corpus` has all of them in all units and both dtypes.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import corpus
import pytest
from corpus.correct import UNITS
from corpus.faulty import FAULTS

import nablad
from nablad_server.functions.sources import builtin
from servers import ServerProcess

CORPUS = Path(corpus.__file__).parent

NAMES = [call.__name__ for call in builtin.FUNCTIONS]
RIGHT = [(name, dtype) for name in NAMES for dtype in ("float64", "float32")]
IN_UNITS = [
    (f"{name}_{units}", ("float64", "float32")[(place + turn) % 2])
    for place, name in enumerate(NAMES)
    for turn, units in enumerate(sorted(UNITS)[(place + 3 * shift) % len(UNITS)] for shift in range(2))
]


@pytest.fixture(scope="module")
def everything() -> Iterator[nablad.Client]:
    """A client of a server with the corpus and the catalogue."""
    files = (CORPUS / "correct.py", CORPUS / "faulty.py")
    with ServerProcess(*files) as process, nablad.Client(process.address, timeout=300) as client:
        yield client
        assert process.errors() == []


def test_the_corpus_is_as_large_as_it_is_said_to_be() -> None:
    assert len(NAMES) + len(IN_UNITS) >= 200
    assert len(set(IN_UNITS)) == len(IN_UNITS)
    assert {units for units in UNITS if any(name.endswith(units) for name, _ in IN_UNITS)} == set(UNITS)
    assert len(FAULTS) >= 60
    kinds = Counter(FAULTS.values())
    for kind in ("one percent", "wrong sign", "missing term", "transposed", "off by one", "stopped", "float32 leak"):
        assert kinds[kind] >= 5


@pytest.mark.parametrize(("name", "dtype"), RIGHT + IN_UNITS)
def test_no_right_derivative_is_called_wrong(everything: nablad.Client, name: str, dtype: str) -> None:
    check = everything.check_gradient(name, dtype=dtype)
    # Rounding to 7 digits hides some derivatives of some functions, which is no alarm; to 16 digits it hides none here.
    assert check.verdict in ({"pass"} if dtype == "float64" else {"pass", "noisy"}), check.reason


@pytest.mark.parametrize("name", FAULTS)
def test_no_fault_is_missed(everything: nablad.Client, name: str) -> None:
    check = everything.check_gradient(name)
    assert check.verdict == "wrong", check.reason


@pytest.mark.parametrize("name", [name for name, kind in FAULTS.items() if kind != "float32 leak"])
def test_no_fault_is_missed_in_float32(everything: nablad.Client, name: str) -> None:
    check = everything.check_gradient(name, dtype="float32")
    assert check.verdict == "wrong", check.reason
