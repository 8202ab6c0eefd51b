"""Fixtures that all tests share."""

from collections.abc import Iterator

import pytest

import nablad
from servers import ServerProcess


@pytest.fixture(scope="session")
def server() -> Iterator[ServerProcess]:
    """A real server process with the built-in catalogue, shared by the tests of one worker."""
    # They share an address, and so whatever others left waiting counts against each: they are bounded together alone.
    with ServerProcess("--compiles-per-caller", "0") as process:
        yield process
        assert process.errors() == []


@pytest.fixture(scope="session")
def server_address(server: ServerProcess) -> str:
    """Where the shared server listens."""
    return server.address


@pytest.fixture(scope="session")
def client(server_address: str) -> Iterator[nablad.Client]:
    """A client of the shared server."""
    with nablad.Client(server_address, timeout=120) as connected:
        yield connected
