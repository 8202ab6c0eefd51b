"""Has a coverage-guided fuzzer look for bytes that are read wrong: each reader in a process of its own, no server."""

import importlib.util
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from resilience.readers import READERS

MAX_BYTES = 2048
"""Messages are no longer: what there is to read wrong fits into few bytes."""
RSS_MEGABYTES = 8192
RUN_SECONDS = 20
"""A reader that takes so long for one input hangs."""

_STATE = re.compile(r"^#(\d+)\s+\w+\s+cov: (\d+) ft: (\d+)", re.MULTILINE)
_RAISED = re.compile(r"=== Uncaught Python exception: ===\n(.*)")
_LEFT = re.compile(r"Test unit written to (.*)")


@dataclass(frozen=True, slots=True)
class Explored:
    """What became of one reader.

    Attributes:
        reader: its name.
        runs: inputs that it was given.
        seeded: places in the code, and how often they were passed, that its seeds reach.
        reached: those that the inputs reach that were found.
        finding: what was read wrong; empty if nothing was.
        where: the file of those bytes.
    """

    reader: str
    runs: int
    seeded: int
    reached: int
    finding: str
    where: str


def missing() -> str:
    """Why nothing can be explored; empty if it can."""
    if importlib.util.find_spec("atheris") is not None:
        return ""
    return (
        "the coverage-guided fuzzer is not installed, so nothing was explored: pip install atheris. It comes for "
        "CPython on Linux; elsewhere leave --guided out, for the fuzzer that goes over a connection"
    )


def explore(name: str, runs: int, seed: int, reproducers: Path) -> Explored:
    """Gives a reader so many inputs made from its seeds; stops at the first that is read wrong.

    The same runs and seed are the same inputs, by and large: what is cached may change which are interesting.

    Raises:
        RuntimeError: the fuzzer did not start.
    """
    reproducers.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as corpus:
        for number, content in enumerate(READERS[name].seeds):
            Path(corpus, f"seed-{number}").write_bytes(content)
        arguments = [
            f"-runs={runs}", f"-seed={seed}", f"-max_len={MAX_BYTES}", f"-rss_limit_mb={RSS_MEGABYTES}",
            f"-timeout={RUN_SECONDS}", f"-artifact_prefix={reproducers / name}-", corpus,
        ]  # fmt: skip
        done = subprocess.run(  # noqa: S603 - the project's own module
            [sys.executable, "-m", "resilience.instrumented", name, *arguments],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", check=False,
        )  # fmt: skip
    states = _STATE.findall(done.stdout)
    raised, left = _RAISED.search(done.stdout), _LEFT.search(done.stdout)
    if not states and raised is None:
        raise RuntimeError(f"the fuzzer of {name!r} ended with status {done.returncode}: {done.stdout[-2000:]}")
    finding = ""
    if done.returncode:
        finding = raised.group(1) if raised is not None else f"ended with status {done.returncode}"
    return Explored(
        name, int(states[-1][0]) if states else 0,
        seeded=int(states[0][2]) if states else 0, reached=int(states[-1][2]) if states else 0,
        finding=finding, where=left.group(1) if left is not None else "",
    )  # fmt: skip


def guided(runs: int, seed: int, reproducers: Path, names: Sequence[str] = tuple(READERS)) -> list[Explored]:
    """Explores readers one after the other, each with so many inputs."""
    return [explore(name, runs, seed, reproducers) for name in names]


def read_again(path: Path) -> None:
    """Gives bytes that were left by `explore` to their reader. Raises what it raises, or ValueError for other files."""
    name = path.name.partition("-")[0]
    if name not in READERS:
        raise ValueError(f"{path.name}: expected READER-… with a reader among {', '.join(READERS)}")
    READERS[name].check(path.read_bytes())
