"""Headers that are far too large, of a client that knows of the limit."""

import resource
from pathlib import Path

from frames import Connection, headers

import nablad
from servers import ServerProcess

GRADIENT = b"/nablad.v1.DifferentiationService/Gradient"
PADDED = headers(GRADIENT, (b"padding", b"x" * (4 << 20)))
REFUSED = b"grpc-status\x018"
"""RESOURCE_EXHAUSTED, in plain: a name and a value, with its length."""
CALLS = 25


def resident_bytes(server: ServerProcess) -> int:
    pages = int(Path(f"/proc/{server.process.pid}/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def refuse_many(server: ServerProcess) -> None:
    for _ in range(CALLS):
        with Connection(int(server.address.rpartition(":")[2])) as large:
            large.acknowledge()
            large.call(PADDED)
            large.read_until(REFUSED)


def test_they_are_refused_and_take_no_memory() -> None:
    with ServerProcess() as server, nablad.Client(server.address, timeout=120) as client:
        client.gradient("rosenbrock", [1.0, 2.0])
        before = resident_bytes(server)

        refuse_many(server)

        # Of 100 MB that were sent, what is read of one at a time.
        assert resident_bytes(server) < before + (30 << 20)
        client.gradient("rosenbrock", [1.0, 2.0])
        assert server.errors() == []
