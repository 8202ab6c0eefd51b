"""What the command line prints: tables for people, JSON for programs."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from nablad.results import Cost, Explanation, FunctionInfo, Result, TensorInfo
from nablad.sparse import SparseMatrix
from nablad.tensors import Array

MAX_ELEMENTS = 400
"""Larger arrays are printed by their corners."""


def functions_table(functions: Iterable[FunctionInfo]) -> Table:
    """One line for each function."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("function", "engine", "inputs", "outputs", "summary"):
        table.add_column(column, overflow="fold")
    for info in functions:
        table.add_row(
            f"{info.name}@{info.version}",
            info.engine,
            escape(", ".join(map(_spec, info.inputs))),
            escape(", ".join(map(_spec, info.outputs))),
            escape(info.summary),
        )
    return table


def function_panel(info: FunctionInfo) -> RenderableType:
    """All that is known of one function, and a command to try it with."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    table.add_row("function", info.reference)
    table.add_row("source", escape(info.source))
    table.add_row("engine", info.engine)
    for kind, specs in (("input", info.inputs), ("output", info.outputs)):
        for spec in specs:
            note = "" if spec.differentiable else "  (not differentiated)"
            note += f"  in [{spec.domain[0]:g}, {spec.domain[1]:g}]" if spec.domain is not None else ""
            table.add_row(kind, escape(f"{_spec(spec)}  {'|'.join(spec.dtypes) or 'any dtype'}{note}"))
    table.add_row("operators", ", ".join(info.operators))
    example = " ".join(f"-i {spec.name}={_example(spec)}" for spec in info.inputs)
    operator = "gradient" if "gradient" in info.operators else "evaluate"
    table.add_row("try", escape(f"nablad {operator} {info.name} {example}"))
    return Group(Text(_unwrapped(info.documentation)), Text(""), table)


def explanation_panel(found: Explanation) -> RenderableType:
    """How a call would be answered, and a table of what it takes."""
    facts = Table(box=None, show_header=False, pad_edge=False)
    facts.add_column(style="bold")
    facts.add_column(overflow="fold")
    facts.add_row("call", f"{found.operator} of {found.function}")
    facts.add_row("accumulated", found.mode)
    facts.add_row("because", escape(found.reason))
    facts.add_row("result", _quantity(found.result_bytes, "B"))
    if found.nonzeros is not None:
        facts.add_row("sparsity", f"{found.nonzeros} elements from {found.colors} products")
    facts.add_row("ratio", f"{found.flops_ratio:.3g} × the function's operations, {found.seconds_ratio:.3g} × its time")
    costs = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("program", "points", "strategy", "time", "operations", "accessed", "memory", "compiled in"):
        costs.add_column(column, justify="left" if column in ("program", "strategy") else "right")
    costs.add_row("function", "1", "", *_cost(found.function_cost), "")
    for program in found.programs:
        costs.add_row(found.operator, str(program.points), program.strategy, *_cost(program.cost),
                      _quantity(program.compile_seconds, "s"))  # fmt: skip
    return Group(facts, Text(""), costs)


def result_table(function: str, operator: str, result: Result) -> RenderableType:
    """A result, an array a row, and how it came about."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("part")
    table.add_column("shape")
    table.add_column(f"{operator} of {escape(function)}", overflow="fold")
    for field in _fields(result):
        tree = getattr(result, field)
        if field == "norms" and not isinstance(tree, Mapping | list | tuple):
            continue  # of one input it is the norm over all of them
        for name, array in _arrays(field, tree):
            table.add_row(escape(name), escape(str(list(array.shape))), escape(_shown(array)))
    execution = result.execution
    took = f"{execution.function}, computed in {execution.compute_seconds * 1e6:.0f} µs"
    if execution.compile_seconds:
        took += f" after compiling for {execution.compile_seconds:.2f} s"
    flag = "; some elements are not finite" if result.non_finite else ""
    first = getattr(result, "first_non_finite", None)
    if first is not None:
        flag += f", the first is {first.field} ({first.name}) at {list(first.index)}"
    return Group(table, Text(took + flag, style="dim"))


def result_json(result: Result) -> dict[str, Any]:
    """A result for programs. JSON has no numbers for NaN and infinities: they are strings, "NaN" and "Infinity"."""
    found = {field: plain(getattr(result, field)) for field in _fields(result)}
    first = getattr(result, "first_non_finite", None)
    if first is not None:
        found["first_non_finite"] = {"field": first.field, "name": first.name, "index": list(first.index)}
    return found | {"non_finite": result.non_finite, "execution": dataclasses.asdict(result.execution)}


def function_json(info: FunctionInfo) -> dict[str, Any]:
    """A function's description for programs."""
    return dataclasses.asdict(info)


def _cost(cost: Cost) -> tuple[str, str, str, str]:
    return (
        _quantity(cost.seconds, "s") if cost.seconds else "unknown",
        _quantity(cost.flops, ""),
        _quantity(cost.accessed_bytes, "B"),
        _quantity(cost.memory_bytes, "B"),
    )


def _quantity(value: float, unit: str) -> str:
    """Three digits and a prefix: 0.00012 s is 120 µs."""
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""), (1e-3, "m")):
        if value >= factor or value == 0:
            return f"{value / (factor if value else 1):.3g} {prefix if value else ''}{unit}".rstrip()
    return f"{value / 1e-6:.3g} µ{unit}"


def _unwrapped(documentation: str) -> str:
    """The text with each paragraph on one line, for the terminal to wrap; lists and code keep their lines."""
    paragraphs = documentation.split("\n\n")
    fixed = [any(line.startswith((" ", "-", "*")) for line in text.split("\n")) for text in paragraphs]
    return "\n\n".join(text if keep else " ".join(text.split()) for text, keep in zip(paragraphs, fixed, strict=True))


def _fields(result: Result) -> list[str]:
    """The parts of a result that are there; of a sparse one the matrix, and not once more as SciPy's."""
    others = ("non_finite", "first_non_finite", "execution")
    names = [f.name for f in dataclasses.fields(result) if f.name not in others]
    there = [name for name in names if getattr(result, name) is not None]
    return [name for name in there if "sparse" not in there or name not in ("hessian", "jacobian")]


def _arrays(name: str, tree: Any) -> Iterator[tuple[str, Array]]:
    if isinstance(tree, Mapping):
        for key, child in tree.items():
            yield from _arrays(f"{name}[{key}]", child)
    elif isinstance(tree, list | tuple):
        for index, child in enumerate(tree):
            yield from _arrays(f"{name}[{index}]", child)
    elif isinstance(tree, SparseMatrix):
        yield from _arrays(name, _coordinates(tree))
    elif tree is not None:
        yield name, np.asarray(tree)


def _shown(array: Array) -> str:
    return np.array2string(array, precision=10, threshold=MAX_ELEMENTS, max_line_width=100, separator=", ")


def _coordinates(matrix: SparseMatrix) -> dict[str, Array]:
    pattern = matrix.sparsity
    return {"rows": pattern.row_indices, "columns": pattern.column_indices, "values": matrix.values}


def plain(tree: Any) -> Any:
    """What JSON can hold: lists for arrays, strings for NaN and infinities."""
    if isinstance(tree, SparseMatrix):
        return {"shape": list(tree.sparsity.shape)} | plain(_coordinates(tree))
    if isinstance(tree, Mapping):
        return {key: plain(child) for key, child in tree.items()}
    if isinstance(tree, list | tuple):
        return [plain(child) for child in tree]
    if isinstance(tree, np.ndarray):
        return plain(tree.astype(float).tolist() if tree.dtype.kind in "fV" else tree.tolist())
    if isinstance(tree, complex):
        return [plain(tree.real), plain(tree.imag)]
    if isinstance(tree, float) and not np.isfinite(tree):
        return "NaN" if np.isnan(tree) else "Infinity" if tree > 0 else "-Infinity"
    return tree


def _spec(spec: TensorInfo) -> str:
    if spec.shape is None:
        return f"{spec.name}[…]"
    return (
        f"{spec.name}[{', '.join('_' if dim is None else str(dim) for dim in spec.shape)}]" if spec.shape else spec.name
    )


def _example(spec: TensorInfo) -> str:
    """Some value that fits: ones, with 2 for every free size."""
    sizes = [dim if isinstance(dim, int) else 2 for dim in spec.shape or ()]
    one = "1" if spec.differentiable else "true" if spec.dtypes == ("bool",) else "0"
    text = ",".join([one] * (sizes[-1] if sizes else 1))
    for size in reversed(sizes[:-1]):
        text = "[" + ",".join([text if text.startswith("[") else f"[{text}]"] * size) + "]"
    return text or "[]"
