"""The compile cache: its disk is full, or what it holds is spoilt."""

import errno
import os
import subprocess
import tempfile
import time
import zlib
from pathlib import Path

import numpy as np

import nablad
from resilience.load import ByClient, Load
from resilience.outcome import Outcome, judged
from resilience.questions import gradient_of_rosenbrock
from resilience.server import Server

SPARSE = 50
"""The size of a tridiagonal Hessian: what finds its pattern has a cache of its own, on the same disk."""

DISK = "2m"
"""The size of the disk: room for the programs of a minute."""

PRIVATE = ("unshare", "--user", "--map-root-user", "--mount")
"""Runs a command that may mount what nobody else sees."""

ON_A_DISK = (*PRIVATE, "sh", "-c", f'mount -t tmpfs -o size={DISK},mode=700 none "$0" && exec "$@"')
"""Runs a command, its first argument the directory where it finds a disk of its own."""

TOLD = {"PYTHONWARNINGS": "always"}
"""Python would not show a warning again that has the same words."""


def full_disk(seconds: float) -> Outcome:
    """The disk of the compile cache fills up under load, and some time later has room again."""
    if subprocess.run([*PRIVATE, "true"], capture_output=True, check=False).returncode:  # noqa: S603 - no input in it
        return Outcome(skipped="this system lets its users mount nothing of their own (unshare --user --mount)")
    with (
        tempfile.TemporaryDirectory() as directory,
        Server("--compile-cache", directory, env=TOLD, prefix=(*ON_A_DISK, directory)) as server,
        Load(lambda: ByClient(server.address)) as load,
        nablad.Client(server.address) as client,
    ):
        disk = Path(f"/proc/{server.pid}/root{directory}")  # as the process sees it
        programs = Programs(client)
        right = programs.ask(seconds / 3)
        written = len(_entries(disk))
        load.mark()
        ballast = disk / "ballast"
        _fill(ballast)
        right &= programs.ask(seconds / 3)
        sparse = client.hessian("rosenbrock", x=np.ones(SPARSE), sparse=True).hessian.nnz == 3 * SPARSE - 2
        refused = _count(server, f"[Errno {errno.ENOSPC}]")
        ballast.unlink()
        during = len(_entries(disk))
        right &= programs.ask(seconds / 3)
        after = len(_entries(disk))
        load.stop()
        return judged(
            [load],
            [server],
            f"{written} entries written; {refused} times ENOSPC while full; "
            f"{after - during} written once there was room",
            {"entries before": written > 0, "ENOSPC in the log": refused > 0, "entries afterwards": after > during},
            {"answers of new programs are right": right, "sparse matrices stay sparse while it is full": sparse},
        )


def corrupt_cache(seconds: float) -> Outcome:
    """Between two runs entries of the compile cache are cut short, emptied, overwritten, or have one byte changed."""
    with tempfile.TemporaryDirectory() as directory:
        with (
            Server("--compile-cache", directory) as server,
            Load(lambda: ByClient(server.address)) as before,
            nablad.Client(server.address) as client,
        ):
            programs = Programs(client)
            right = programs.ask(seconds / 2)
        entries = _entries(Path(directory))
        for number, path in enumerate(entries):
            _spoil(path, number)
        with (
            Server("--compile-cache", directory, env=TOLD) as server,
            Load(lambda: ByClient(server.address)) as after,
            nablad.Client(server.address) as client,
        ):
            right &= Programs(client).again(programs)
            after.go_on(seconds / 2)
            found = _count(server, "Error reading persistent compilation cache entry")
            before.stop()
            after.stop()
            return judged(
                [before, after],
                [server],
                f"{len(entries)} entries spoilt in four ways; the restarted server found {found} of them unreadable",
                {"entries to spoil": len(entries) >= 4, "unreadable entries found": found >= 4},
                {"answers of programs compiled anew are right": right},
            )


class Programs:
    """Asks for programs that a server has not compiled yet.

    Attributes:
        asked: for how many.
    """

    def __init__(self, client: nablad.Client) -> None:
        self._client = client
        self.asked = 0

    def ask(self, seconds: float) -> bool:
        """Asks for at least three, and for so long; whether all answers were right."""
        began, first, right = time.monotonic(), self.asked, True
        while self.asked < first + 3 or time.monotonic() - began < seconds:
            right &= self._one()
        return right

    def again(self, others: "Programs") -> bool:
        """Asks for those that others asked for; whether all answers were right."""
        return all(self._one() for _ in range(others.asked))

    def _one(self) -> bool:
        n = 4 + self.asked
        self.asked += 1
        x = np.linspace(-1, 1, n)
        answer = np.asarray(self._client.gradient("rosenbrock", x=x).gradient)
        return bool(np.allclose(answer, gradient_of_rosenbrock(x)))


def _entries(directory: Path) -> list[Path]:
    """The programs of a cache that are there as they were written, in the order of their names."""
    return [path for path in sorted(directory.rglob("*-cache")) if _whole(path)]


def _whole(path: Path) -> bool:
    try:
        zlib.decompress(path.read_bytes())
    except zlib.error:
        return False
    return True


def _fill(ballast: Path) -> None:
    """Writes until the disk is full."""
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise


def _spoil(path: Path, number: int) -> None:
    data = path.read_bytes()
    middle = len(data) // 2
    changed = data[:middle] + bytes([data[middle] ^ 0x10]) + data[middle + 1 :]
    path.write_bytes((data[:middle], b"", os.urandom(len(data)), changed)[number % 4])


def _count(server: Server, text: str) -> int:
    return sum(text in line for line in server.remarks)
