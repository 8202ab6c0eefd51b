"""The processes that are measured and that measure: children of this one, pinned to a core where that is possible."""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from benchmarks.jobs import WrongAnswer

ROOT = Path(__file__).parents[1]
SAFETY_SECONDS = 300.0
"""The longest that a server may take to start; a safety net, not an expectation."""


def cores() -> tuple[set[int], set[int]]:
    """The core of everything that answers and the core of everything that asks: apart, if there are two to be had."""
    mine = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_setaffinity") else []
    return ({mine[0]}, {mine[1]}) if len(mine) > 1 else (set(), set())


class Child:
    """A Python process with its stderr always read, ended on leaving."""

    def __init__(self, *arguments: str, core: set[int]) -> None:
        """`arguments` are those of the interpreter; an empty `core` leaves the process where the system puts it."""
        self.tail: deque[str] = deque(maxlen=40)
        self._process = subprocess.Popen(  # noqa: S603 - the project's own modules
            [sys.executable, *arguments],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            start_new_session=True,  # an interrupt is for the parent, which ends its children in order
        )  # fmt: skip
        if core:
            os.sched_setaffinity(self._process.pid, core)  # long before it has threads of its own
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Sends SIGTERM, and SIGKILL if that is not enough."""
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._reader.join()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()

    def give_way(self) -> None:
        """Lowers its priority, where the system has priorities. To be called before it has threads of its own."""
        if hasattr(os, "setpriority"):
            os.setpriority(os.PRIO_PROCESS, self._process.pid, 19)

    def cpu_seconds(self) -> float | None:
        """The processor time used so far, where the system tells."""
        path = Path(f"/proc/{self._process.pid}/stat")
        if not path.is_file():
            return None
        fields = path.read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def memory(self, peak: bool = False) -> int | None:
        """The bytes of memory that it holds now, or held at most since `forget_peak`, where the system tells."""
        path = Path(f"/proc/{self._process.pid}/status")
        if not path.is_file():
            return None
        wanted = "VmHWM:" if peak else "VmRSS:"
        return next(int(line.split()[1]) * 1024 for line in path.read_text().splitlines() if line.startswith(wanted))

    def forget_peak(self) -> None:
        """Has the peak of memory begin anew."""
        path = Path(f"/proc/{self._process.pid}/clear_refs")
        if path.is_file():
            path.write_text("5")

    def take_line(self, text: str) -> None:
        """Called with each line of stderr, on the thread that reads it."""
        self.tail.append(text)

    def line(self) -> str:
        """The next line of stdout. Raises RuntimeError if the process has ended."""
        text = self._process.stdout.readline() if self._process.stdout else ""
        if not text:
            raise RuntimeError(f"{self._process.args!r} ended unexpectedly:\n{''.join(self.tail)}")
        return text

    def send(self, text: str) -> None:
        """A line for its stdin."""
        if self._process.stdin:
            self._process.stdin.write(text + "\n")
            self._process.stdin.flush()

    def _read(self) -> None:
        for text in self._process.stderr or ():
            self.take_line(text)
        self.take_line("")


class Worker(Child):
    """A child that does jobs: see `jobs`."""

    def __init__(self, module: str, *, core: set[int]) -> None:
        super().__init__("-m", module, core=core)

    def begin(self, do: str, **job: Any) -> None:
        """Gives it a job."""
        self.send(json.dumps({"do": do} | job))

    def result(self) -> Any:
        """The result of the job given first. Raises WrongAnswer if an answer was wrong."""
        reply = json.loads(self.line())
        if "wrong" in reply:
            raise WrongAnswer(reply["wrong"])
        return reply["result"]

    def ask(self, do: str, **job: Any) -> Any:
        """Gives it a job and waits for the result."""
        self.begin(do, **job)
        return self.result()


class Echo(Child):
    """A bare echo server: see `floors`."""

    def __init__(self, kind: str, *, core: set[int]) -> None:
        super().__init__("-m", "benchmarks.floors", kind, core=core)
        self.address = self.line().strip()


class Server(Child):
    """nablad itself.

    Attributes:
        address: where it listens.
        ready_seconds: from its start until it said that it serves.
    """

    def __init__(self, *arguments: str, core: set[int]) -> None:
        """Waits until it serves. `arguments` are those of `nablad serve`."""
        self.address = ""
        self._events: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        started = time.perf_counter()
        super().__init__(
            "-m", "nablad_server", "--address", "127.0.0.1:0", "--log-format", "json", "--drain-pause-seconds", "0",
            *arguments, core=core,
        )  # fmt: skip
        while (event := self._events.get(timeout=SAFETY_SECONDS)) != "serving":
            if event is None:
                self.stop()
                raise RuntimeError(f"the server ended before it served:\n{''.join(self.tail)}")
        self.ready_seconds = time.perf_counter() - started

    def take_line(self, text: str) -> None:
        """Its log, as JSON."""
        super().take_line(text)
        try:
            line = json.loads(text or "null")
        except ValueError:
            return  # a warning of some library
        if line and line.get("event") == "listening":
            self.address = line["address"]
        self._events.put(line and line.get("event"))
