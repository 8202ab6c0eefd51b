"""The server that is to be broken: a process of its own on the loopback interface."""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
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
        pid: of the process.
    """

    def __init__(
        self,
        *arguments: str,
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
        self.address = ""
        self._arrived: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._process = subprocess.Popen(  # noqa: S603 - the project's own command
            [*prefix, sys.executable, "-m", "nablad_server", "--address", address, "--log-format", "json", *arguments],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=os.environ | dict(env or {}),
            start_new_session=True,
        )  # fmt: skip
        self.pid = self._process.pid
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        while (line := self._arrived.get(timeout=START_SECONDS)) is not None:
            if line.get("event") == "listening":
                self.address = line["address"]
            if line.get("event") == "serving":
                return
        raise RuntimeError(f"the server ended with status {self.stop()} before it served: {self.log}")

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
    def defects(self) -> list[dict[str, Any]]:
        """What it logged of its own defects: there should be none."""
        return [line for line in self.log if line.get("event") == "internal error"]

    def terminate(self) -> None:
        """Sends SIGTERM, and does not wait."""
        self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Sends SIGKILL and waits for the end."""
        self._process.kill()
        self._process.wait()

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

    def _read(self) -> None:
        for text in self._process.stderr or ():
            try:
                line = json.loads(text)
            except ValueError:
                continue  # a warning of some library
            self.log.append(line)
            self._arrived.put(line)
        self._arrived.put(None)
