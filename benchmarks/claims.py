"""The claims. Each is a function from the stand to its figures, and is called as the claim is."""

import time
from collections.abc import Callable, Iterator

from benchmarks.figures import Figure, Target, ceilings, ratios
from benchmarks.neighbour import a_noisy_neighbour_does_not_slow_another_caller
from benchmarks.second_order_claims import (
    a_gradient_costs_a_few_evaluations,
    a_hessian_of_gigabytes_takes_the_memory_of_a_few_blocks,
    a_sparse_hessian_costs_its_colors,
    products_at_one_point_share_what_the_point_costs,
)
from benchmarks.stand import IN_FLIGHT, SHARED, Stand, echo_of, program_of
from benchmarks.workloads import WORKLOADS

BATCH = 4096
HESSIANS_IN_FLIGHT = 4
IDLE_SHARE = 0.05
"""Of a core: what health checks and timers may take of a server that nobody calls."""


def a_call_costs_the_transport_and_the_program(stand: Stand) -> Iterator[Figure]:
    """One call at a time takes little more than a bare echo of its bytes and the program in process."""
    claim = a_call_costs_the_transport_and_the_program.__name__
    for name in ("W1", "W2"):
        found = stand.interleave(
            name,
            {
                **stand.echo_seconds(name),
                **stand.program_seconds(name),
                "nablad, s": stand.median(name),
                "Python client, s": stand.median(name, do="client_one_at_a_time"),
            },
        )
        floor = [e + p for e, p in zip(echo_of(found), program_of(found), strict=True)]
        raw, through_client = (ratios(found[who], floor) for who in ("nablad, s", "Python client, s"))
        yield Figure(claim, _case(name), "median time ÷ (echo + in process)", raw, Target("≤", 1.15), found)
        yield Figure(claim, _case(name), "the same through the Python client", through_client)


def calls_in_flight_use_the_whole_server(stand: Stand) -> Iterator[Figure]:
    """Many callers with one point each get what transport and program allow together."""
    claim = calls_in_flight_use_the_whole_server.__name__
    for name in ("W1", "W2", "W3", "W4"):
        found = stand.interleave(
            name, {**stand.echo_rate(name), **stand.best_program(name), "nablad, calls/s": stand.in_flight(name)}
        )
        found["C, calls/s"] = ceilings(echo_of(found), program_of(found))
        reached = ratios(found["nablad, calls/s"], found["C, calls/s"])
        yield Figure(claim, _case(name), f"calls/s ÷ C, {IN_FLIGHT} in flight", reached, Target("≥", 0.85), found)


def a_pipeline_carries_many_points_for_one_call(stand: Stand) -> Iterator[Figure]:
    """Points through a pipeline are not bound by what a call costs."""
    claim, points = a_pipeline_carries_many_points_for_one_call.__name__, stand.pace.points
    found = stand.interleave(
        "W1",
        {
            **stand.echo_rate("W1"),
            "Client.map, points/s": stand.rate("mapped", "W1", points=points),
            "Client.pipeline, points/s": stand.rate("futures", "W1", points=points),
            "packed messages, points/s": stand.rate("packed", "W1", seconds=stand.pace.seconds),
        },
    )
    mapped, futures, packed = (ratios(samples, echo_of(found)) for samples in list(found.values())[-3:])
    yield Figure(claim, _case("W1"), "Client.map, points/s ÷ echo calls/s", mapped, Target("≥", 20), found)
    yield Figure(claim, _case("W1"), "the same through Client.pipeline", futures)
    yield Figure(claim, _case("W1"), "the same as messages packed beforehand", packed)


def a_pipeline_is_bound_by_the_program(stand: Stand) -> Iterator[Figure]:
    """Points that are work to compute go through a pipeline as fast as the program in process."""
    claim, points = a_pipeline_is_bound_by_the_program.__name__, stand.pace.points // 10
    found = stand.interleave(
        "W4", {**stand.best_program("W4"), "Client.map, points/s": stand.rate("mapped", "W4", points=points)}
    )
    reached = ratios(found["Client.map, points/s"], program_of(found))
    yield Figure(claim, _case("W4"), "points/s ÷ in process", reached, Target("≥", 0.9), found)


def many_points_in_one_request_cost_their_bytes_and_the_program(stand: Stand) -> Iterator[Figure]:
    """A request of thousands of points is bound by its bytes and the program."""
    claim = many_points_in_one_request_cost_their_bytes_and_the_program.__name__
    case = f"{_case('W1')}, {BATCH:,} points"
    found = stand.interleave(
        case,
        {
            **stand.echo_seconds("W1", BATCH),
            **stand.best_program("W1"),
            "nablad, s": stand.median("W1", batch=BATCH),
        },
    )
    rate = [BATCH / seconds for seconds in found["nablad, s"]]
    allowed = ceilings([BATCH / seconds for seconds in echo_of(found)], program_of(found))
    beside = found | {"nablad, points/s": rate, "C, points/s": allowed}
    yield Figure(claim, case, "points/s ÷ C", ratios(rate, allowed), Target("≥", 0.85), beside)


def a_large_point_costs_its_bytes_and_the_program(stand: Stand) -> Iterator[Figure]:
    """A point of 8 MB each way is bound by its bytes and the program."""
    claim = a_large_point_costs_its_bytes_and_the_program.__name__
    found = stand.interleave(
        "W5", {**stand.echo_seconds("W5"), **stand.program_seconds("W5"), "nablad, s": stand.median("W5")}
    )
    floor = [e + p for e, p in zip(echo_of(found), program_of(found), strict=True)]
    reached = ratios(floor, found["nablad, s"])
    yield Figure(claim, _case("W5"), "(echo + in process) ÷ median time", reached, Target("≥", 0.85), found)


def large_calls_do_not_hold_up_small_ones(stand: Stand) -> Iterator[Figure]:
    """Small calls stay quick while another client saturates the server with Hessians of 8 MB."""
    length = {name: stand.response_length(name) for name in ("W1", "W6")}
    echo = stand.echoes["threads"]

    def p99(address: str, flooded: bool) -> float:
        is_echo = address == echo
        seconds = 2 * stand.pace.seconds

        def ask(name: str) -> dict[str, object]:
            return {"address": address, "workload": name, "echo": length[name] if is_echo else None}

        if flooded:
            # The flood begins before the calls that are measured and ends after them.
            stand.other_load.begin("in_flight", calls=HESSIANS_IN_FLIGHT, seconds=seconds + 1, **ask("W6"))
            time.sleep(0.5)
        found: float = stand.load.ask("one_at_a_time", seconds=seconds, **ask("W1"))["p99"]
        if flooded:
            stand.other_load.result()
        return found

    address = stand.server.address
    stand.other_load.ask("in_flight", address=address, workload="W6", calls=HESSIANS_IN_FLIGHT, seconds=0.1)
    found = stand.interleave(
        "W1 beside W6",
        {
            "echo idle (p99), s": lambda: p99(echo, flooded=False),
            "echo flooded (p99), s": lambda: p99(echo, flooded=True),
            "nablad idle (p99), s": lambda: p99(address, flooded=False),
            "nablad flooded (p99), s": lambda: p99(address, flooded=True),
        },
    )
    claim, case = large_calls_do_not_hold_up_small_ones.__name__, f"{_case('W1')}, beside W6"
    of_nablad = ratios(found["nablad flooded (p99), s"], found["nablad idle (p99), s"])
    yield Figure(claim, case, "p99 flooded ÷ p99 idle", of_nablad, Target("≤", 5), found)
    of_echo = ratios(found["echo flooded (p99), s"], found["echo idle (p99), s"])
    yield Figure(claim, case, "the same of the echo: what bytes and the client's core do", of_echo)


def no_execution_begins_for_a_caller_who_has_gone(stand: Stand) -> Iterator[Figure]:
    """Under overload, calls whose deadline has passed are not executed."""
    address = stand.server.address
    stand.say("compiling for calls with 50 ms")
    stand.load.ask("prepare_overload", address=address)
    counts: dict[str, list[float]] = {}

    def late() -> float:
        before = stand.load.ask("late_points", address=address)
        outcomes = stand.load.ask("overload", address=address, seconds=4 * stand.pace.seconds)
        for outcome in ("answered", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED"):
            counts.setdefault(f"{outcome}, calls", []).append(outcomes.pop(outcome, 0))
        counts.setdefault("otherwise, calls", []).append(sum(outcomes.values()))
        found: float = stand.load.ask("late_points", address=address, since=before)
        return found

    found = stand.interleave("calls with 50 ms", {"late points": late})
    yield Figure(
        no_execution_begins_for_a_caller_who_has_gone.__name__, f"deadline 50 ms, {IN_FLIGHT} calls in flight",
        "points executed too late", (sum(found["late points"]),), Target("≤", 0), counts,
    )  # fmt: skip


def cancelled_and_malformed_calls_harm_no_others(stand: Stand) -> Iterator[Figure]:
    """Whatever callers do, every other call gets its right answer, and afterwards the server is at rest."""
    claim, case = cancelled_and_malformed_calls_harm_no_others.__name__, f"{stand.pace.calls:,} calls of W1, W2, W3"
    stand.say(case)
    counts = stand.load.ask("mixed", address=stand.server.address, calls=stand.pace.calls)
    stand.response_length("W1")  # it still answers
    harm = sum(counts.get(kind, 0) for kind in ("wrong status", "lost", "stuck"))
    beside = {f"{kind}, calls": [float(count)] for kind, count in sorted(counts.items())}
    yield Figure(claim, case, "wrong, lost or stuck", (float(harm),), Target("≤", 0), beside)
    before = stand.server.cpu_seconds()
    time.sleep(1)
    after = stand.server.cpu_seconds()
    if before is not None and after is not None:
        yield Figure(claim, "the second after them", "cores in use", (after - before,), Target("≤", IDLE_SHARE))


def a_restart_finds_its_programs_compiled(stand: Stand) -> Iterator[Figure]:
    """With a compile cache, a server that starts again is ready in a fraction of the time."""
    # The shared server was the first to start cold; it is at rest while others start.
    cold, warm = [stand.server.ready_seconds], list[float]()
    for restart, cache in enumerate((SHARED, *map(str, range(1, stand.pace.restarts)))):
        stand.say(f"restart {restart + 1} of {stand.pace.restarts}")
        if cache != SHARED:
            with stand.start_server(cache) as server:
                cold.append(server.ready_seconds)
        with stand.start_server(cache) as server:
            warm.append(server.ready_seconds)
    yield Figure(
        a_restart_finds_its_programs_compiled.__name__, "W1 to W4, points 1, 2, 4, …, 1,024",
        "time to ready, warm ÷ cold", ratios(warm, cold), Target("≤", 0.35), {"cold, s": cold, "warm, s": warm},
    )  # fmt: skip


def _case(name: str) -> str:
    return f"{name} {WORKLOADS[name].title}"


CLAIMS: dict[str, Callable[[Stand], Iterator[Figure]]] = {
    claim.__name__.replace("_", "-"): claim
    for claim in (
        a_call_costs_the_transport_and_the_program,
        calls_in_flight_use_the_whole_server,
        a_pipeline_carries_many_points_for_one_call,
        a_pipeline_is_bound_by_the_program,
        many_points_in_one_request_cost_their_bytes_and_the_program,
        a_large_point_costs_its_bytes_and_the_program,
        large_calls_do_not_hold_up_small_ones,
        a_noisy_neighbour_does_not_slow_another_caller,
        no_execution_begins_for_a_caller_who_has_gone,
        cancelled_and_malformed_calls_harm_no_others,
        a_restart_finds_its_programs_compiled,
        a_sparse_hessian_costs_its_colors,
        a_hessian_of_gigabytes_takes_the_memory_of_a_few_blocks,
        products_at_one_point_share_what_the_point_costs,
        a_gradient_costs_a_few_evaluations,
    )
}
"""By the names that the command line takes."""
