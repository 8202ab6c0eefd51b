"""What every example begins with: its options, and a client of a server."""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from nablad import Client
from nablad.errors import NabladError
from nablad_server.app import App
from nablad_server.config import Settings
from nablad_server.telemetry import configure_logging

MODELS = Path(__file__).with_name("models.py")


def _drawable(_context: click.Context, _option: click.Parameter, file: Path | None) -> Path | None:
    if file is not None and importlib.util.find_spec("matplotlib") is None:
        raise click.UsageError("--plot needs matplotlib: pip install --group examples, or leave --plot out")
    return file


address_option = click.option(
    "--address", metavar="HOST:PORT", help="A running `nablad serve examples/models.py`; by default one is started."
)
plot_option = click.option(
    "--plot", type=click.Path(dir_okay=False, writable=True, path_type=Path), metavar="FILE.png",
    callback=_drawable, help="Draw the result; needs matplotlib: pip install --group examples.",
)  # fmt: skip


@contextmanager
def connected(address: str | None) -> Iterator[Client]:
    """A client of the server at `address`; without one, of a server of its own, which stops when the block ends.

    An error of a call inside the block ends the example with its message.
    """
    try:
        with _address(address) as found, Client(found) as client:
            yield client
    except NabladError as error:
        raise click.ClickException(f"{type(error).__name__}: {error}") from None


@contextmanager
def _address(given: str | None) -> Iterator[str]:
    if given is not None:
        yield given
        return
    configure_logging("warning", "text")
    app = App(Settings(address="127.0.0.1:0", functions=[str(MODELS)], drain_pause_seconds=0))
    app.start()
    try:
        yield app.address
    finally:
        app.stop()
