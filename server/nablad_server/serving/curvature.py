"""SummarizeCurvature: a request → the Hessian at each point, in numbers."""

import dataclasses

import numpy as np

from nablad.errors import ResultTooLarge, WrongShape
from nablad.v1 import diagnostics_pb2 as pb
from nablad.v1 import differentiation_pb2
from nablad_server.diagnosis.curvature import Curvature, curvatures, rounding_of
from nablad_server.diagnosis.matrices import assembled
from nablad_server.serving.decode import Decoder
from nablad_server.serving.waiting import joined, outcome_of
from nablad_server.serving.work import Desk

MAX_ROWS = 2048
"""Of one Hessian: the eigenvalues of n rows take about n³ operations, some seconds for so many."""

MAX_WORK = 4 * MAX_ROWS**3
"""Of all points of a call: n³ for each."""


def curvature(
    request: pb.SummarizeCurvatureRequest, decoder: Decoder, desk: Desk, seconds: float
) -> pb.SummarizeCurvatureResponse:
    """What the Hessian is like at each point. Blocks.

    Raises:
        ResultTooLarge: there are too many rows, or too many of them at too many points.
        DeadlineExceeded: it is not computed after so many seconds.
        NabladError: what a Hessian of this function and these inputs would be answered with.
    """
    query, points, _, _ = decoder.hessian(
        differentiation_pb2.HessianRequest(
            function=request.function, inputs=request.inputs, wrt=request.wrt, output=request.output
        )
    )
    rows, _ = query.matrix_shape
    if not rows:
        raise WrongShape(
            f"the Hessian of {query.function.reference} has no rows here: what it is differentiated with respect to "
            "has no elements. Give inputs that have some, or name others in wrt",
            field="inputs",
        )
    if rows > MAX_ROWS:
        raise ResultTooLarge(
            f"the Hessian of {query.function.reference} has {rows} rows here; the eigenvalues of at most {MAX_ROWS} "
            "are computed. Name fewer inputs in wrt, or find the extreme ones alone from products: with Linearize and "
            "Lanczos's method, as scipy.sparse.linalg.eigsh has it",
            field="wrt",
            metadata={"rows": str(rows), "limit": str(MAX_ROWS)},
        )
    if points.count * rows**3 > MAX_WORK:
        most = MAX_WORK // rows**3
        raise ResultTooLarge(
            f"{points.count} points with a Hessian of {rows} rows each; the eigenvalues of so many rows are computed "
            f"at no more than {most} points in one call. Send fewer points, or name fewer inputs in wrt",
            field="inputs",
            metadata={"points": str(points.count), "limit": str(most)},
        )
    outcome = outcome_of(desk, "SummarizeCurvature", query, points, seconds)
    _, gradients, blocks = joined(outcome.result)
    sizes = [query.inputs[index].size for index in query.wrt]
    matrices = assembled(blocks, sizes, sizes)
    slopes = [leaf.reshape(points.count, -1).astype(np.float64) for leaf in gradients]
    norms = np.linalg.norm(np.concatenate(slopes, axis=1), axis=1)
    return pb.SummarizeCurvatureResponse(
        function=query.function.reference,
        points=[
            _message(found, float(norm))
            for found, norm in zip(curvatures(matrices, rounding_of(blocks)), norms, strict=True)
        ],
        execution=differentiation_pb2.Execution(
            function=query.function.reference,
            batch_points=outcome.batch_points,
            queue_nanoseconds=int(outcome.queue_seconds * 1e9),
            compile_nanoseconds=int(outcome.compile_seconds * 1e9),
            compute_nanoseconds=int(outcome.compute_seconds * 1e9),
        ),
    )


def _message(found: Curvature, gradient_norm: float) -> pb.Curvature:
    numbers = {field.name: getattr(found, field.name) for field in dataclasses.fields(found)}
    numbers["definiteness"] = pb.Definiteness.Value(f"DEFINITENESS_{found.definiteness.name}")
    return pb.Curvature(**numbers, gradient_norm=gradient_norm)
