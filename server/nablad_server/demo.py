"""`nablad demo`: an embedded server, real calls over gRPC, and a table of derivatives beside their exact values."""

import math
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import click
import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from nablad.client import Client
from nablad.results import Result
from nablad_server.embedded import embedded


class Example(NamedTuple):
    """One line of the table.

    Attributes:
        function: its formula.
        point: where, and along what.
        operator: as the client calls it.
        call: makes the call.
        part: the field of the result that is shown.
        exact: what it must be, by hand.
    """

    function: str
    point: str
    operator: str
    call: Callable[[Client], Result]
    part: str
    exact: Any


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


_SOFTMAX = np.exp([-2.0, -1.0, 0.0]) / np.exp([-2.0, -1.0, 0.0]).sum()

EXAMPLES = (
    Example("eˣ", "x = 1", "derivative", lambda c: c.derivative("exp", 1.0), "derivatives", [math.e]),
    Example("sin x, orders 1–4", "x = 0.5", "derivative", lambda c: c.derivative("sin", 0.5, order=4), "derivatives",
            [math.cos(0.5), -math.sin(0.5), -math.cos(0.5), math.sin(0.5)]),
    Example("sigmoid", "x = 0", "gradient", lambda c: c.gradient("sigmoid", 0.0), "gradient", 0.25),
    Example("sigmoid, it saturates", "x = 10", "gradient", lambda c: c.gradient("sigmoid", 10.0), "gradient",
            _sigmoid(10.0) * _sigmoid(-10.0)),
    Example("x²y + 3xy², ∂/∂x", "(1, 2)", "gradient", lambda c: c.gradient("x2y_3xy2", 1.0, 2.0, wrt="x"), "gradient",
            16.0),
    Example("x²y + 3xy², ∂/∂y", "(1, 2)", "gradient", lambda c: c.gradient("x2y_3xy2", 1.0, 2.0, wrt="y"), "gradient",
            13.0),
    Example("x² + y²", "(1, 1)", "gradient", lambda c: c.gradient("sum_of_squares", [1.0, 1]), "gradient", [2.0, 2.0]),
    Example("x² + y²", "(1, 1) along (3, 4)", "directional_derivative",
            lambda c: c.directional_derivative("sum_of_squares", [1.0, 1.0], [3.0, 4.0]), "derivative", 2.8),
    Example("x² + y², steepest", "(1, 1)", "directional_derivative",
            lambda c: c.directional_derivative("sum_of_squares", [1.0, 1.0], [3.0, 4.0]), "max_rate", math.sqrt(8)),
    Example("x² + y²", "(1, 1)", "hessian", lambda c: c.hessian("sum_of_squares", [1.0, 1.0]), "hessian",
            [[2.0, 0.0], [0.0, 2.0]]),
    Example("[x₀² + x₁, x₀x₁]", "(1, 2)", "jacobian", lambda c: c.jacobian("quadratic_product", [1.0, 2.0]), "jacobian",
            [[2.0, 1.0], [2.0, 1.0]]),
    Example("Σ xᵢ²", "(1, 2, 3), v = e₁", "hvp", lambda c: c.hvp("sum_of_squares", [1.0, 2, 3], [1.0, 0, 0]), "hvp",
            [2.0, 0.0, 0.0]),
    Example("softmax, shifted", "(1000, 1001, 1002)", "evaluate", lambda c: c.evaluate("softmax", [1000.0, 1001, 1002]),
            "value", _SOFTMAX),
    Example("Rosenbrock", "(−1.2, 1)", "gradient", lambda c: c.gradient("rosenbrock", [-1.2, 1.0]), "gradient",
            [-215.6, -88.0]),
    Example("Rosenbrock", "(−1.2, 1)", "hessian", lambda c: c.hessian("rosenbrock", [-1.2, 1.0]), "hessian",
            [[1330.0, 480.0], [480.0, 200.0]]),
    Example("sin x, 1000 points at once", "x = 0, …, 1", "gradient",
            lambda c: c.gradient("sin", np.linspace(0, 1, 1000), batched=True), "gradient",
            np.cos(np.linspace(0, 1, 1000))),
)  # fmt: skip


def _shown(value: Any) -> str:
    array = np.asarray(value)
    if array.size > 8:
        head, tail = (", ".join(f"{element:.6g}" for element in part) for part in (array[:2], array[-1:]))
        return f"[{head}, …, {tail}]"
    return np.array2string(array, precision=6, separator=", ", suppress_small=False).replace("\n", "")


def _row(client: Client, example: Example) -> tuple[tuple[str, ...], float]:
    example.call(client)  # compiles
    started = time.perf_counter()
    result = example.call(client)
    took = time.perf_counter() - started
    found = np.asarray(getattr(result, example.part))
    exact = np.asarray(example.exact)
    error = float(np.max(np.abs(found - exact)) / max(np.max(np.abs(exact)), np.finfo(float).tiny))
    operator = example.operator.replace("_", " ")
    row = (example.function, example.point, operator, _shown(found), _shown(exact), f"{error:.1e}",
           f"{took * 1e3:.2f} ms")  # fmt: skip
    return tuple(map(escape, row)), error


@click.command("demo")
@click.option("--svg", type=click.Path(dir_okay=False, writable=True), help="Also save what is printed as a picture.")
def demo(svg: str | None) -> None:
    """Start an embedded server on a free port and print derivatives that it computes, beside their exact values."""
    console = Console(width=None if sys.stdout.isatty() and not svg else 132, record=svg is not None)
    started = time.perf_counter()
    with embedded() as address, Client(address) as client:
        count = len(list(client.functions()))
        console.print(f"A server with {count} functions listens on {address}. Each line below is a gRPC call.\n")
        table = Table(header_style="bold", box=None, pad_edge=False)
        for column in ("function", "point", "operator", "result", "exact", "rel. error", "time"):
            table.add_column(column, overflow="fold", justify="right" if column in ("rel. error", "time") else "left")
        errors = []
        with console.status("compiling and calling") as status:
            for example in EXAMPLES:
                status.update(f"compiling and calling: {example.operator} of {example.function}")
                row, error = _row(client, example)
                table.add_row(*row)
                errors.append(error)
        console.print(table)
    console.print(
        f"\n{len(errors)} results, largest relative error {max(errors):.1e}; {time.perf_counter() - started:.1f} s "
        "in all, compiling included.\nTry it yourself: nablad serve, and in another terminal nablad list."
    )
    if svg is not None:
        console.save_svg(svg, title="nablad demo")
    if max(errors) > 1e-12:
        raise click.ClickException("a result differs from its exact value")
