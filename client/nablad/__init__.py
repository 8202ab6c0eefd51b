"""Derivatives as a service: the client.

    from nablad import Client

    with Client("127.0.0.1:50051") as client:
        f = client.function("rosenbrock")
        result = f.gradient([1.0, 2.0, 3.0])
        result.value, result.gradient

`nablad.aio` has the same for asyncio, `nablad.errors` what calls raise, `nablad.v1` the generated messages.
"""

from nablad import aio, errors
from nablad._calls import Mode
from nablad._differences import Differences
from nablad._secured import Tls
from nablad.client import Client, Function
from nablad.errors import NabladError
from nablad.linearize import Linearization
from nablad.pipeline import Pipeline
from nablad.reports import (
    Comparison,
    Curvature,
    DerivativeCheck,
    GradientCheck,
    Histogram,
    InputCheck,
    Layer,
    LayerReport,
    OperatorStatistics,
    Reload,
)
from nablad.results import (
    Cost,
    Derivative,
    DirectionalDerivative,
    Evaluation,
    Execution,
    Explanation,
    FunctionInfo,
    Gradient,
    Hessian,
    Hvp,
    Jacobian,
    Jvp,
    Laplacian,
    NonFinite,
    ProgramInfo,
    RowBlock,
    TensorInfo,
    Vjp,
)
from nablad.rows import RowStream
from nablad.sparse import MatrixAxis, SparseMatrix, Sparsity

__all__ = [
    "Client",
    "Comparison",
    "Cost",
    "Curvature",
    "Derivative",
    "DerivativeCheck",
    "Differences",
    "DirectionalDerivative",
    "Evaluation",
    "Execution",
    "Explanation",
    "Function",
    "FunctionInfo",
    "Gradient",
    "GradientCheck",
    "Hessian",
    "Histogram",
    "Hvp",
    "InputCheck",
    "Jacobian",
    "Jvp",
    "Laplacian",
    "Layer",
    "LayerReport",
    "Linearization",
    "MatrixAxis",
    "Mode",
    "NabladError",
    "NonFinite",
    "OperatorStatistics",
    "Pipeline",
    "ProgramInfo",
    "Reload",
    "RowBlock",
    "RowStream",
    "SparseMatrix",
    "Sparsity",
    "TensorInfo",
    "Tls",
    "Vjp",
    "aio",
    "errors",
]
