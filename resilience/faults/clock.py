"""The wall clock jumps."""

import itertools
import os
import tempfile
import time
from pathlib import Path

import numpy as np

from resilience.frames import DATA, END_STREAM, Raw, frame
from resilience.load import ByClient, Load
from resilience.outcome import Outcome, judged
from resilience.questions import GRADIENT, question
from resilience.server import Server

FAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1")
OFFSETS = (0, 86_400, -86_400, 0, 30 * 86_400, 0, -3_600, 0)
"""In seconds, one after the other."""
TOLERANCE_SECONDS = 60.0


def clock_jump(seconds: float) -> Outcome:
    """The wall clock goes to and fro by up to a month under load: deadlines and requests under way must not notice."""
    if not FAKETIME.is_file():
        return Outcome(skipped="libfaketime is not installed (Debian: faketime)")
    with tempfile.TemporaryDirectory() as directory:
        clock = Path(directory) / "clock"
        _set(clock, 0)
        env = {
            "LD_PRELOAD": str(FAKETIME), "FAKETIME_TIMESTAMP_FILE": str(clock), "FAKETIME_CACHE_DURATION": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }  # fmt: skip
        with (
            Server("--compile-cache", "none", env=env) as server,
            Load(lambda: ByClient(server.address)) as load,
            _HalfAsked(server.port) as slow,
        ):
            load.mark()
            seen = []
            for offset in OFFSETS[1:]:
                _set(clock, offset)
                seen.append(_sees(server, offset))
                # The server looks at what is unfinished once a second.
                load.go_on(max(1.5, seconds / len(OFFSETS)))
            load.stop()
            jumps = max(abs(after - before) for before, after in itertools.pairwise(OFFSETS)) // 86_400
            return judged(
                [load],
                [server],
                f"{sum(seen)} jumps seen in the server's own log lines, by up to {jumps} days",
                {"jumps in the times of the log": all(seen)},
                {"a request that was half sent before is answered": slow.finish()},
            )


def _set(clock: Path, offset: int) -> None:
    # In one step: the process reads the file once a second.
    scratch = clock.with_suffix(".new")
    scratch.write_text(f"{offset:+d}")
    os.replace(scratch, clock)  # noqa: PTH105 - of two paths, as it is called everywhere


def _sees(server: Server, offset: int) -> bool:
    """Waits until the process believes in the offset, for some seconds at most."""
    for _ in range(40):
        if abs(server.clock() - time.time() - offset) < TOLERANCE_SECONDS:
            return True
        time.sleep(0.1)
    return False


class _HalfAsked(Raw):
    """A call whose message has been sent in part."""

    def __init__(self, port: int) -> None:
        super().__init__(GRADIENT.encode(), port)
        self.socket.settimeout(10)
        message = question(np.linspace(-1, 1, 3))
        data = b"\0" + len(message).to_bytes(4, "big") + message
        self._rest = data[len(data) // 2 :]
        self.socket.sendall(frame(DATA, 0, 1, data[: -len(self._rest)]))

    def finish(self) -> bool:
        """Sends the rest; whether the call ends with OK."""
        try:
            self.socket.sendall(frame(DATA, END_STREAM, 1, self._rest))
            self.read_until(b"grpc-status\x010")
        except OSError:
            return False
        return True
