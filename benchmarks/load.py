"""The load: what calls servers and checks their answers, in a process of its own without JAX.

`python -m benchmarks.load` does the jobs below. Times are in seconds, rates in calls or points a second.
"""

from benchmarks import misuse, neighbour, second_order, streams, unary
from benchmarks.jobs import serve_jobs

if __name__ == "__main__":
    serve_jobs({
        "response_length": unary.response_length,
        "one_at_a_time": unary.one_at_a_time,
        "client_one_at_a_time": unary.client_one_at_a_time,
        "in_flight": unary.in_flight,
        "mapped": streams.mapped,
        "futures": streams.futures,
        "packed": streams.packed,
        "prepare_overload": misuse.prepare_overload,
        "overload": misuse.overload,
        "late_points": misuse.late_points,
        "mixed": misuse.mixed,
        "flood": neighbour.flood,
        "sparse_hessian": second_order.sparse_hessian,
        "streamed_hessian": second_order.streamed_hessian,
        "block_rows": second_order.block_rows,
        "echoed_stream": second_order.echoed_stream,
        "products": second_order.products,
        "gradient_costs": second_order.gradient_costs,
    })  # fmt: skip
