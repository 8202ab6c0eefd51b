"""The server that is to be broken: a process of its own on the loopback interface."""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

START_SECONDS = 120.0
"""A safety net, not an expectation."""


class Server:
    """`nablad serve` as a child process, which serves once it is made.

    Attributes:
        address: where it listens.
        log: its log lines so far.
        remarks: lines that are no log lines of its own: warnings of libraries.
        pid: of the process.
    """

    def __init__(
        self,
        *arguments: str | Path,
        address: str = "127.0.0.1:0",
        env: Mapping[str, str] | None = None,
        prefix: Sequence[str] = (),
    ) -> None:
        """Starts it and waits until it serves.

        `arguments` are those of `nablad serve`, `env` additions to the environment, and `prefix` a command that runs
        another one, which the server becomes.

        Raises:
            RuntimeError: it ended before it served.
        """
        self.log: list[dict[str, Any]] = []
        self.remarks: list[str] = []
        self.address = ""
        self._arrived: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._process = subprocess.Popen(  # noqa: S603 - the project's own command
            [*prefix, sys.executable, "-m", "nablad_server", "--address", address, "--log-format", "json",
             *map(str, arguments)],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=os.environ | dict(env or {}),
            start_new_session=True,
        )  # fmt: skip
        self.pid = self._process.pid
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.address = self._wait_for("listening")["address"]
        self._wait_for("serving")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process.poll() is None

    @property
    def port(self) -> int:
        """The one that it listens on."""
        return int(self.address.rpartition(":")[2])

    @property
    def connections(self) -> int:
        """How many connections to it are open."""
        local, established = f":{self.port:04X}", "01"
        tables = [Path(f"/proc/{self.pid}/net/{table}").read_text() for table in ("tcp", "tcp6")]
        rows = [line.split() for table in tables for line in table.splitlines()[1:]]
        return sum(row[1].endswith(local) and row[3] == established for row in rows)

    @property
    def files(self) -> int:
        """How many files, connections included, it has open."""
        return sum(1 for _ in Path(f"/proc/{self.pid}/fd").iterdir())

    @property
    def defects(self) -> list[dict[str, Any]]:
        """What it logged of its own defects: there should be none."""
        return [line for line in self.log if line.get("event") == "internal error"]

    def terminate(self) -> None:
        """Sends SIGTERM, and does not wait."""
        self._process.send_signal(signal.SIGTERM)

    def kill(self) -> int:
        """Sends SIGKILL, waits for the end, and gives the exit status: -9."""
        self._process.kill()
        return self._process.wait()

    def clock(self) -> float:
        """The time, in seconds since the epoch, that the process believes in: of the line that a reload logs."""
        self._process.send_signal(signal.SIGHUP)
        told = self._wait_for("reload finished")["timestamp"]
        return datetime.fromisoformat(told).timestamp()

    def stop(self) -> int:
        """Sends SIGTERM, after a minute SIGKILL, and gives the exit status."""
        if self.alive:
            self.terminate()
        try:
            return self._process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()
        finally:
            self._reader.join()
            if self._process.stderr is not None:
                self._process.stderr.close()

    def status(self, field: str) -> int:
        """A number of /proc/PID/status, such as VmRSS in kibibytes or Threads."""
        text = Path(f"/proc/{self.pid}/status").read_text()
        return next(int(line.split()[1]) for line in text.splitlines() if line.startswith(field + ":"))

    def _wait_for(self, event: str) -> dict[str, Any]:
        """The next log line of this event. Raises RuntimeError if the process ends first."""
        while (line := self._arrived.get(timeout=START_SECONDS)) is not None:
            if line.get("event") == event:
                return line
        raise RuntimeError(f"the server ended with status {self.stop()} before {event!r}: {self.log} {self.remarks}")

    def _read(self) -> None:
        for text in self._process.stderr or ():
            try:
                line = json.loads(text)
            except ValueError:
                self.remarks.append(text.rstrip())
                continue
            self.log.append(line)
            self._arrived.put(line)
        self._arrived.put(None)
