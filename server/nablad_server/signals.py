"""Signals, as the main thread waits for them."""

import contextlib
import os
import signal
import socket
from collections.abc import Iterator

ENDING = frozenset({signal.SIGTERM, signal.SIGINT})
RELOADING = frozenset({signal.SIGHUP} if hasattr(signal, "SIGHUP") else ())


class Signals:
    """Those that have come.

    Attributes:
        ending: whether one of ENDING was among them.
    """

    def __init__(self, heard: socket.socket) -> None:
        self.ending = False
        self._heard = heard

    def next(self) -> frozenset[int]:
        """Those that came since this was last asked for; waits until there are some."""
        return frozenset(self._heard.recv(4096))


@contextlib.contextmanager
def caught() -> Iterator[Signals]:
    """Has these signals caught. In the main thread.

    After the first of ENDING, further SIGTERMs change nothing, and a second SIGINT ends the process at once.
    """
    heard, told = socket.socketpair()
    told.setblocking(False)
    signals = Signals(heard)

    def on_signal(number: int, _: object) -> None:
        if signals.ending and number == signal.SIGINT:
            os._exit(128 + number)
        signals.ending = True
        # One is enough. A handler would see the others too, perhaps faster than it returns, and would be taken away
        # when the interpreter ends: a late SIGTERM would then be this process's exit status.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

    with heard, told:
        # Handlers run in the main thread alone. If it waits for a lock, and the kernel gives the signal to another
        # thread, or gives it just before the wait begins, then nothing wakes it: so it waits for what is written here.
        signal.set_wakeup_fd(told.fileno(), warn_on_full_buffer=False)
        for number in ENDING:
            signal.signal(number, on_signal)
        for number in RELOADING:
            signal.signal(number, lambda _, __: None)
        yield signals
        signal.set_wakeup_fd(-1)
