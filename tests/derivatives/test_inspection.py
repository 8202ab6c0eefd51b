"""Inspections: which activations are seen, and that what is computed is what the function's own derivatives are."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nablad.errors import NotDifferentiable, ResultTooLarge
from nablad.tensors import Array
from nablad.v1 import function_pb2
from nablad_server.derivatives.activations import LARGEST_SLOPES
from nablad_server.derivatives.inspection import MAX_LAYERS, Inspection, Inspections
from nablad_server.derivatives.program import compile_program
from nablad_server.derivatives.query import Query
from queries import MEMORY, query_of, specs

X = np.linspace(-2.5, 3.0, 9)

NAMED: dict[str, Callable[..., Any]] = {
    kind: getattr(jax.nn, kind) for kind in sorted(LARGEST_SLOPES) if kind not in ("erf", "gelu")
}
WRITTEN: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "tanh": ("tanh", jnp.tanh),
    "erf": ("erf", jax.scipy.special.erf),
    "erfc": ("erf", jax.scipy.special.erfc),
    "maximum": ("relu", lambda x: jnp.maximum(x, 0)),
    "maximum from the right": ("relu", lambda x: jnp.maximum(0.0, x)),
    "gelu, approximate": ("gelu", jax.nn.gelu),
    "gelu, exact": ("gelu", lambda x: jax.nn.gelu(x, approximate=False)),
    "gelu, by hand": ("gelu", lambda x: 0.5 * x * (1 + jax.scipy.special.erf(x / np.sqrt(2)))),
    "silu, by hand": ("silu", lambda x: x * jax.nn.sigmoid(x)),
    "swish": ("silu", jax.nn.swish),
    "relu, by where": ("relu", lambda x: jnp.where(x > 0, x, 0)),
    "relu, by where, negated": ("relu", lambda x: jnp.where(x <= 0, 0.0, x)),
    "relu, by where, from the right": ("relu", lambda x: jnp.where(0 < x, x, 0)),  # noqa: SIM300 - that is the point
    "leaky relu, by where": ("leaky_relu", lambda x: jnp.where(x > 0, x, 0.1 * x)),
    "leaky": ("leaky_relu", lambda x: jax.nn.leaky_relu(x, 0.2)),
    "within jit": ("tanh", jax.jit(jax.jit(jnp.tanh))),
    "within checkpoint": ("tanh", jax.checkpoint(jnp.tanh)),
    "within vmap": ("sigmoid", jax.vmap(jax.nn.sigmoid)),
    "within a scan over elements": ("silu", lambda x: jax.lax.map(jax.nn.silu, x[None])[0]),
}


def inspected(call: Callable[..., Any], *arrays: Any) -> tuple[Inspection, list[Array]]:
    """The inspection of a scalar function, and what it gives at one point."""
    given = [np.asarray(array) for array in arrays]
    inspection = Inspection(gradient_of(call, *given))
    program = compile_program(inspection.trace({}), 1, MEMORY)
    assert program.groups == (3, 1)
    results = [result[0] for result in program.run([array[None] for array in given])]
    assert sum(result.nbytes for result in results) == inspection.result_bytes
    return inspection, results


def gradient_of(call: Callable[..., Any], *arrays: Any) -> Query:
    call.__name__ = "network"  # what is registered has a name, which lambdas have not
    return query_of(call, function_pb2.OPERATOR_GRADIENT, specs(arrays))


def rms(array: Any) -> float:
    return float(np.sqrt(np.mean(np.square(array))))


@pytest.mark.parametrize("kind", NAMED)
def test_activations_of_the_library_are_known_by_name(kind: str) -> None:
    check(kind, NAMED[kind])


@pytest.mark.parametrize("name", WRITTEN)
def test_activations_written_otherwise(name: str) -> None:
    check(*WRITTEN[name])


def check(kind: str, phi: Callable[[Any], Any]) -> None:
    """A layer of this kind between two linear ones: its output, the gradient there, saturation, and the input's."""

    def network(x: Any) -> Any:
        y = phi(2.0 * x)
        return jnp.sum(y * jnp.arange(1.0, 10.0)) ** 2

    inspection, (outputs, gradients, saturated, inputs) = inspected(network, X)

    assert [(layer.activation, layer.shape) for layer in inspection.layers] == [(kind, (9,))]
    assert inspection.layers[0].location.startswith("test_inspection.py:")
    y, slopes = np.asarray(phi(jnp.asarray(2 * X))), np.asarray(jax.vmap(jax.grad(lambda x: phi(x[None])[0]))(2 * X))
    weights = 2 * np.sum(y * np.arange(1, 10)) * np.arange(1, 10)
    assert outputs[0] == pytest.approx(rms(y), rel=1e-12)
    assert gradients[0] == pytest.approx(rms(weights), rel=1e-12)
    assert inputs[0] == pytest.approx(rms(weights * slopes * 2), rel=1e-12)
    assert saturated[0] == pytest.approx(np.mean(np.abs(slopes) < 0.01 * LARGEST_SLOPES[kind]), rel=1e-14)


@pytest.mark.parametrize("kind", LARGEST_SLOPES)
def test_the_largest_slopes_are_the_largest(kind: str) -> None:
    library = {"erf": jax.scipy.special.erf, "gelu": lambda x: jax.nn.gelu(x, approximate=False)}
    phi = library.get(kind) or NAMED[kind]
    slopes = np.abs(jax.vmap(jax.grad(phi))(jnp.linspace(-30.0, 30.0, 600_001)))
    assert np.max(slopes) == pytest.approx(LARGEST_SLOPES[kind], rel=2e-3)  # squareplus reaches it at infinity


def test_perturbations_agree_with_differences_of_the_rest_of_the_network() -> None:
    random = np.random.default_rng(5)
    first, second = random.normal(size=(4, 3)), random.normal(size=(2, 4))
    upper = lambda h: jnp.sum(jax.nn.softplus(second @ h) ** 2)

    _, (_, gradients, _, _) = inspected(lambda x: upper(jnp.tanh(first @ x)), random.normal(size=3))

    random = np.random.default_rng(5)
    random.normal(size=(4, 3)), random.normal(size=(2, 4))
    hidden, step = np.tanh(first @ random.normal(size=3)), 1e-6
    differences = [(upper(hidden + step * e) - upper(hidden - step * e)) / (2 * step) for e in np.eye(4)]
    assert gradients[0] == pytest.approx(rms(differences), rel=1e-8)


def test_scans_in_both_directions_are_unrolled_in_order() -> None:
    x = np.array([0.5, -1.0, 2.0])

    def network(xs: Any) -> Any:
        def step(state: Any, x: Any) -> tuple[Any, Any]:
            state = jnp.tanh(state + x)
            return state, state * x

        last, rows = jax.lax.scan(step, 0.25, xs, reverse=True)
        return last + jnp.sum(rows * jnp.array([1.0, 10.0, 100.0]))

    inspection, (outputs, _, _, inputs) = inspected(network, x)

    state, expected = 0.25, []
    for value in x[::-1]:
        state = np.tanh(state + value)
        expected.append(abs(state))
    np.testing.assert_allclose(outputs, expected, rtol=1e-14)
    np.testing.assert_allclose(inputs, [rms(jax.grad(network)(x))], rtol=1e-13)
    assert len(inspection.layers) == 3


def test_what_the_output_does_not_need_is_left_out() -> None:
    def network(x: Any) -> Any:
        unused = jnp.tanh(x)
        kept, _ = jax.jit(lambda x: (jax.nn.sigmoid(x), jnp.tanh(x)))(x)
        return {"a": jnp.sum(kept), "b": unused}

    inspection, _ = inspected(network, X)
    assert [layer.activation for layer in inspection.layers] == ["sigmoid"]


@jax.custom_jvp
def straight(x: Any) -> Any:
    """tanh with the derivative 1."""
    return jnp.tanh(x)


@straight.defjvp
def _(primals: Any, tangents: Any) -> Any:
    return straight(*primals), tangents[0]


def test_derivative_rules_are_kept() -> None:
    def network(x: Any) -> Any:
        return jnp.sum(jnp.tanh(straight(x)))

    inspection, (_, _, _, inputs) = inspected(network, X)
    assert len(inspection.layers) == 1
    assert inputs[0] == pytest.approx(rms(1 - np.tanh(np.tanh(X)) ** 2), rel=1e-13)


@pytest.mark.parametrize(
    "network",
    [
        lambda x: jnp.sum(x**2),
        lambda x: jnp.sum(straight(x)),
        lambda x: jnp.sum(jax.lax.cond(x[0] > 0, jnp.tanh, jnp.sin, x)),
        lambda x: jnp.sum(jax.nn.softmax(x)[0]),
        lambda x: jnp.sum(jnp.maximum(x, 1)),
        lambda x: jnp.sum(jnp.exp(x) * jnp.sin(x)),
        lambda x: jnp.sum(jnp.where(x > 1, x, 0)),
        lambda x: jnp.sum(jnp.where(x > 0, x, 1)),
        lambda x: jnp.sum(jnp.where(x > 0, x, x * x)),
        lambda x: jnp.sum(jnp.where(x > 0, 0, x)),
        lambda x: x[0] * jnp.sum(jnp.where(jnp.arange(9) > 0, jnp.arange(9), 0)),
    ],
)
def test_functions_without_a_known_activation_are_refused(network: Callable[[Any], Any]) -> None:
    with pytest.raises(NotDifferentiable, match="comes from no activation that is known"):
        Inspection(gradient_of(network, X))


def test_a_loop_of_unknown_length_cannot_be_gone_back_through() -> None:
    def network(x: Any) -> Any:
        doubled = jax.lax.while_loop(lambda y: jnp.sum(y) < 100, lambda y: 2 * y, x)
        return jnp.sum(jnp.tanh(doubled))

    with pytest.raises(NotDifferentiable, match="cannot differentiate it in reverse mode"):
        Inspection(gradient_of(network, X**2))


def test_products_that_are_no_gates() -> None:
    def network(x: Any) -> Any:
        gates = jax.nn.sigmoid(x[:4]) * jnp.tanh(x[4:8])  # as of an LSTM: two activations
        return jnp.sum(gates) + jnp.sum(jnp.tanh(x) * jax.nn.sigmoid(x))

    inspection, _ = inspected(network, X)
    assert sorted(layer.activation for layer in inspection.layers) == ["sigmoid", "sigmoid", "tanh", "tanh"]


def test_as_many_layers_as_there_may_be() -> None:
    def network(xs: Any) -> Any:
        return jax.lax.scan(lambda state, x: (jnp.tanh(state + x), None), jnp.zeros(()), xs)[0]

    inspection = Inspection(gradient_of(network, np.zeros(MAX_LAYERS)))
    assert inspection.layers == (inspection.layers[0],) * MAX_LAYERS
    with pytest.raises(ResultTooLarge, match=f"computes {MAX_LAYERS + 1} activations"):
        Inspection(gradient_of(network, np.zeros(MAX_LAYERS + 1)))


def test_functions_that_are_too_long_are_refused() -> None:
    def network(x: Any) -> Any:
        def step(state: Any, _: Any) -> tuple[Any, None]:
            for _ in range(100):
                state = jnp.sin(state)
            return jnp.tanh(state), None

        return jnp.sum(jax.lax.scan(step, x, None, length=500)[0])

    with pytest.raises(ResultTooLarge, match="operations one after the other"):
        Inspection(gradient_of(network, X))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_narrow_programs_keep_to_their_precision(dtype: str) -> None:
    x = jnp.asarray(X, dtype)
    _, (outputs, gradients, saturated, inputs) = inspected(lambda x: jnp.sum(jnp.tanh(x) * 2e-5), np.asarray(x))

    assert {array.dtype for array in (outputs, gradients, saturated, inputs)} == {np.dtype(np.float32)}
    assert gradients[0] == pytest.approx(2e-5, rel=0.05)  # its square is 0 in half precision
    assert outputs[0] == pytest.approx(rms(np.tanh(X)), rel=0.01)


def test_arrays_without_elements_are_no_layers() -> None:
    inspection, (_, _, _, inputs) = inspected(lambda x, y: jnp.sum(jnp.tanh(x)) + jnp.sum(jnp.tanh(y)), X, X[:0])
    assert len(inspection.layers) == 1
    assert inputs[1] == 0


def test_inspections_are_remembered_by_query() -> None:
    inspections, query = Inspections(), gradient_of(lambda x: jnp.sum(jnp.tanh(x)), X)
    assert inspections.of(query) is inspections.of(query)
