"""The compiled programs, and the one thread that compiles.

One thread, because tracing and lowering hold the interpreter lock and a second compilation would only slow the
first down; single flight, because a thousand callers of one new query must cost one compilation. Those who ask take
turns, so that one with a thousand new queries delays another's by one compilation, not by a thousand.
"""

import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Hashable
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import structlog

from nablad.errors import CompileQueueFull, DeadlineExceeded, Draining, Internal, NabladError
from nablad_server.derivatives.allowance import WINDOW_SECONDS, Allowance
from nablad_server.derivatives.inspection import Inspection
from nablad_server.derivatives.linear import Opening, Product
from nablad_server.derivatives.pending import Pending
from nablad_server.derivatives.program import Constants, Program, Traced, compile_program, trace
from nablad_server.derivatives.query import Query
from nablad_server.functions.function import Function

log = structlog.get_logger("nablad")

Key = Query | Opening | Product | Inspection
"""What a program is compiled from: a Recipe that can be traced."""

Done = Callable[[NabladError | None, float], None]
"""Called from the compile thread when a program is ready, or with the error; the seconds are the compilation's."""


@dataclass
class _Entry:
    programs: dict[int, Program] = field(default_factory=dict)
    traced: Traced | None = None
    refused: NabladError | None = None  # tracing fails the same way every time: the answer is kept
    largest: int | None = None  # the largest bucket worth compiling, once a larger one has failed
    waiting: dict[int, list[Done]] = field(default_factory=dict)  # by bucket: who waits for the compilation under way
    used: bool = True  # since `forget` looked last


@dataclass
class Counts:
    """What a cache has done.

    Attributes:
        hits: batches whose program was there.
        misses: programs asked for that were not there.
        evictions: programs dropped to make room.
        compiled: compilations that succeeded.
        failed: those that did not.
        seconds: how long all took.
    """

    hits: int = 0
    misses: int = 0
    evictions: int = 0
    compiled: int = 0
    failed: int = 0
    seconds: float = 0.0


class ProgramCache:
    """Programs by query and bucket, at most `capacity`; those of the query unused for longest go first.

    Attributes:
        capacity: how many may be kept.
        counts: what it has done.
        version: changes whenever what `buckets` and `largest` say may have changed.
    """

    def __init__(
        self,
        capacity: int,
        max_pending: int,
        memory_limit: int,
        *,
        max_pending_each: int = 0,
        seconds_each: float = 0.0,
        exempt: Hashable = None,
    ) -> None:
        """Starts the compile thread.

        Args:
            capacity: programs kept. One takes about 1 MB, with what was traced for it, and 12 memory maps.
            max_pending: compilations that may wait; more are refused.
            memory_limit: bytes that one execution of a program may need; programs that need more are refused.
            max_pending_each: of the compilations that may wait, those that one asker may add; 0: all.
            seconds_each: seconds a minute that the compile thread may be at work for one asker; 0: all.
            exempt: an asker to whom that does not apply.
        """
        self.capacity = capacity
        self.counts = Counts()
        self._memory_limit = memory_limit
        self._lock = threading.Lock()
        self._entries: OrderedDict[Key, _Entry] = OrderedDict()
        self._count = 0
        self._pending: Pending[tuple[Key, int]] = Pending(max_pending, max_pending_each)
        self._allowance = Allowance(seconds_each)
        self._exempt = exempt
        self._constants: WeakKeyDictionary[Function, Constants] = WeakKeyDictionary()
        self._changed = threading.Condition(self._lock)
        self._closed = False
        self.version = 0
        self._thread = threading.Thread(target=self._compile_forever, name="nablad-compile", daemon=True)
        self._thread.start()

    @property
    def programs(self) -> int:
        """How many there are."""
        return self._count

    @property
    def pending(self) -> int:
        """How many compilations wait."""
        return len(self._pending)

    def buckets(self, query: Key) -> dict[int, Program]:
        """The programs of a query that are ready, by bucket. Raises the error that tracing it gave, if it did."""
        with self._lock:
            entry = self._entries.get(query)
            if entry is None:
                return {}
            self._entries.move_to_end(query)
            entry.used = True
            if entry.refused is not None:
                raise entry.refused
            self.counts.hits += bool(entry.programs)
            return dict(entry.programs)

    def touch(self, query: Key) -> bool:
        """Counts as a use of the query's programs; False if there are none any more."""
        with self._lock:
            entry = self._entries.get(query)
            if entry is None:
                return False
            entry.used = True
            self._entries.move_to_end(query)
            self.counts.hits += 1
            return True

    def largest(self, query: Key) -> int | None:
        """The largest bucket worth asking for; None if none has failed."""
        with self._lock:
            entry = self._entries.get(query)
            return None if entry is None else entry.largest

    def request(self, query: Key, bucket: int, done: Done, asker: Hashable = None) -> None:
        """Has a program compiled, or joins the compilation under way; `done` is called once, from the compile thread.

        If several points at once need too much memory, or do not compile, that is no error: `largest` then says what to
        ask for instead, and only the failure of a single point is the callers'.

        Askers take turns: what somebody else asked for before is joined, and compiled in whose turn comes first.

        Raises:
            CompileQueueFull: too many wait already, or too many of this asker's, or it has used up its seconds; `done`
                is not called.
            Draining: the cache is closed; likewise.
        """
        with self._lock:
            if self._closed:
                raise Draining("the server is shutting down and compiles nothing more")
            entry = self._entries.get(query)
            if entry is not None and bucket in entry.waiting:
                entry.waiting[bucket].append(done)
                self._pending.join((query, bucket), asker)
                return
            if not self._pending.has_room(asker):
                raise CompileQueueFull(
                    f"{len(self._pending)} programs wait to be compiled already, {self._pending.held(asker)} of them "
                    "asked for by this caller; each new combination of function, operator, shapes and options needs "
                    "one. Retry later, or ask for fewer shapes",
                    retry_after=1.0,
                )
            patience = self._allowance.patience(asker)
            if patience and asker != self._exempt:
                raise CompileQueueFull(
                    f"compiling for this caller took more than the {self._allowance.seconds:g} s that it may take in "
                    f"{WINDOW_SECONDS:g} s; each new combination of function, operator, shapes and options needs a "
                    "program. Retry later, or ask for fewer shapes",
                    retry_after=patience,
                )
            self.counts.misses += 1
            entry = self._entries.setdefault(query, _Entry())
            entry.waiting[bucket] = [done]
            self._pending.add((query, bucket), asker)
            self._changed.notify()

    def wait(self, query: Key, bucket: int, timeout: float, asker: Hashable = None) -> Program:
        """The program for a bucket, or for the largest one that can be compiled; compiled if need be. Blocks.

        Raises:
            DeadlineExceeded: it is not ready after `timeout` seconds; it will be later.
            NabladError: as `buckets` and `request`, or what the compilation gave.
        """
        finish_by = time.monotonic() + timeout
        while True:
            wanted = min(bucket, self.largest(query) or bucket)
            found = self.buckets(query).get(wanted)
            if found is not None:
                return found
            told: queue.SimpleQueue[NabladError | None] = queue.SimpleQueue()
            self.request(query, wanted, lambda error, _, told=told: told.put(error), asker)  # type: ignore[misc]
            try:
                error = told.get(timeout=max(0.0, finish_by - time.monotonic()))
            except queue.Empty:
                raise DeadlineExceeded(f"{query} is still being compiled; ask again a little later") from None
            if error is not None:
                raise error

    def forget(self, functions: Collection[Function]) -> None:
        """Drops the programs of some functions, but those waited for, or used since it was last asked for this."""
        with self._lock:
            for query, entry in [item for item in self._entries.items() if item[0].function in functions]:
                if not entry.used and not entry.waiting:
                    self._count -= len(self._entries.pop(query).programs)
                    self.version += 1
                entry.used = False

    def close(self, timeout: float | None = None) -> bool:
        """Ends the compile thread after the compilation under way; those waiting are told that the server drains.

        False if it has not ended after `timeout` seconds.
        """
        with self._lock:
            self._closed = True
            self._changed.notify()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _compile_forever(self) -> None:
        while (item := self._next()) is not None:
            query, bucket = item
            error: NabladError | None = None
            started = time.perf_counter()
            program = None
            if self._closed:
                error = Draining("the server is shutting down and compiles nothing more")
            else:
                try:
                    program = self._compile(query, bucket)
                except NabladError as refused:
                    error = refused
                except Exception as unexpected:  # a defect must not end the only thread that compiles
                    error = Internal(f"compiling {query} failed: {type(unexpected).__name__}")
                    error.__cause__ = unexpected
            seconds = time.perf_counter() - started
            if error is not None and bucket > 1 and self._smaller(query, bucket):
                error = None
            for done in self._publish(query, bucket, program, seconds):
                try:
                    done(error, seconds)
                except Exception:  # nor must a defect of whoever waits
                    log.exception("internal error", query=str(query))
                del done
            del item, query, program, error  # what they hold is let go of before the wait

    def _next(self) -> tuple[Key, int] | None:
        """What is to be compiled next, waited for; None if the cache is closed and nothing waits."""
        with self._changed:
            while (item := self._pending.take()) is None:
                if self._closed:
                    return None
                self._changed.wait()
            return item

    def _compile(self, query: Key, bucket: int) -> Program:
        with self._lock:
            entry = self._entries[query]
            if entry.refused is not None:
                raise entry.refused
            if bucket in entry.programs:  # compiled between the caller's look and its request
                return entry.programs[bucket]
        if entry.traced is None:
            try:
                constants = self._constants.setdefault(query.function, {})
                entry.traced = trace(query, constants) if isinstance(query, Query) else query.trace(constants)
            except NabladError as refused:
                entry.refused = refused
                raise
        return compile_program(entry.traced, bucket, self._memory_limit)

    def _smaller(self, query: Key, failed: int) -> bool:
        """Notes that a bucket failed; False if no smaller one can do better, because the query itself was refused."""
        with self._lock:
            entry = self._entries[query]
            if self._closed or entry.refused is not None:
                return False
            entry.largest = min(failed // 2, entry.largest or failed)
            self.version += 1
            return True

    def _publish(self, query: Key, bucket: int, program: Program | None, seconds: float) -> list[Done]:
        with self._lock:
            self._allowance.charge(self._pending.finish((query, bucket), seconds), seconds)
            entry = self._entries[query]
            self.counts.seconds += seconds
            self.counts.compiled += program is not None
            self.counts.failed += program is None
            if program is not None:
                self._count += bucket not in entry.programs
                entry.programs[bucket] = program
            self._evict(query)
            self.version += 1
            return entry.waiting.pop(bucket)

    def _evict(self, newest: Key) -> None:
        """Drops the programs of the queries unused for longest, but never those of the newest or of ones waited for."""
        idle = [query for query, entry in self._entries.items() if not entry.waiting and query != newest]
        limit = 4 * self.capacity  # queries that were refused hold no program but an entry
        for query in idle:
            if self._count <= self.capacity and len(self._entries) <= limit:
                return
            dropped = len(self._entries.pop(query).programs)
            self._count -= dropped
            self.counts.evictions += dropped
