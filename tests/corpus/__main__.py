"""Checks the whole corpus and prints a table: python tests/corpus. Takes some minutes.

Exit status 1 if a right derivative is called wrong or a kink, or a fault passes.
"""

import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the tests' own modules are not installed

import nablad
from corpus.correct import UNITS
from corpus.faulty import FAULTS
from nablad_server.embedded import embedded
from nablad_server.functions.sources import builtin

HERE = Path(__file__).parent
DTYPES = ("float64", "float32")
VERDICTS = ("pass", "noisy", "kink", "wrong")

Row = tuple[str, str]


def main() -> int:
    """Prints the table; the exit status."""
    rows: Counter[tuple[Row, str]] = Counter()
    bad: list[str] = []
    with embedded([str(HERE / "correct.py"), str(HERE / "faulty.py")]) as address, nablad.Client(address) as client:
        names = [call.__name__ for call in builtin.FUNCTIONS]
        right = [(f"{name}_{units}", units) for name in names for units in UNITS] + [(n, "as it is") for n in names]
        for name, units in right:
            for dtype in DTYPES:
                verdict = client.check_gradient(name, dtype=dtype, timeout=600).verdict
                rows[(f"right: {units}", dtype), verdict] += 1
                if verdict in ("kink", "wrong") or (dtype == "float64" and verdict != "pass"):
                    bad.append(f"{name} in {dtype} is right and called {verdict}")
        for name, kind in FAULTS.items():
            verdict = client.check_gradient(name, timeout=600).verdict
            rows[(f"fault: {kind}", "float64"), verdict] += 1
            if verdict == "pass":
                bad.append(f"{name} is faulty and passes")
    print(f"{'':30}{'':10}" + "".join(f"{verdict:>8}" for verdict in VERDICTS))
    for row in dict.fromkeys(row for row, _ in rows):
        print(f"{row[0]:30}{row[1]:10}" + "".join(f"{rows[row, verdict] or '':>8}" for verdict in VERDICTS))
    print(*bad or ["no false alarm, and no fault missed"], sep="\n")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
