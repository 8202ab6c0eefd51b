"""A server inside another program, for as long as it is needed."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from nablad_server.app import App
from nablad_server.config import Settings
from nablad_server.telemetry import configure_logging


@contextmanager
def embedded(targets: Sequence[str] = (), *, builtin: bool = True) -> Iterator[str]:
    """A server on a free port of the loopback interface, by its address.

    It has the functions of some files and modules, as `nablad serve` takes them, and with `builtin` the catalogue.

    Raises:
        ValueError: a target does not load.
    """
    configure_logging("warning", "text")
    settings = Settings(
        address="127.0.0.1:0", functions=list(targets), builtin=builtin, entry_points=builtin, drain_pause_seconds=0,
        # Whatever the environment says about another server: this one is for this process.
        tls_certificate=None, tls_key=None, tls_client_ca=None, tokens=None,
    )  # fmt: skip
    app = App(settings)
    app.start()
    try:
        yield app.address
    finally:
        app.stop()
