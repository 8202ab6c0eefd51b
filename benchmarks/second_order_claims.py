"""The claims about second order at scale. As in `claims`, each is called as what it claims."""

import statistics
from collections.abc import Iterator

from benchmarks.figures import Figure, Target, ratios
from benchmarks.stand import Stand, echo_of

SPARSE = 5_000
LARGE = 20_000
LARGE_QUICK = 8_000
POINT = 1_000
PRODUCTS_IN_FLIGHT = 32
MEGABYTE = 1e6


def a_sparse_hessian_costs_its_colors(stand: Stand) -> Iterator[Figure]:
    """A banded Hessian costs a few products, however many rows it has."""
    address = stand.server.address
    calls = 3 * stand.pace.repeats
    found = stand.interleave(
        "sparse Hessian",
        {
            "dense over the stream, s": lambda: stand.load.ask("streamed_hessian", address=address, n=SPARSE),
            "sparse, s": lambda: stand.load.ask("sparse_hessian", address=address, n=SPARSE, calls=calls),
        },
    )
    faster = ratios(found["dense over the stream, s"], found["sparse, s"])
    yield Figure(
        a_sparse_hessian_costs_its_colors.__name__, f"Hessian of Rosenbrock, n = {SPARSE:,}", "time, dense ÷ sparse",
        faster, Target("≥", 100), found,
    )  # fmt: skip


def a_hessian_of_gigabytes_takes_the_memory_of_a_few_blocks(stand: Stand) -> Iterator[Figure]:
    """The server streams a matrix far larger than its memory would like, at the speed of its bytes and the program."""
    claim = a_hessian_of_gigabytes_takes_the_memory_of_a_few_blocks.__name__
    address, n = stand.server.address, LARGE
    stand.load.ask("block_rows", address=address, n=n)  # compiles
    before = stand.server.memory()
    stand.server.forget_peak()
    stand.say(f"streaming {n:,} rows")
    stand.load.ask("streamed_hessian", address=address, n=n)
    peak = stand.server.memory(peak=True)
    case = f"Hessian of Rosenbrock, n = {n:,}, {8e-9 * n * n:.1f} GB"
    if before is not None and peak is not None:
        grown = ((peak - before) / MEGABYTE,)
        yield Figure(claim, case, "growth of the server's memory, MB", grown, Target("≤", 300))
    n = LARGE_QUICK if stand.pace.repeats < 5 else LARGE
    rows, length = stand.load.ask("block_rows", address=address, n=n)
    blocks = -(-n // rows)
    found = stand.interleave(
        f"stream of {n:,} rows",
        {
            f"echo ({kind}), s": lambda echo=echo: stand.load.ask(
                "echoed_stream", address=echo, length=length, count=blocks
            )
            for kind, echo in stand.echoes.items()
        }
        | {
            "in process, s": lambda: blocks * stand.in_process.ask("row_block_seconds", n=n, rows=rows),
            "nablad, s": lambda: stand.load.ask("streamed_hessian", address=address, n=n),
        },
    )
    transport = [whole - part for whole, part in zip(found["nablad, s"], found["in process, s"], strict=True)]
    yield Figure(
        claim, f"Hessian of Rosenbrock, n = {n:,}", "echo ÷ (time − in process)", ratios(echo_of(found), transport),
        Target("≥", 0.8), found | {"rate, MB/s": [8e-6 * n * n / seconds for seconds in found["nablad, s"]]},
    )  # fmt: skip


def products_at_one_point_share_what_the_point_costs(stand: Stand) -> Iterator[Figure]:
    """Products of a linearisation do without what all of them have in common."""
    job = {"address": stand.server.address, "n": POINT, "seconds": 2 * stand.pace.seconds}
    found = stand.interleave(
        "HVPs at one point",
        {
            "Hvp, products/s": lambda: stand.load.ask("products", **job, in_flight=1, linearized=False),
            f"Hvp ({PRODUCTS_IN_FLIGHT} in flight), products/s": lambda: stand.load.ask(
                "products", **job, in_flight=PRODUCTS_IN_FLIGHT, linearized=False
            ),
            f"Linearize ({PRODUCTS_IN_FLIGHT} in flight), products/s": lambda: stand.load.ask(
                "products", **job, in_flight=PRODUCTS_IN_FLIGHT, linearized=True
            ),
        },
    )
    alone, together, linear = found.values()
    claim, case = products_at_one_point_share_what_the_point_costs.__name__, f"200 steps of a scan, n = {POINT:,}"
    yield Figure(claim, case, "products/s, Linearize ÷ Hvp", ratios(linear, alone), Target("≥", 3), found)
    yield Figure(claim, case, f"the same, {PRODUCTS_IN_FLIGHT} in flight in both", ratios(linear, together))


def a_gradient_costs_a_few_evaluations(stand: Stand) -> Iterator[Figure]:
    """The cheap gradient principle (Baur, Strassen 1983; Griewank 1989) holds over the catalogue."""
    measured: list[dict[str, float]] = []

    def median() -> float:
        measured.append(stand.load.ask("gradient_costs", address=stand.server.address))
        return statistics.median(measured[-1].values())

    found = stand.interleave("the catalogue's gradients", {"median": median})
    worst = [max(costs.values()) for costs in measured]
    yield Figure(
        a_gradient_costs_a_few_evaluations.__name__, f"{len(measured[0])} functions of the catalogue",
        "time, gradient ÷ function, median", tuple(found["median"]), Target("≤", 4), {"the dearest": worst},
    )  # fmt: skip
