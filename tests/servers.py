"""Real servers for tests: a process of its own, on a free port of the loopback interface."""

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


class ServerProcess:
    """`nablad serve` as a child process; ready to be called once entered.

    Attributes:
        address: where it listens.
        log: its log lines so far.
    """

    def __init__(self, *arguments: str | Path, env: Mapping[str, str] | None = None) -> None:
        """`arguments` are those of `nablad serve`, `env` additions to the environment."""
        command: Sequence[str] = [
            sys.executable, "-m", "nablad_server", "--address", "127.0.0.1:0", "--log-format", "json",
            "--drain-pause-seconds", "0", *map(str, arguments),
        ]  # fmt: skip
        self.log: list[dict[str, Any]] = []
        self.address = ""
        self._arrived: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self.process = subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, env=os.environ | dict(env or {}), start_new_session=True
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        self.wait_for("serving")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def wait_for(self, event: str) -> None:
        """Reads the log until the server says `event`. Raises RuntimeError if it ends first."""
        while (line := self._arrived.get(timeout=START_SECONDS)) is not None:
            if line.get("event") == "listening":
                self.address = line["address"]
            if line.get("event") == event:
                return
        raise RuntimeError(f"the server ended with status {self.stop()}: {self.log}")

    def terminate(self) -> None:
        """Sends SIGTERM, and does not wait."""
        self.process.send_signal(signal.SIGTERM)

    def stop(self) -> int:
        """Sends SIGTERM and gives the exit status."""
        if self.process.poll() is None:
            self.terminate()
        try:
            return self.process.wait(timeout=60)
        finally:
            self.process.kill()
            self._reader.join()
            if self.process.stderr is not None:
                self.process.stderr.close()

    def errors(self) -> list[dict[str, Any]]:
        """What the server logged of its own defects: there should be none."""
        return [line for line in self.log if line.get("event") == "internal error"]

    def _read(self) -> None:
        if self.process.stderr is not None:
            for text in self.process.stderr:
                try:
                    line = json.loads(text)
                except ValueError:
                    line = {"event": text.rstrip(), "level": "unstructured"}
                self.log.append(line)
                self._arrived.put(line)
        self._arrived.put(None)
