# jaxtyping writes shapes as strings, which are not forward references:
# ruff: noqa: F722, F821
"""Responses written by hand are, byte for byte, what protobuf would have written."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from google.protobuf.message import Message
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import Array, Float

from nablad.tensors import to_tensor
from nablad.v1 import differentiation_pb2 as pb
from nablad.v1 import function_pb2
from nablad.v1.tensor_pb2 import Block, NamedTensor
from nablad_server.batching.ticket import Outcome
from nablad_server.derivatives.operators import OPERATORS, result_specs
from nablad_server.derivatives.query import Clip, Differences, Query
from nablad_server.derivatives.runner import Results
from nablad_server.functions.registration import build
from nablad_server.serving.layout import Layout
from nablad_server.serving.layout_rows import HeaderLayout
from queries import query_of, spec


def pair(x: Float[Array, "n"], y: Float[Array, ""]) -> Any:
    """Two outputs, `p` of n elements and the scalar `s`, of two inputs."""
    return {"p": x * y, "s": x @ x * y}


PAIR = build(pair, "test")
OUTPUTS = ("p", "s")
Label = tuple[str, ...]


class Case(NamedTuple):
    """A query, and for each field of its response what its tensors are called: an array, or a row and a column."""

    operator: str
    response: type[Message]
    options: dict[str, Any]
    labels: dict[str, list[Label]]

    def query(self, n: int, dtype: Any) -> Query:
        operator = function_pb2.Operator.Value(f"OPERATOR_{self.operator}")
        return query_of(PAIR, operator, (spec((n,), dtype), spec((), dtype)), **self.options)


P, S, X, Y, NORMS = ("p",), ("s",), ("x",), ("y",), ("norms",)
BOTH: dict[str, Any] = {"outputs": (0, 1)}
SCALAR: dict[str, Any] = {"outputs": (1,)}
DIFFERENCES: dict[str, Any] = {"differences": Differences(pb.DIFFERENCE_SCHEME_CENTRAL)}
CASES = {
    "evaluate": Case("EVALUATE", pb.EvaluateResponse, BOTH, {"values": [P, S]}),
    "gradient": Case(
        "GRADIENT", pb.GradientResponse, SCALAR, {"values": [S], "gradients": [X, Y], "norms": [NORMS]}),
    "gradient by y and x": Case(
        "GRADIENT", pb.GradientResponse, SCALAR | {"wrt": (1, 0)},
        {"values": [S], "gradients": [Y, X], "norms": [NORMS]}),
    "clipped gradient": Case(
        "GRADIENT", pb.GradientResponse, SCALAR | {"wrt": (0,), "clipping": Clip.VALUE},
        {"values": [S], "gradients": [X], "norms": [NORMS]}),
    "jacobian": Case(
        "JACOBIAN", pb.JacobianResponse, BOTH,
        {"values": [P, S], "blocks": [("p", "x"), ("p", "y"), ("s", "x"), ("s", "y")]}),
    "hessian": Case(
        "HESSIAN", pb.HessianResponse, SCALAR,
        {"values": [S], "gradients": [X, Y], "blocks": [("x", "x"), ("x", "y"), ("y", "x"), ("y", "y")]}),
    "hessian block": Case(
        "HESSIAN", pb.HessianResponse, SCALAR | {"wrt": (1,), "columns": (0,)},
        {"values": [S], "gradients": [Y], "blocks": [("y", "x")]}),
    "hessian diagonal": Case(
        "HESSIAN", pb.HessianResponse, SCALAR | {"diagonal": True},
        {"values": [S], "gradients": [X, Y], "diagonals": [X, Y]}),
    "estimated hessian diagonal": Case(
        "HESSIAN", pb.HessianResponse, SCALAR | {"diagonal": True, "samples": 3},
        {"values": [S], "gradients": [X, Y], "diagonals": [X, Y], "standard_errors": [X, Y]}),
    "laplacian": Case(
        "LAPLACIAN", pb.LaplacianResponse, SCALAR, {"values": [S], "gradients": [X, Y], "laplacian": [S]}),
    "estimated laplacian": Case(
        "LAPLACIAN", pb.LaplacianResponse, SCALAR | {"wrt": (0,), "samples": 2},
        {"values": [S], "gradients": [X], "laplacian": [S], "standard_error": [S]}),
    "hvp": Case(
        "HVP", pb.HvpResponse, SCALAR | {"vectors": (0, 1)},
        {"values": [S], "gradients": [X, Y], "products": [X, Y]}),
    "stacked hvp": Case(
        "HVP", pb.HvpResponse, SCALAR | {"vectors": (0,), "wrt": (0,), "stack": 3},
        {"values": [S], "gradients": [X], "products": [X]}),
    "jvp": Case("JVP", pb.JvpResponse, BOTH | {"vectors": (1,)}, {"values": [P, S], "products": [P, S]}),
    "stacked jvp": Case(
        "JVP", pb.JvpResponse, BOTH | {"vectors": (0, 1), "stack": 2}, {"values": [P, S], "products": [P, S]}),
    "gradient by differences": Case(
        "GRADIENT", pb.GradientResponse, SCALAR | DIFFERENCES,
        {"values": [S], "gradients": [X, Y], "errors": [X, Y], "norms": [NORMS]}),
    "jacobian by differences": Case(
        "JACOBIAN", pb.JacobianResponse, BOTH | {"wrt": (1,)} | DIFFERENCES,
        {"values": [P, S], "blocks": [("p", "y"), ("s", "y")], "errors": [("p", "y"), ("s", "y")]}),
    "hessian by differences": Case(
        "HESSIAN", pb.HessianResponse, SCALAR | {"wrt": (1,), "columns": (0,)} | DIFFERENCES,
        {"values": [S], "gradients": [Y], "blocks": [("y", "x")], "errors": [("y", "x")]}),
    "hvp by differences": Case(
        "HVP", pb.HvpResponse, SCALAR | {"vectors": (0, 1)} | DIFFERENCES,
        {"values": [S], "gradients": [X, Y], "products": [X, Y], "errors": [X, Y]}),
    "jvp by differences": Case(
        "JVP", pb.JvpResponse, BOTH | {"vectors": (1,)} | DIFFERENCES,
        {"values": [P, S], "products": [P, S], "errors": [P, S]}),
    "vjp": Case("VJP", pb.VjpResponse, BOTH | {"vectors": (0, 1)}, {"values": [P, S], "products": [X, Y]}),
    "stacked vjp": Case(
        "VJP", pb.VjpResponse, SCALAR | {"vectors": (1,), "stack": 1, "wrt": (0,)}, {"values": [S], "products": [X]}),
    "directional derivative": Case(
        "DIRECTIONAL_DERIVATIVE", pb.DirectionalDerivativeResponse, SCALAR | {"vectors": (0, 1)},
        {"values": [S], "derivative": [S], "steepest_ascent": [X, Y], "max_rate": [S]}),
    "derivative": Case(
        "DERIVATIVE", pb.DerivativeResponse, BOTH | {"wrt": (1,), "order": 3},
        {"values": [P, S], "derivatives": [P, S]}),
    "derivative along a line": Case(
        "DERIVATIVE", pb.DerivativeResponse, BOTH | {"wrt": (0,), "vectors": (0,), "order": 2},
        {"values": [P, S], "derivatives": [P, S]}),
}  # fmt: skip

DTYPES = (np.float64, np.float32, np.float16, ml_dtypes.bfloat16)
NUMBERS = st.sampled_from([0.0, -0.0, 1.5, -3.0, 1e200, float("inf"), float("-inf"), float("nan")])
SECONDS = st.just(0.0) | st.floats(1e-9, 1e6)


@st.composite
def outcomes(draw: Callable[..., Any], query: Query, count: int) -> tuple[Outcome, list[list[Any]]]:
    """An outcome of so many points in any number of pieces, and its arrays."""
    specs = result_specs(query)
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    cuts = sorted(draw(st.sets(st.integers(1, count - 1), max_size=3))) if count > 1 else []
    arrays = []
    for group in specs:
        arrays.append([random.normal(size=(count, *each.shape)).astype(each.dtype) for each in group])
        for array in arrays[-1]:
            if array.size and draw(st.booleans()):
                with np.errstate(over="ignore"):
                    array.reshape(-1)[random.integers(array.size)] = np.array(draw(NUMBERS)).astype(array.dtype)
    if query.operator == function_pb2.OPERATOR_GRADIENT:  # norms are at least as far from finite as their gradient
        for gradient in arrays[1]:
            arrays[-1][0][~np.isfinite(gradient).reshape(count, -1).all(axis=1), 0] = np.nan
    ordered = np.asfortranarray if draw(st.booleans()) else np.asarray
    pieces = tuple(
        tuple(tuple(ordered(piece) for piece in np.split(array, cuts)) for array in group) for group in arrays
    )
    points = draw(st.integers(1, 2**32 - 1))
    return Outcome(Results(pieces), points, draw(SECONDS), draw(SECONDS), draw(SECONDS)), arrays


def expected(case: Case, outcome: Outcome, arrays: list[list[Any]], batched: bool) -> Message:
    """The response, built by the library."""
    message = case.response()
    for (field, labels), group in zip(case.labels.items(), arrays, strict=True):
        made: list[Message] = []
        for label, array in zip(labels, group, strict=True):
            options: dict[str, Any] = {
                "tensor": to_tensor(array if batched else array[0]),
                "batched": batched,
                "non_finite": not np.isfinite(array.astype(np.float64)).all(),
            }
            if len(label) == 1:
                made.append(NamedTensor(name=label[0], **options))
            else:
                made.append(Block(row=label[0], column=label[1], **options))
        if message.DESCRIPTOR.fields_by_name[field].is_repeated:
            getattr(message, field).extend(made)
        else:
            (single,) = made
            getattr(message, field).CopyFrom(single)
    if isinstance(message, pb.GradientResponse) and (first := first_of(case, arrays, batched)) is not None:
        message.first_non_finite.CopyFrom(first)
    getattr(message, "execution").CopyFrom(  # noqa: B009 - every response has one, which the type Message does not know
        pb.Execution(
            function="pair@1",
            batch_points=outcome.batch_points,
            queue_nanoseconds=int(outcome.queue_seconds * 1e9),
            compile_nanoseconds=int(outcome.compile_seconds * 1e9),
            compute_nanoseconds=int(outcome.compute_seconds * 1e9),
        )
    )
    return message


def first_of(case: Case, arrays: list[list[Any]], batched: bool) -> pb.NonFinite | None:
    """The first element of values and gradients that is not finite, by a look at each in turn."""
    for (field, labels), group in zip(list(case.labels.items())[:2], arrays, strict=False):
        for number, ((name,), array) in enumerate(zip(labels, group, strict=True)):
            for index, element in np.ndenumerate(array if batched else array[0]):
                if not np.isfinite(float(element)):
                    return pb.NonFinite(field=f"{field}[{number}]", name=name, index=index)
    return None


def names(query: Query) -> Sequence[str]:
    return [OUTPUTS[index] for index in query.outputs]


@pytest.mark.parametrize("case", CASES.values(), ids=[name.replace(" ", "_") for name in CASES])
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_a_response_is_what_protobuf_would_have_written(case: Case, data: st.DataObject) -> None:
    query = case.query(data.draw(st.sampled_from([0, 1, 3, 130])), data.draw(st.sampled_from(DTYPES)))
    batched = data.draw(st.booleans())
    layout = Layout(query, batched, names(query))

    for _ in range(2):  # the second time most is remembered
        outcome, arrays = data.draw(outcomes(query, data.draw(st.integers(1, 40)) if batched else 1))
        parts, length = layout.write(outcome)

        written = b"".join(parts)
        message = expected(case, outcome, arrays, batched)
        assert case.response.FromString(written) == message or non_finite(message)
        assert written == message.SerializeToString(deterministic=True)
        assert length == len(written)


def non_finite(message: Any) -> bool:
    groups = [group for field, group in message.ListFields() if field.name not in ("first_non_finite", "execution")]
    return any(tensor.non_finite for group in groups for tensor in _each(group))


def _each(group: Any) -> Any:
    return [group] if isinstance(group, Message) else group


def integers(x: Float[Array, "n"]) -> Any:
    return {"count": jnp.sum(x > 0), "flags": x > 0, "complex": x * (1 + 2j)}


@pytest.mark.parametrize("batched", [False, True])
def test_values_of_other_dtypes_are_written_too(batched: bool) -> None:
    query = query_of(integers, function_pb2.OPERATOR_EVALUATE, (spec((2,)),), outputs=(0, 1, 2))
    named = [name for name, _ in query.function.outputs_at(query.inputs)]
    arrays = [np.ones((1, *each.shape), each.dtype) for each in result_specs(query)[0]]
    arrays[named.index("complex")][0, 1] = complex(0, np.inf)
    outcome = Outcome(Results((tuple((array,) for array in arrays),)), 1, 0.0, 0.0, 0.0)

    parts, length = Layout(query, batched, named).write(outcome)

    message = pb.EvaluateResponse.FromString(b"".join(parts))
    assert message.SerializeToString(deterministic=True) == b"".join(parts)
    assert length == message.ByteSize()
    for value, name, array in zip(message.values, named, arrays, strict=True):
        assert (value.name, value.batched, value.non_finite) == (name, batched, name == "complex")
        assert value.tensor == to_tensor(array if batched else array[0])


def test_responses_of_very_many_sizes_are_written() -> None:
    case = CASES["gradient"]
    layout = Layout(case.query(1, np.float64), True, ["s"])

    for count in [*range(1, 200), 1]:
        arrays = [[np.full((count,), 1.0)], [np.full((count, 1), 2.0), np.full((count,), 3.0)], [np.ones((count, 3))]]
        pieces = tuple(tuple((array,) for array in group) for group in arrays)
        outcome = Outcome(Results(pieces), count, 0.0, 0.0, 0.0)
        parts, _ = layout.write(outcome)
        assert pb.GradientResponse.FromString(b"".join(parts)) == expected(case, outcome, arrays, True)


def test_a_header_holds_values_and_gradients_and_nothing_else_of_a_response() -> None:
    case = CASES["gradient"]
    query = case.query(2, np.float64)
    arrays = [[np.array([1.0])], [np.array([[2.0, np.nan]]), np.array([3.0])], [np.full((1, 3), np.nan)]]
    pieces = tuple(tuple((array,) for array in group) for group in arrays)
    outcome = Outcome(Results(pieces), 1, 0.0, 0.0, 0.0)

    parts, length = HeaderLayout(query, ["s"]).write(outcome)

    response = expected(case, outcome, arrays, False)
    assert isinstance(response, pb.GradientResponse)
    header = pb.MatrixHeader(values=response.values, gradients=response.gradients, execution=response.execution)
    assert b"".join(parts) == header.SerializeToString(deterministic=True)
    assert length == header.ByteSize()


def test_every_operator_is_among_the_cases() -> None:
    asked = {function_pb2.Operator.Value(f"OPERATOR_{case.operator}") for case in CASES.values()}

    assert asked == set(OPERATORS)
