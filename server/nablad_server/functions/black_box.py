"""Black boxes: functions that are plain Python or NumPy, run in a process of their own.

Whatever such a function does to its process, the server goes on: the process is started when it is first needed, given
points through a pipe, ended when it takes too long, and replaced when it has ended.
"""

import hashlib
import logging
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import jax
import numpy as np

from nablad.errors import FunctionFailed
from nablad.tensors import Array
from nablad_server.functions.frames import LENGTHS, packed, unpacked
from nablad_server.functions.signature import ArraySpec

START_SECONDS = 120.0
"""How long the process may take until it has imported the function's file."""

LOOK_SECONDS = 0.1
"""How often it is looked whether the process is still there: a child that it forked may hold the pipe open."""

# What a black box does wrong is told to its caller; JAX would print it for each call, with a traceback of the server's.
logging.getLogger("jax._src.callback").addFilter(
    lambda record: not (record.exc_info and record.exc_info[0] is FunctionFailed)
)

Outputs = Sequence[tuple[str, ArraySpec]]


class BlackBox:
    """A function in a process of its own. Safe to use from several threads, one after the other.

    Attributes:
        seconds: how long one call, of all points given at once, may take.
        failure: why the last call failed; None if it did not. What comes through a program keeps little of it.
    """

    def __init__(self, reference: str, target: str, name: str, file: Path) -> None:
        """Starts nothing yet. `target`: the file or the module, here `file`, that defines the function `name`."""
        self.seconds = 60.0
        self.failure: FunctionFailed | None = None
        self._reference = reference
        self._command = (target, name)
        self._file = file
        self._contents = _digest(file)
        self._lock = threading.Lock()
        self._closed = False
        self._process: subprocess.Popen[bytes] | None = None
        self._requests = self._answers = -1

    def traced(self, leaves: Sequence[Any], outputs: Outputs) -> tuple[Any, ...]:
        """The outputs as JAX sees them: all points that a program has at a time are one call of the process."""
        inputs = [ArraySpec(leaf.shape, np.dtype(leaf.dtype)) for leaf in leaves]

        def host(*arrays: Any) -> tuple[Array, ...]:
            axes = np.shape(arrays[0])[: np.ndim(arrays[0]) - len(inputs[0].shape)]
            points = [
                np.asarray(array).reshape(-1 if axes else 1, *spec.shape) if spec.size
                else np.zeros((int(np.prod(axes, dtype=np.int64)), *spec.shape), spec.dtype)
                for array, spec in zip(arrays, inputs, strict=True)
            ]  # fmt: skip
            found = self.values(points, outputs)
            return tuple(array.reshape((*axes, *spec.shape)) for array, (_, spec) in zip(found, outputs, strict=True))

        like = tuple(jax.ShapeDtypeStruct(spec.shape, spec.dtype) for _, spec in outputs)
        results: tuple[Any, ...] = jax.pure_callback(host, like, *leaves, vmap_method="broadcast_all")
        return results

    def values(self, points: Sequence[Array], outputs: Outputs) -> list[Array]:
        """The outputs at some points; all arrays have the points axis first.

        Raises:
            FunctionFailed: the function raised an error, gave something else than is declared, took too long, or ended
                its process.
        """
        header = {
            "points": len(points[0]),
            "outputs": [[name, spec.dtype.name, list(spec.shape)] for name, spec in outputs],
        }
        with self._lock:
            self.failure = None
            if self._closed:
                raise self._failed("is not run any more: the server is shutting down", "Draining")
            if self._process is not None and self._process.poll() is not None:
                self._end()  # it ended while nothing was asked of it
            if self._process is None:
                self._start()
            answer, arrays = self._exchanged(packed(header, points), self.seconds)
            if "error" in answer:
                raise self._failed(f"raised {answer['exception']}: {_short(answer['error'])}", answer["exception"])
        return arrays

    def close(self) -> None:
        """Ends the process, and starts none any more: calls fail."""
        self._closed = True
        self.end()

    def end(self) -> None:
        """Ends the process, and whatever it forked. A call that is under way fails; a later one starts it anew."""
        if self._lock.acquire(blocking=False):
            try:
                self._end()
            finally:
                self._lock.release()
        elif (process := self._process) is not None:
            _kill(process)

    def _start(self) -> None:
        # A process that is started anew imports the file anew. What has been edited is another function.
        if _digest(self._file) != self._contents:
            raise self._failed(
                f"has to be started anew, and {self._file.name} is not what it was when the function was loaded; the "
                "server has to reload its functions",
                "Changed",
            )
        requests, self._requests = os.pipe()
        self._answers, answers = os.pipe()
        module = "nablad_server.functions.black_box_process"
        try:
            self._process = subprocess.Popen(  # noqa: S603 - the interpreter itself, on a file that the operator named
                [sys.executable, "-m", module, str(requests), str(answers), *self._command],
                stdin=subprocess.DEVNULL, stdout=sys.stderr.fileno(),  # what it prints goes to the log
                pass_fds=(requests, answers), start_new_session=True,
                env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )  # fmt: skip
        finally:
            os.close(requests)
            os.close(answers)
        os.set_blocking(self._requests, False)
        answer, _ = self._exchanged(b"", START_SECONDS)
        if "error" in answer:
            self._end()
            raise self._failed(f"could not be loaded: {answer['exception']}: {_short(answer['error'])}", "ImportError")

    def _exchanged(self, request: bytes, seconds: float) -> tuple[dict[str, Any], list[Array]]:
        """The answer to a frame. Raises FunctionFailed, and the process has ended, if there is none in time."""
        unsent, finish_by = memoryview(request), time.monotonic() + seconds
        received, wanted = bytearray(), LENGTHS.size
        header_bytes = 0
        selector = selectors.DefaultSelector()
        selector.register(self._answers, selectors.EVENT_READ)
        if unsent:
            selector.register(self._requests, selectors.EVENT_WRITE)
        try:
            while len(received) < wanted:
                if time.monotonic() > finish_by:
                    raise self._failed(f"took longer than {seconds:g} s, as long as a call may take", "TimeoutError")
                ready = {key.fd for key, _ in selector.select(LOOK_SECONDS)}
                if self._requests in ready:
                    unsent = unsent[os.write(self._requests, unsent) :]
                    if not unsent:
                        selector.unregister(self._requests)
                if self._answers in ready:
                    piece = os.read(self._answers, min(wanted - len(received), 1 << 20))
                    if not piece:
                        raise self._failed(f"ended its process{self._status()}", "ProcessEnded")
                    received += piece
                elif not ready and (self._process is None or self._process.poll() is not None):
                    raise self._failed(f"ended its process{self._status()}", "ProcessEnded")
                if header_bytes == 0 and len(received) == LENGTHS.size:
                    size, header_bytes = LENGTHS.unpack(received)
                    received, wanted = bytearray(), size
            return unpacked(header_bytes, bytes(received))
        except BrokenPipeError:
            failed = self._failed(f"ended its process{self._status()}", "ProcessEnded")
            self._end()
            raise failed from None
        except Exception:
            self._end()
            raise
        finally:
            selector.close()

    def _status(self) -> str:
        """How the process ended, in words."""
        if self._process is None:
            return ""
        with suppress(subprocess.TimeoutExpired):
            status = self._process.wait(LOOK_SECONDS)
            return f" by signal {signal.Signals(-status).name}" if status < 0 else f" with status {status}"
        return ""

    def _end(self) -> None:
        if self._process is None:
            return
        _kill(self._process)
        self._process.wait()
        os.close(self._requests)
        os.close(self._answers)
        self._process = None

    def _failed(self, words: str, exception: str) -> FunctionFailed:
        self.failure = FunctionFailed(
            f"{self._reference} {words}", metadata={"function": self._reference, "exception": exception}
        )
        return self.failure


def _kill(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def _digest(file: Path) -> bytes:
    """Of what a file says; of one that is gone, nothing."""
    try:
        return hashlib.sha256(file.read_bytes()).digest()
    except OSError:
        return b""


def _short(text: str) -> str:
    return "\n".join(text.strip().splitlines()[:4])[:500]
