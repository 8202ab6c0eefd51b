"""Signals, as the main thread waits for them."""

import contextlib
import os
import signal
import socket
from collections.abc import Callable, Iterator

ENDING = frozenset({signal.SIGTERM, signal.SIGINT})
RELOADING = frozenset({signal.SIGHUP} if hasattr(signal, "SIGHUP") else ())


@contextlib.contextmanager
def caught() -> Iterator[Callable[[], frozenset[int]]]:
    """Has these signals caught; gives what waits for the next of them, and says which they are. In the main thread.

    After the first of ENDING, further SIGTERMs change nothing, and a second SIGINT ends the process at once.
    """
    heard, told = socket.socketpair()
    told.setblocking(False)
    ending = False

    def on_signal(number: int, _: object) -> None:
        nonlocal ending
        if ending and number == signal.SIGINT:
            os._exit(128 + number)
        ending = True
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
        yield lambda: frozenset(heard.recv(4096))
        signal.set_wakeup_fd(-1)
