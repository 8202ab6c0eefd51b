"""The patterns that were found, and the one thread that finds them.

One thread, because finding one holds the interpreter lock; single flight, because a thousand callers of one new matrix
must cost one search.
"""

import contextlib
import ctypes
import os
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Hashable
from dataclasses import dataclass, field, replace
from pathlib import Path

import structlog

from nablad.errors import CompileQueueFull, DeadlineExceeded, Draining, Internal, NabladError, ResultTooLarge
from nablad.v1 import function_pb2
from nablad_server.derivatives.detection import dense, find, prepare
from nablad_server.derivatives.pattern import Pattern
from nablad_server.derivatives.pending import Pending
from nablad_server.derivatives.query import Query
from nablad_server.functions.function import Function

log = structlog.get_logger("nablad")

Done = Callable[[], None]
"""Called from the finding thread when `find` has an answer, or never will have, because the server shuts down."""

SEARCH_SECONDS = 60.0
"""A search that takes longer is given up, and the pattern is dense."""

AID_SECONDS, AID_ELEMENT_SECONDS = 0.5, 1e-4
"""Likewise where a pattern would only save work; each element takes about so long without one."""

POLL_SECONDS = 0.02
GIVING_UP_SECONDS = 1.0
MAX_PATTERNS = 256
MAX_KEPT_BYTES = 1 << 30
MAX_WAITING = 1024
"""So many callers may wait for patterns."""


class _GivenUp(BaseException):
    """Raised in a search that has taken too long or too much; nothing on its way mistakes it for a failure."""


@dataclass
class _Entry:
    pattern: Pattern | None = None
    refused: NabladError | None = None  # what failed once fails every time: the answer is kept
    waiting: list[tuple[Done, Hashable]] = field(default_factory=list)


class Patterns:
    """Patterns by what they are of; those unused for longest go first."""

    def __init__(
        self, memory_limit: int, *, capacity: int = MAX_PATTERNS, search_seconds: float = SEARCH_SECONDS
    ) -> None:
        """Starts the thread.

        Args:
            memory_limit: bytes of memory that a search may take.
            capacity: patterns kept.
            search_seconds: a search for a sparse matrix may take so long.
        """
        self._memory_limit = memory_limit
        self._capacity = capacity
        self._search_seconds = search_seconds
        self._lock = threading.Lock()
        self._entries: OrderedDict[Query, _Entry] = OrderedDict()
        self._waiting = 0
        self._askers: Counter[Hashable] = Counter()  # whose calls wait
        self._pending: Pending[Query] = Pending(MAX_WAITING, 0)
        self._changed = threading.Condition(self._lock)
        self._closed = False
        self._thread = threading.Thread(target=self._find_forever, name="nablad-patterns", daemon=True)
        self._thread.start()

    def find(self, query: Query) -> Pattern | None:
        """The pattern for a query; None if it has to be requested. Raises the error that finding it gave, if it did."""
        keys = [_key(query)]
        if not query.sparse:  # what is known of the sparse matrix holds for all
            keys.insert(0, replace(keys[0], sparse=True))
        with self._lock:
            for key in keys:
                entry = self._entries.get(key)
                if entry is not None and entry.pattern is not None:
                    self._entries.move_to_end(key)
                    return entry.pattern
            if entry is not None and entry.refused is not None:
                raise entry.refused
            return None

    def request(self, query: Query, done: Done, asker: Hashable = None) -> None:
        """Has a pattern found, or joins the search under way; `done` is called once, from the finding thread.

        Askers take turns. The last quarter of the room is for those who have nothing waiting.

        Raises:
            CompileQueueFull: too many wait already, or too many of this asker's; `done` is not called.
            Draining: the server is shutting down; likewise.
        """
        key = _key(query)
        with self._lock:
            if self._closed:
                raise Draining("the server is shutting down and looks for no more patterns")
            held = self._askers[asker]
            if self._waiting >= MAX_WAITING - (MAX_WAITING // 4 if held else 0):
                raise CompileQueueFull(
                    f"{self._waiting} calls wait for sparsity patterns already, {held} of them of this caller; each "
                    "new combination of function, shapes and options needs one. Retry later",
                    retry_after=1.0,
                )
            entry = self._entries.setdefault(key, _Entry())
            self._waiting += 1
            self._askers[asker] += 1
            entry.waiting.append((done, asker))
            if len(entry.waiting) == 1:
                self._pending.add(key, asker)
                self._changed.notify()
            else:
                self._pending.join(key, asker)

    def settle(self, query: Query, timeout: float, asker: Hashable = None) -> None:
        """Blocks until `find` has an answer.

        Raises:
            DeadlineExceeded: it has none after `timeout` seconds; it will later.
            NabladError: as `request`.
        """
        told = threading.Event()
        self.request(query, told.set, asker)
        if not told.wait(max(0.0, timeout)):
            raise DeadlineExceeded(f"{query}: its sparsity is still looked for; ask again a little later")

    def forget(self, functions: Collection[Function]) -> None:
        """Drops the patterns of some functions, but those that are waited for."""
        with self._lock:
            for key in [k for k, e in self._entries.items() if k.function in functions and not e.waiting]:
                del self._entries[key]

    def close(self, timeout: float | None = None) -> bool:
        """Gives up the search under way; whoever waits is told that the server drains. False if the thread runs on."""
        with self._lock:
            self._closed = True
            self._changed.notify()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _find_forever(self) -> None:
        while (key := self._next()) is not None:
            began = time.perf_counter()
            found = None if self._closed else self._found(key)
            for done in self._publish(key, found, time.perf_counter() - began):
                try:
                    done()
                except Exception:  # a defect of whoever waits must not end the only thread that finds
                    log.exception("internal error", query=str(key))
                del done
            del key, found  # what they hold is let go of before the wait

    def _next(self) -> Query | None:
        """What is to be found next, waited for; None if the server shuts down and nobody waits."""
        with self._changed:
            while (key := self._pending.take()) is None:
                if self._closed:
                    return None
                self._changed.wait()
            return key

    def _found(self, key: Query) -> Pattern | NabladError | None:
        with self._lock:
            entry = self._entries[key]
            if entry.pattern is not None or entry.refused is not None:  # between the caller's look and its request
                return entry.pattern or entry.refused
        started = time.perf_counter()
        try:
            found = self._searched(key)
            if found is None:
                return None
            pattern = dense(key, found) if isinstance(found, str) else found
        except NabladError as refused:
            return refused
        except Exception as unexpected:  # a defect must not end the only thread that finds
            error = Internal(f"looking for the sparsity of {key} failed: {type(unexpected).__name__}")
            error.__cause__ = unexpected
            return error
        pattern = replace(pattern, seconds=time.perf_counter() - started)
        log.info("pattern found", query=str(key), nonzeros=pattern.nonzeros, colors=pattern.coloring.count,
                 reason=pattern.reason, seconds=round(pattern.seconds, 3))  # fmt: skip
        if not key.sparse and 2 * pattern.coloring.count > pattern.shape[1]:
            return ResultTooLarge(f"{key}: products by colors would save nothing")
        return pattern

    def _searched(self, key: Query) -> Pattern | str | None:
        """The pattern, or why the search was given up; None if the server shuts down.

        The search has a thread of its own, in which it can be interrupted: it is Python code nearly throughout.
        """
        results: list[Pattern | Exception] = []

        def search() -> None:
            try:
                results.append(find(key))
            except Exception as error:
                results.append(error)
            except _GivenUp:
                return

        with contextlib.suppress(Exception):  # the search comes upon the same, and says so
            prepare()
        aid_seconds = AID_SECONDS + AID_ELEMENT_SECONDS * key.matrix_shape[1]
        seconds, memory = self._search_seconds if key.sparse else aid_seconds, _resident_bytes()
        finish_by = time.monotonic() + seconds
        thread = threading.Thread(target=search, name="nablad-search", daemon=True)
        thread.start()
        reason = ""
        while thread.is_alive():
            thread.join(GIVING_UP_SECONDS if reason else POLL_SECONDS)
            if self._closed:
                reason = "the server shuts down"
            elif time.monotonic() > finish_by:
                reason = f"the search was given up after {seconds:g} seconds"
            elif _resident_bytes() - memory > self._memory_limit:
                reason = f"the search was given up when it had taken {self._memory_limit} bytes of memory"
            if reason and thread.ident is not None:  # once more, if it struck where exceptions are ignored
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(_GivenUp))
        if not results:
            return None if self._closed else reason
        (found,) = results
        if isinstance(found, Exception):
            raise found
        return found

    def _publish(self, key: Query, found: Pattern | NabladError | None, seconds: float) -> list[Done]:
        with self._lock:
            entry = self._entries[key]
            entry.pattern = found if isinstance(found, Pattern) else None
            entry.refused = found if isinstance(found, NabladError) else None
            waiting, entry.waiting = entry.waiting, []
            self._waiting -= len(waiting)
            for _, asker in waiting:
                self._askers[asker] -= 1
                if not self._askers[asker]:
                    del self._askers[asker]
            self._pending.finish(key, seconds)
            self._evict(key)
            return [done for done, _ in waiting]

    def _evict(self, newest: Query) -> None:
        kept = sum(_bytes(entry) for entry in self._entries.values())
        idle = [key for key, entry in self._entries.items() if not entry.waiting and key != newest]
        for key in idle:
            if len(self._entries) <= self._capacity and kept <= MAX_KEPT_BYTES:
                return
            kept -= _bytes(self._entries.pop(key))


def _key(query: Query) -> Query:
    """What decides the pattern of a query: not which arrays are shared, nor what of the matrix is wanted."""
    hessian = query.operator != function_pb2.OPERATOR_JACOBIAN
    return replace(
        query, operator=function_pb2.OPERATOR_HESSIAN if hessian else query.operator, columns=(), diagonal=False,
        samples=0, block_rows=0, pattern=None, shared=(),
    )  # fmt: skip


def _bytes(entry: _Entry) -> int:
    pattern = entry.pattern
    if pattern is None:
        return 0
    # The response's form of the pattern holds the indices once more.
    places = 0 if pattern.coloring.places is None else pattern.coloring.places.nbytes
    return 2 * (pattern.row_indices.nbytes + pattern.column_indices.nbytes) + places + pattern.coloring.colors.nbytes


def _resident_bytes() -> int:
    """The memory of this process; 0 where the system does not tell so."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
