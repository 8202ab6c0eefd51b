"""The benchmark's closed forms against JAX, and what it takes for a wrong answer."""

from collections.abc import Iterator

import jax
import numpy as np
import pytest

from benchmarks import functions
from benchmarks.data import PARAMETERS
from benchmarks.jobs import WrongAnswer
from benchmarks.second_order import relaxation_hvp
from benchmarks.unary import Answers
from benchmarks.workloads import WORKLOADS, Exchange, answer, exchanges, flaw, prepared, request
from nablad.tensors import to_tensor
from nablad.v1 import differentiation_pb2 as pb
from nablad.v1 import tensor_pb2
from nablad_server.functions.sources.builtin.optimisation import rosenbrock

FUNCTIONS = {
    "rosenbrock": rosenbrock,
    "logistic_posterior": functions.logistic_posterior,
    "perceptron_loss": functions.perceptron_loss,
}


@pytest.fixture(autouse=True)
def double_precision() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("name", ["W1", "W3", "W4"])
def test_closed_forms_of_gradients(name: str) -> None:
    workload = WORKLOADS[name]
    points = workload.points(3)
    exact = jax.vmap(jax.value_and_grad(FUNCTIONS[workload.function]))(*points)
    assert flaw(workload.closed_form(*points), tuple(map(np.asarray, exact))) is None


def test_closed_form_of_the_relaxation_s_products() -> None:
    x, tangent = np.random.default_rng(0).normal(size=(2, 30))
    _, exact = jax.jvp(jax.grad(functions.relaxation), (x,), (tangent,))
    assert flaw((np.asarray(exact),), (relaxation_hvp(x, tangent),)) is None


def test_closed_form_of_the_hvp() -> None:
    x, tangent = WORKLOADS["W2"].points(1)
    *_, product = WORKLOADS["W2"].closed_form(x, tangent)
    _, exact = jax.jvp(jax.grad(rosenbrock), (x[0],), (tangent[0],))
    assert flaw((product[0],), (np.asarray(exact),)) is None


def test_closed_form_of_the_hessian() -> None:
    x = WORKLOADS["W6"].points(1)[0][:, :20]
    *_, hessian = WORKLOADS["W6"].closed_form(x)
    assert flaw((hessian[0],), (np.asarray(jax.hessian(rosenbrock)(x[0])),)) is None


def test_the_perceptron_has_as_many_parameters_as_its_signature_says() -> None:
    assert WORKLOADS["W4"].size == PARAMETERS


def response(exchange: Exchange) -> pb.GradientResponse:
    value, gradient = exchange.expected
    return pb.GradientResponse(
        values=[tensor_pb2.NamedTensor(name="value", tensor=to_tensor(value))],
        gradients=[tensor_pb2.NamedTensor(name="x", tensor=to_tensor(gradient))],
    )


def test_a_right_answer_has_no_flaw() -> None:
    exchange = prepared("W1")[0]
    assert exchange.flaw(response(exchange).SerializeToString()) is None


def test_one_element_slightly_off_is_a_flaw() -> None:
    exchange = prepared("W1")[0]
    _, gradient = exchange.expected
    right = answer("Gradient", response(exchange).SerializeToString())
    right[1][7] += 1e-7 * np.max(np.abs(gradient))
    assert "array 1 is off" in str(flaw(exchange.expected, right))


def test_nan_another_shape_and_a_missing_array_are_flaws() -> None:
    expected = (np.ones(3),)
    assert "off" in str(flaw(expected, (np.array([1, 1, np.nan]),)))
    assert "shape" in str(flaw(expected, (np.ones((1, 3)),)))
    assert "arrays" in str(flaw(expected, ()))


def test_a_wrong_answer_among_those_sampled_is_found() -> None:
    several = prepared("W1")
    answers = Answers(several, echo=None)
    answers.take(0, response(several[1]).SerializeToString())
    with pytest.raises(WrongAnswer, match="call 0"):
        answers.check()


def test_an_answer_of_another_length_is_found_though_it_is_not_sampled() -> None:
    answers = Answers(prepared("W1"), echo=1000)
    answers.take(0, bytes(1000))
    answers.take(1, bytes(999))
    with pytest.raises(WrongAnswer, match="call 1: 999 bytes"):
        answers.check()


def test_requests_are_distinct_and_batches_are_marked() -> None:
    alone = exchanges(WORKLOADS["W2"], 3)
    assert len({exchange.request for exchange in alone}) == 3
    assert not request(WORKLOADS["W2"], *(p[0] for p in WORKLOADS["W2"].points(1))).tangents[0].batched
    together = pb.HvpRequest.FromString(exchanges(WORKLOADS["W2"], 1, batch=5)[0].request)
    assert together.inputs[0].batched
    assert list(together.tangents[0].tensor.shape) == [5, 100]
