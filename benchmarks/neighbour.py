"""A caller who asks for many times what it may have, beside one who asks for little. Who they are is in a file."""

import asyncio
import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc

from benchmarks.figures import Figure, Target, ratios
from benchmarks.floors import UNLIMITED
from benchmarks.stand import SHARED, Stand
from benchmarks.unary import method_of
from benchmarks.workloads import WORKLOADS, prepared

SHARE = 20.0
"""Requests a second that the noisy caller may make."""

FLOOD_IN_FLIGHT = 512
"""Its calls: each is made anew as soon as it is answered or refused."""

NOISY, QUIET = "noisy-neighbour-of-the-benchmark", "quiet-neighbour-of-the-benchmark"
"""Their tokens: worth nothing but to this run's own servers."""


def write_identities(path: Path) -> Path:
    """The file that says who they are."""
    entry = '[[identity]]\nname = "{}"\ntoken_sha256 = "{}"\nroles = ["evaluate", "catalogue"]\n{}\n'
    own = {NOISY: f"rate = {SHARE}", QUIET: ""}
    path.write_text(
        "".join(entry.format(token, hashlib.sha256(token.encode()).hexdigest(), line) for token, line in own.items())
    )
    return path


def flood(address: str, workload: str, seconds: float, echo: int | None = None) -> dict[str, float]:
    """Asks as often as it can, whatever it is told. Calls a second, by what they came to."""
    found = asyncio.run(_flood(address, method_of(workload, echo), prepared(workload)[0].request, seconds))
    return {name: count / seconds for name, count in found.items()}


async def _flood(address: str, method: str, request: bytes, seconds: float) -> Counter[str]:
    found: Counter[str] = Counter()
    end = time.perf_counter() + seconds
    async with grpc.aio.insecure_channel(address, UNLIMITED) as channel:
        call: Callable[..., Any] = channel.unary_unary(method)
        metadata = (("authorization", f"Bearer {NOISY}"),)

        async def one_after_the_other() -> None:
            while time.perf_counter() < end:
                code = await call(request, metadata=metadata).code()
                found["answered" if code == grpc.StatusCode.OK else code.name] += 1

        await asyncio.gather(*(one_after_the_other() for _ in range(FLOOD_IN_FLIGHT)))
    return found


def a_noisy_neighbour_does_not_slow_another_caller(stand: Stand) -> Iterator[Figure]:
    """One identity asks for 100 times its share, and another one's calls stay quick."""
    stand.say("starting a server that knows its callers")
    length = stand.response_length("W1")
    echo = stand.echoes["threads"]
    asked: dict[str, list[float]] = {}

    def p99(address: str, flooded: bool) -> float:
        seconds = 2 * stand.pace.seconds
        job = {"address": address, "workload": "W1", "echo": length if address == echo else None}
        if flooded:
            # The flood begins before the calls that are measured and ends after them.
            stand.other_load.begin("flood", seconds=seconds + 1, **job)
            time.sleep(0.5)
        found: float = stand.load.ask("one_at_a_time", seconds=seconds, token=QUIET, **job)["p99"]
        if flooded:
            rates = stand.other_load.result()
            who = "echo" if address == echo else "nablad"
            asked.setdefault(f"flood of {who}, calls/s", []).append(sum(rates.values()))
            if address != echo:
                asked.setdefault("of them answered, calls/s", []).append(rates.get("answered", 0.0))
        return found

    identities = write_identities(stand.scratch / "identities.toml")
    with stand.start_server(SHARED, "--tokens", str(identities)) as server:
        found = stand.interleave(
            "W1 beside a flood of W1",
            {
                "echo idle (p99), s": lambda: p99(echo, flooded=False),
                "echo flooded (p99), s": lambda: p99(echo, flooded=True),
                "nablad idle (p99), s": lambda: p99(server.address, flooded=False),
                "nablad flooded (p99), s": lambda: p99(server.address, flooded=True),
            },
        )
    claim = a_noisy_neighbour_does_not_slow_another_caller.__name__
    case = f"W1 {WORKLOADS['W1'].title}, beside {FLOOD_IN_FLIGHT} of another's"
    of_nablad = ratios(found["nablad flooded (p99), s"], found["nablad idle (p99), s"])
    yield Figure(claim, case, "p99 flooded ÷ p99 idle", of_nablad, Target("≤", 3), found | asked)
    times = [rate / SHARE for rate in asked["flood of nablad, calls/s"]]
    yield Figure(claim, case, f"how many times its share of {SHARE:g}/s the flood asked for", tuple(times))
    of_echo = ratios(found["echo flooded (p99), s"], found["echo idle (p99), s"])
    yield Figure(claim, case, "p99 flooded ÷ p99 idle of the echo, which has no limits", of_echo)
