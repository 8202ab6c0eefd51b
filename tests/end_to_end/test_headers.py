"""Headers that are far too large: refused, and what they took is given back."""

import resource
from pathlib import Path

import nablad
from resilience.frames import Connection, headers
from servers import ServerProcess

GRADIENT = b"/nablad.v1.DifferentiationService/Gradient"
PADDED = headers(GRADIENT, (b"padding", b"x" * (4 << 20)))
REFUSED = b"grpc-status\x018"
"""RESOURCE_EXHAUSTED, in plain: a name and a value, with its length."""
ROUNDS, CALLS = 3, 25


def resident_bytes(server: ServerProcess) -> int:
    pages = int(Path(f"/proc/{server.process.pid}/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def refuse_many(server: ServerProcess, *, acknowledging: bool) -> None:
    for _ in range(CALLS):
        with Connection(int(server.address.rpartition(":")[2])) as large:
            if acknowledging:
                large.acknowledge()
            large.call(PADDED)
            large.read_until(REFUSED)


def test_they_are_refused_and_take_no_memory() -> None:
    with ServerProcess() as server, nablad.Client(server.address, timeout=120) as client:
        client.gradient("rosenbrock", [1.0, 2.0])
        before = resident_bytes(server)

        refuse_many(server, acknowledging=True)

        # Of 100 MB that were sent, what is read of one at a time.
        assert resident_bytes(server) < before + (30 << 20)
        client.gradient("rosenbrock", [1.0, 2.0])
        assert server.errors() == []


def test_of_a_client_that_knows_of_no_limit_they_are_refused_and_their_memory_is_used_again() -> None:
    with ServerProcess() as server, nablad.Client(server.address, timeout=120) as client:
        client.gradient("rosenbrock", [1.0, 2.0])
        held = []
        for _ in range(ROUNDS):
            refuse_many(server, acknowledging=False)
            held.append(resident_bytes(server))

        assert held[-1] < 1.25 * held[0], held
        client.gradient("rosenbrock", [1.0, 2.0])
        assert server.errors() == []
