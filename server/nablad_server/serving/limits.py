"""What one caller may ask for, so that it cannot starve others; and what it asks for now."""

import threading
import time
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass

from nablad.errors import NabladError, RateLimited, TooManyCalls
from nablad_server.batching.ticket import NOBODY, Owner

BURST_SECONDS = 1.0
"""Whoever was quiet for so long may ask at once for what its rate allows in so long."""

MAX_ACCOUNTS = 4096
"""With more callers known than this, those that have nothing open and could be refused nothing are forgotten."""

OWNER: ContextVar[Owner] = ContextVar("owner", default=NOBODY)
"""In whose name the running thread works, if it is one of an Endpoint's."""

RETRY_SECONDS = 0.1
"""Those who have too many calls open are told to wait for so long: others of theirs will have ended."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of one caller; 0: none.

    Attributes:
        calls: so many calls may be open at once, streams included.
        streams: so many streams may be.
        rate: so many requests a second, over time; calls and operations of streams count alike. After a pause as many
            as in BURST_SECONDS may come at once.
        unread_bytes: so many bytes of large responses may not be taken yet.
        share: once the queue is full, whoever holds more than this part of it makes room for others.
    """

    calls: int = 0
    streams: int = 0
    rate: float = 0.0
    unread_bytes: int = 0
    share: float = 1.0


class Account:
    """What one caller has open, and how often it asked. Safe for threads.

    Attributes:
        owner: in whose name its tickets wait.
        unread: bytes of large responses that were handed over and not yet taken.
    """

    __slots__ = (
        "_at", "_calls", "_clock", "_limits", "_lock", "_name", "_streams", "_tokens", "owner",
        "unread",
    )  # fmt: skip

    def __init__(self, name: str, limits: Limits, lock: threading.Lock, clock: Callable[[], float]) -> None:
        self.owner = Owner(name, limits.share)
        self._name = name
        self._limits = limits
        self._lock = lock
        self._clock = clock
        self._calls = 0
        self._streams = 0
        self.unread = 0
        self._tokens = max(1.0, limits.rate * BURST_SECONDS)
        self._at = clock()

    def limit(self, limits: Limits) -> None:
        """Sets the limits that hold from now on."""
        if limits is not self._limits:
            self._limits = limits
            self.owner = Owner(self._name, limits.share)

    def enter(self, *, stream: bool) -> NabladError | None:
        """Takes note of a call; or says why it is refused: TooManyCalls, or RateLimited."""
        limits = self._limits
        with self._lock:
            if limits.calls and self._calls >= limits.calls:
                return TooManyCalls(
                    f"{self._calls} calls of this caller are open already, the most that one caller may have; let some "
                    "end, or send many points in one request or stream",
                    retry_after=RETRY_SECONDS, metadata={"limit": str(limits.calls)},
                )  # fmt: skip
            if stream and limits.streams and self._streams >= limits.streams:
                return TooManyCalls(
                    f"{self._streams} streams of this caller are open already, the most that one caller may have; one "
                    "Pipeline carries any number of operations",
                    retry_after=RETRY_SECONDS, metadata={"limit": str(limits.streams)},
                )  # fmt: skip
            if limits.unread_bytes and self.unread > limits.unread_bytes:
                return TooManyCalls(
                    f"{self.unread} bytes of responses wait until this caller reads them; read those first",
                    retry_after=RETRY_SECONDS, metadata={"limit": str(limits.unread_bytes)},
                )  # fmt: skip
            refused = self._spend() if limits.rate else None
            if refused is None:
                self._calls += 1
                self._streams += stream
            return refused

    def leave(self, *, stream: bool) -> None:
        """A call that was let in is over."""
        with self._lock:
            self._calls -= 1
            self._streams -= stream

    def unread_by(self, size: int) -> None:
        """So many bytes more, or less, wait to be taken."""
        with self._lock:
            self.unread += size

    def spend(self) -> NabladError | None:
        """Takes note of a request within a stream; or says that it is refused: RateLimited."""
        if not self._limits.rate:
            return None
        with self._lock:
            return self._spend()

    def idle(self) -> bool:
        """Whether a new account would be the same."""
        return not self._calls and self._filled() >= max(1.0, self._limits.rate * BURST_SECONDS)

    def _filled(self) -> float:
        rate = self._limits.rate
        return min(max(1.0, rate * BURST_SECONDS), self._tokens + (self._clock() - self._at) * rate)

    def _spend(self) -> NabladError | None:
        rate = self._limits.rate
        tokens = self._filled()
        self._at = self._clock()
        if tokens < 1.0:
            self._tokens = tokens
            return RateLimited(
                f"this caller asks more than {rate:g} times a second, the most that one caller may; ask for many "
                "points in one request, or less often",
                retry_after=(1.0 - tokens) / rate, metadata={"limit": f"{rate:g}"},
            )  # fmt: skip
        self._tokens = tokens - 1.0
        return None


class Accounts:
    """The accounts of all callers. Safe for threads."""

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        """`limits` are those of callers that have none of their own."""
        self._limits = limits
        self._clock = clock
        self._lock = threading.Lock()
        self._accounts: dict[str, Account] = {}

    def of(self, name: str, limits: Limits | None = None) -> Account:
        """The account of a caller, with its own limits if it has some. They may change while the account is kept."""
        limits = limits or self._limits
        account = self._accounts.get(name)
        if account is None:
            account = self._opened(name, limits)
        account.limit(limits)
        return account

    def _opened(self, name: str, limits: Limits) -> Account:
        with self._lock:
            if len(self._accounts) >= MAX_ACCOUNTS:
                self._accounts = {name: account for name, account in self._accounts.items() if not account.idle()}
            fresh = Account(name, limits, self._lock, self._clock)
            return self._accounts.setdefault(name, fresh)
