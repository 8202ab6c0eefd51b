"""One of two servers goes away while both are called, and comes back."""

import time
from collections.abc import Callable
from contextlib import ExitStack

import nablad
from resilience.load import ByClient, ByStub, Caller, Load
from resilience.outcome import Outcome, judged
from resilience.server import Server

ALONE = ("--compile-cache", "none")
FOUND_SECONDS = 30.0
"""A client that could not connect tries again after one second, then after longer and longer."""

READY_SECONDS = 1.0
"""What Kubernetes calls minReadySeconds: a rolling restart must not be faster than its clients."""


def served(server: Server) -> int:
    """How many requests a server has answered with a result since it started."""
    with nablad.Client(server.address) as client:
        return sum(row.requests for row in client.statistics())


def found(server: Server, connections: int = 1) -> float:
    """Waits until callers have connected so often, and got an answer; for how many seconds. Infinite if they do not."""
    began = time.monotonic()
    # In this order: whoever asks for `served` connects, too.
    while server.connections < connections or not served(server):
        if time.monotonic() - began > FOUND_SECONDS:
            return float("inf")
        time.sleep(0.02)
    return time.monotonic() - began


def _both(first: Server, second: Server) -> str:
    return f"ipv4:127.0.0.1:{first.port},127.0.0.1:{second.port}"


def killed(seconds: float) -> Outcome:
    """SIGKILL for one of two servers behind `round_robin`; then it is started again on the same port."""
    with Server(*ALONE) as first, Server(*ALONE) as second, Load(lambda: ByClient(_both(first, second))) as load:
        found(first)
        load.go_on(seconds / 3)
        before = served(first)
        load.mark()
        status = first.kill()
        meanwhile = load.go_on(seconds / 3)
        with Server(*ALONE, address=first.address) as again:
            waited = found(again)
            load.go_on(seconds / 3)
            after = served(again)
            load.stop()
            return judged(
                [load],
                [first, second, again],
                f"status {status} after {before} answers; {meanwhile} calls without it; found again {waited:.1f} s "
                f"after it served, for {after} answers",
                {"death by SIGKILL": status == -9, "calls before": before > 0, "calls afterwards": after > 0},
            )


def terminated(seconds: float) -> Outcome:
    """SIGTERM for each of two servers in turn, callers being those of the Python client: a rolling restart."""
    return _rolled(seconds, ByClient, 4)


def terminated_for_others(seconds: float) -> Outcome:
    """The same for callers in other languages: stubs on 16 connections to each server, retries from configuration."""
    return _rolled(seconds, ByStub, 16)


def _rolled(seconds: float, kind: Callable[[str], Caller], callers: int) -> Outcome:
    with ExitStack() as stack:
        # Balancers that look every half second find time to go elsewhere; these callers learn from the connection.
        arguments = (*ALONE, "--drain-pause-seconds", "0")
        servers = [stack.enter_context(Server(*arguments)) for _ in range(2)]
        address = _both(*servers)
        load = stack.enter_context(Load(lambda: kind(address), callers))
        answered = [found(server) < FOUND_SECONDS for server in servers]
        load.go_on(seconds / 4)
        load.mark()
        ended: list[Server] = []
        statuses: list[int] = []
        drains: list[float] = []
        turns = max(1, round(seconds / 2))
        for turn in range(turns):
            leaving = servers[turn % 2]
            connections = leaving.connections
            began = time.monotonic()
            statuses.append(leaving.stop())
            drains.append(time.monotonic() - began)
            ended.append(leaving)
            if turn + 1 == turns:
                break
            servers[turn % 2] = stack.enter_context(Server(*arguments, address=leaving.address))
            # The other one may leave once all callers have found this one, and have shaken hands.
            answered.append(found(servers[turn % 2], connections) < FOUND_SECONDS)
            load.go_on(READY_SECONDS)
        load.stop()
        said = [{line["event"] for line in server.log} for server in ended]
        return judged(
            [load],
            {*ended, *servers},
            f"{len(ended)} drains under load, {min(drains):.1f} … {max(drains):.1f} s, exits {sorted(set(statuses))}",
            {"drains in the log": all({"draining", "stopped"} <= events for events in said),
             "calls to each server before and after": all(answered)},
            {"every exit status is 0": not any(statuses)},
        )  # fmt: skip
