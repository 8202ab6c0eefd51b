"""Results → responses: one function for each kind of response."""

from collections.abc import Iterable

import numpy as np

from nablad.tensors import Array, to_tensor
from nablad.v1 import differentiation_pb2 as pb
from nablad.v1 import tensor_pb2
from nablad_server.batching.ticket import Outcome
from nablad_server.serving.decode import Decoded


def evaluate(decoded: Decoded, outcome: Outcome) -> pb.EvaluateResponse:
    """The values of the outputs."""
    (values,) = outcome.result.groups
    return pb.EvaluateResponse(values=_named(decoded, decoded.outputs, values), execution=_execution(decoded, outcome))


def gradient(decoded: Decoded, outcome: Outcome) -> pb.GradientResponse:
    """The value and the gradient."""
    values, gradients = outcome.result.groups
    return pb.GradientResponse(
        values=_named(decoded, decoded.outputs, values),
        gradients=_named(decoded, _inputs(decoded, decoded.query.wrt), gradients),
        execution=_execution(decoded, outcome),
    )


def jacobian(decoded: Decoded, outcome: Outcome) -> pb.JacobianResponse:
    """The values and the blocks of the Jacobian."""
    values, blocks = outcome.result.groups
    columns = _inputs(decoded, decoded.query.wrt)
    return pb.JacobianResponse(
        values=_named(decoded, decoded.outputs, values),
        blocks=_blocks(decoded, decoded.outputs, columns, blocks),
        execution=_execution(decoded, outcome),
    )


def hessian(decoded: Decoded, outcome: Outcome) -> pb.HessianResponse:
    """The value, the gradient, and the blocks or the diagonal of the Hessian."""
    values, gradients, parts = outcome.result.groups
    rows = _inputs(decoded, decoded.query.wrt)
    response = pb.HessianResponse(
        values=_named(decoded, decoded.outputs, values),
        gradients=_named(decoded, rows, gradients),
        execution=_execution(decoded, outcome),
    )
    if decoded.query.diagonal:
        response.diagonals.extend(_named(decoded, rows, parts))
    else:
        response.blocks.extend(_blocks(decoded, rows, _inputs(decoded, decoded.query.columns), parts))
    return response


def hvp(decoded: Decoded, outcome: Outcome) -> pb.HvpResponse:
    """The value, the gradient, and the products."""
    values, gradients, products = outcome.result.groups
    names = _inputs(decoded, decoded.query.wrt)
    return pb.HvpResponse(
        values=_named(decoded, decoded.outputs, values),
        gradients=_named(decoded, names, gradients),
        products=_named(decoded, names, products),
        execution=_execution(decoded, outcome),
    )


def jvp(decoded: Decoded, outcome: Outcome) -> pb.JvpResponse:
    """The values and the products, output by output."""
    values, products = outcome.result.groups
    return pb.JvpResponse(
        values=_named(decoded, decoded.outputs, values),
        products=_named(decoded, decoded.outputs, products),
        execution=_execution(decoded, outcome),
    )


def vjp(decoded: Decoded, outcome: Outcome) -> pb.VjpResponse:
    """The values and the products, input by input."""
    values, products = outcome.result.groups
    return pb.VjpResponse(
        values=_named(decoded, decoded.outputs, values),
        products=_named(decoded, _inputs(decoded, decoded.query.wrt), products),
        execution=_execution(decoded, outcome),
    )


def directional_derivative(decoded: Decoded, outcome: Outcome) -> pb.DirectionalDerivativeResponse:
    """The value, the rate of change along the direction, and the steepest ascent."""
    values, derivative, ascent, rate = outcome.result.groups
    (along,) = _named(decoded, decoded.outputs, derivative)
    (largest,) = _named(decoded, decoded.outputs, rate)
    return pb.DirectionalDerivativeResponse(
        values=_named(decoded, decoded.outputs, values),
        derivative=along,
        steepest_ascent=_named(decoded, _inputs(decoded, decoded.query.wrt), ascent),
        max_rate=largest,
        execution=_execution(decoded, outcome),
    )


def derivative(decoded: Decoded, outcome: Outcome) -> pb.DerivativeResponse:
    """The values and the derivatives of all orders."""
    values, orders = outcome.result.groups
    return pb.DerivativeResponse(
        values=_named(decoded, decoded.outputs, values),
        derivatives=_named(decoded, decoded.outputs, orders),
        execution=_execution(decoded, outcome),
    )


def _inputs(decoded: Decoded, indices: Iterable[int]) -> tuple[str, ...]:
    inputs = decoded.query.function.signature.inputs
    return tuple(inputs[index].name for index in indices)


def _named(decoded: Decoded, names: Iterable[str], arrays: Iterable[Array]) -> list[tensor_pb2.NamedTensor]:
    batched = decoded.batched
    return [
        tensor_pb2.NamedTensor(
            name=name,
            tensor=to_tensor(array if batched else array[0]),
            batched=batched,
            non_finite=_non_finite(array),
        )
        for name, array in zip(names, arrays, strict=True)
    ]


def _blocks(
    decoded: Decoded, rows: Iterable[str], columns: Iterable[str], arrays: Iterable[Array]
) -> list[tensor_pb2.Block]:
    batched = decoded.batched
    names = [(row, column) for row in rows for column in columns]
    return [
        tensor_pb2.Block(
            row=row,
            column=column,
            tensor=to_tensor(array if batched else array[0]),
            batched=batched,
            non_finite=_non_finite(array),
        )
        for (row, column), array in zip(names, arrays, strict=True)
    ]


def _non_finite(array: Array) -> bool:
    # Of the dtypes on the wire only bfloat16, which numpy does not know, has the kind "V".
    return array.dtype.kind in "fcV" and not np.isfinite(array).all()


def _execution(decoded: Decoded, outcome: Outcome) -> pb.Execution:
    return pb.Execution(
        function=decoded.query.function.reference,
        batch_points=outcome.batch_points,
        queue_nanoseconds=int(outcome.queue_seconds * 1e9),
        compile_nanoseconds=int(outcome.compile_seconds * 1e9),
        compute_nanoseconds=int(outcome.compute_seconds * 1e9),
    )
