"""What a derivative costs and how it is come by, in numbers and in words."""

from typing import Any, NamedTuple

from nablad.v1 import differentiation_pb2, function_pb2
from nablad_server.derivatives.memory import memory_of
from nablad_server.derivatives.operators.differences import evaluations
from nablad_server.derivatives.operators.first import is_forward
from nablad_server.derivatives.operators.leaves import FORWARD, REVERSE
from nablad_server.derivatives.program import Program
from nablad_server.derivatives.query import Query


class Cost(NamedTuple):
    """What one execution of a program takes.

    Attributes:
        flops: floating-point operations, as the compiler counts them: the body of a loop once.
        accessed_bytes: bytes read and written, likewise.
        seconds: measured at a point of all ones; 0 if the function cannot be run there.
        memory_bytes: arguments, results and what lies between.
    """

    flops: float
    accessed_bytes: float
    seconds: float
    memory_bytes: int


def cost_of(program: Program) -> Cost:
    """The cost of one execution."""
    analysis: Any = program.executable.cost_analysis() or {}  # not every platform tells
    return Cost(
        max(0.0, float(analysis.get("flops", 0.0))),
        max(0.0, float(analysis.get("bytes accessed", 0.0))),
        program.seconds,
        memory_of(program.executable),
    )


def accumulation(query: Query) -> tuple[str, str]:
    """How the derivatives of a query are accumulated, and why so."""
    operator, asked = query.operator, query.mode in (FORWARD, REVERSE)
    if operator == function_pb2.OPERATOR_EVALUATE:
        return "none", "the function itself is evaluated"
    if query.differences is not None:
        scheme = differentiation_pb2.DifferenceScheme.Name(query.differences.scheme)
        words = scheme.removeprefix("DIFFERENCE_SCHEME_").lower()
        return "finite differences", f"the request asks for it; scheme {words}, {evaluations(query)} evaluations"
    if operator == function_pb2.OPERATOR_JVP:
        return "forward", "one pass along each tangent"
    if operator == function_pb2.OPERATOR_VJP:
        return "reverse", "one pass back from each cotangent"
    if operator == function_pb2.OPERATOR_DERIVATIVE:
        if query.order <= 2:
            return "forward", "nested first derivatives cost least up to order 2"
        return "Taylor", "all orders at once; nested forward where an operation has no Taylor rule"
    if operator == function_pb2.OPERATOR_JACOBIAN:
        rows, columns = query.matrix_shape
        if query.sparse and query.pattern is not None:
            coloring = query.pattern.coloring
            mode, lines = ("reverse", "rows") if coloring.by_rows else ("forward", "columns")
            return mode, f"a product for each of {coloring.count} colors of {lines}"
        if asked:
            return ("forward" if is_forward(query) else "reverse"), "the request asks for it"
        if is_forward(query):
            return "forward", f"{columns} elements of inputs are no more than {rows} of outputs"
        return "reverse", f"{columns} elements of inputs are more than {rows} of outputs"
    if operator in (function_pb2.OPERATOR_GRADIENT, function_pb2.OPERATOR_DIRECTIONAL_DERIVATIVE):
        if asked:
            return ("forward" if query.mode == FORWARD else "reverse"), "the request asks for it"
        return "reverse", "of one scalar it costs a few evaluations, however many inputs there are"
    inner = "forward" if query.mode == FORWARD else "reverse"
    outer = "reverse" if query.mode == REVERSE else "forward"
    reason = "the request asks for it" if asked else "the gradient in reverse, its derivative along vectors forward"
    return f"{outer} over {inner}", reason + _products(query)


def _products(query: Query) -> str:
    """How many products with the Hessian it takes, where the query says."""
    if query.samples:
        return f"; {query.samples} products with random vectors"
    if query.operator == function_pb2.OPERATOR_HVP:
        return f"; a product for each of {query.stack} tangents" if query.stack else ""
    if query.pattern is not None:
        return f"; a product for each of {query.pattern.coloring.count} colors"
    _, columns = query.matrix_shape
    return f"; a product for each of {columns} elements"
