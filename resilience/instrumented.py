"""`python -m resilience.instrumented READER [libFuzzer's arguments]`: one reader under a coverage-guided fuzzer.

The fuzzer watches the project's own code: it is imported here, once the fuzzer looks, and nowhere above. It ends the
process itself: with 0 after the runs asked for, with another status after bytes that a reader did not read right, which
it leaves in a file.
"""

import random
import sys
from collections.abc import Callable

import atheris

with atheris.instrument_imports(include=["nablad", "nablad_server"]):
    from resilience.mutation import broken, parsed
    from resilience.readers import READERS

from resilience.reader import Reader

BLIND = 0.4
"""How often bytes are changed as the fuzzer knows how to, and not as messages of their type."""


def changes(reader: Reader) -> Callable[[bytes, int, int], bytes]:
    """What makes other bytes from some, for a seed; at most so many."""

    def change(data: bytes, limit: int, seed: int) -> bytes:
        chance = random.Random(seed)  # noqa: S311 - repeatable, not secret
        head = data[:1] if reader.numbered else b""
        kind = reader.kinds[(head[0] if head else 0) % len(reader.kinds)] if reader.kinds else None
        valid = None if kind is None or chance.random() < BLIND else parsed(kind, data[len(head) :])
        made: bytes = atheris.Mutate(data, limit) if valid is None else head + broken(valid, chance)
        return made[:limit]

    return change


def main() -> None:
    """Fuzzes the reader named by the first argument."""
    reader = READERS[sys.argv.pop(1)]
    atheris.Setup(sys.argv, reader.check, custom_mutator=changes(reader))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
