"""Certificates are replaced under load, and in the end those who vouch for them."""

import tempfile
from pathlib import Path

import nablad
from nablad import Tls, errors
from resilience.certificates import Authorities, replace, shown
from resilience.load import ByClient, Load
from resilience.outcome import Outcome, judged
from resilience.server import Server

EACH = 5
"""Calls over one connection: handshakes meet the swaps."""


def certificate_swap(seconds: float) -> Outcome:
    """Mutual TLS under load: the server's certificate is renewed again and again, and both sides change authorities."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        authorities = Authorities(directory)
        certificate, key, trusted = (directory / f"{part}.pem" for part in ("server", "server-key", "clients"))
        expected = [authorities.issue("old", certificate, key)]
        replace(trusted, authorities.file("old").read_bytes())
        old, new = authorities.client("old"), authorities.client("new")
        arguments = ("--tls-certificate", certificate, "--tls-key", key, "--tls-client-ca", trusted)
        with (
            Server("--compile-cache", "none", *arguments) as server,
            Load(lambda: ByClient(server.address, old), 1) as steady,
        ):
            seen = [shown(server.port, old)]
            stranger = not _admitted(server, new)
            with Load(lambda: ByClient(server.address, old), 2, calls_each=EACH) as leaving:
                steady.mark()
                for _ in range(8):
                    expected.append(authorities.issue("old", certificate, key))
                    seen.append(shown(server.port, old))
                    leaving.go_on(seconds / 16)
                replace(trusted, authorities.both.read_bytes())
                with Load(lambda: ByClient(server.address, new), 2, calls_each=EACH) as arriving:
                    for _ in range(8):
                        expected.append(authorities.issue("new", certificate, key))
                        seen.append(shown(server.port, new))
                        leaving.go_on(seconds / 16)
                    leaving.stop()
                    replace(trusted, authorities.file("new").read_bytes())
                    retired = not _admitted(server, old)
                    arriving.go_on(seconds / 8)
                    steady.stop()
                    arriving.stop()
            loads = [steady, leaving, arriving]
            connections = sum(load.calls // EACH for load in (leaving, arriving))
            return judged(
                loads,
                [server],
                f"{len(set(seen))} certificates shown to new connections, as they were put there; {connections} "
                "handshakes under load; the new authority's clients refused before the swap, the old one's afterwards",
                {"each new certificate at the next handshake": seen == expected,
                 "clients of the new authority refused before": stranger,
                 "clients of the old authority refused afterwards": retired},
            )  # fmt: skip


def _admitted(server: Server, tls: Tls) -> bool:
    """Whether somebody with this certificate may connect."""
    with nablad.Client(server.address, tls=tls, retries=False) as client:
        try:
            client.evaluate("rosenbrock", x=[1.0, 2.0])
        except errors.Unavailable:
            return False
        return True
