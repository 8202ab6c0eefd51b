"""Derivatives cut in two: the parts together give what the whole does, and only what depends on the point is kept."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.typing import ArrayLike

from end_to_end.linearized_functions import pendulums
from nablad.errors import Cancelled, NotDifferentiable
from nablad.tensors import Array
from nablad.v1 import function_pb2
from nablad_server.derivatives.cache import ProgramCache
from nablad_server.derivatives.linear import MAX_LINEARS, Linear, Linears, whole
from nablad_server.derivatives.linear_runner import Budget, Linearization, LinearRunner, PreparedOpening
from nablad_server.derivatives.program import HOISTED_BYTES, compile_program
from nablad_server.derivatives.query import Query
from nablad_server.derivatives.runner import DerivativeRunner, Points, Prepared
from pendulums import energy_gradient, energy_products
from queries import MEMORY, answer, query_of, spec, specs

JVP, VJP, HVP = function_pb2.OPERATOR_JVP, function_pb2.OPERATOR_VJP, function_pb2.OPERATOR_HVP

random = np.random.default_rng(7)
LARGE = random.normal(size=(100, 100))
assert LARGE.nbytes > HOISTED_BYTES


def quartic(x: Any) -> Any:
    """Its Hessian at x is diag(12 x²)."""
    return jnp.sum(x**4)


def masked(x: Any) -> Any:
    """Residuals that are boolean: where, relu, and a mask of its own."""
    return jnp.sum(jnp.where(x > 0.2, x**3, jnp.sin(x)) * jax.nn.relu(x + 0.1))


def sorted_weights(x: Any) -> Any:
    """Residuals that are integers: an order and a place."""
    order = jnp.argsort(x)
    return jnp.sum(x[order] ** 2 * jnp.arange(x.shape[0])) + x[jnp.argmax(x)] ** 3


def selected(x: Any, index: Any, mask: Any) -> Any:
    """Inputs that are carried: integers and booleans."""
    return jnp.sum(jnp.where(mask, x[index] ** 3, x[index]))


def several(a: Any, b: Any) -> Any:
    """Two inputs, three outputs."""
    return {"matrix": jnp.outer(a, jnp.sin(b)), "scalar": jnp.sum(a) ** 2 * jnp.prod(b), "vector": a * a}


def scalar_of_several(a: Any, b: Any) -> Any:
    return jnp.sum(a**3) * jnp.sum(jnp.cos(b))


def large_constant(x: Any) -> Any:
    return jnp.sum(jnp.tanh(LARGE @ x) ** 2)


def repeated(x: Any) -> Any:
    """A loop of unknown length, which only forward mode gets through."""
    return jax.lax.while_loop(lambda y: jnp.sum(y) < 100.0, lambda y: y * y + 1.0, x)


def cube(x: Any) -> Any:
    return x**3


def triple(x: Any) -> Any:
    return 3.0 * jnp.sum(x)


def custom(x: Any) -> Any:
    """A rule of its own, and memory saved by computing anew."""

    @jax.custom_jvp
    def cube(y: Any) -> Any:
        return y**3

    @cube.defjvp
    def _(primals: Any, tangents: Any) -> Any:
        (y,), (along,) = primals, tangents
        return y**3, 3 * y**2 * along

    return jnp.sum(jax.checkpoint(lambda y: jnp.sin(cube(y)))(x))


class Case(NamedTuple):
    function: Callable[..., Any]
    inputs: Sequence[ArrayLike]
    operators: Sequence[Any]
    outputs: tuple[int, ...] = (0,)
    wrt: tuple[int, ...] | None = None


X = random.normal(size=6)
CASES = {
    "quartic": Case(quartic, [X], [HVP, JVP, VJP]),
    "scan": Case(pendulums, [X], [HVP, JVP, VJP]),
    "float32": Case(pendulums, [X.astype(np.float32)], [HVP, JVP, VJP]),
    "masks": Case(masked, [X], [HVP, JVP, VJP]),
    "integer residuals": Case(sorted_weights, [X], [HVP, JVP, VJP]),
    "carried inputs": Case(selected, [X, np.array([1, 3]), np.array([True, False])], [HVP, JVP, VJP]),
    "carried inputs of float32": Case(
        selected, [X.astype(np.float32), np.array([1, 3], np.int32), np.array([True, False])], [HVP, JVP, VJP]
    ),
    "several outputs": Case(several, [X[:3], X[3:5]], [JVP, VJP], outputs=(2, 0, 1)),
    "one of several inputs": Case(several, [X[:3], X[3:5]], [JVP, VJP], outputs=(0, 1, 2), wrt=(1,)),
    "inputs in another order": Case(scalar_of_several, [X[:3], X[3:5]], [HVP, JVP, VJP], wrt=(1, 0)),
    "large constant": Case(large_constant, [random.normal(size=100)], [HVP, JVP, VJP]),
    "loop of unknown length": Case(repeated, [np.array([0.5, 0.25])], [JVP]),
    "custom rule": Case(custom, [X], [HVP, JVP, VJP]),
    "no dimension": Case(cube, [np.float64(2.0)], [HVP, JVP, VJP]),
    "no element": Case(quartic, [np.empty(0)], [HVP, JVP, VJP]),
}
EACH = [(name, operator) for name, case in CASES.items() for operator in case.operators]


def query_for(case: Case, operator: Any) -> Query:
    options: dict[str, Any] = {"outputs": case.outputs}
    if case.wrt is not None:
        options["wrt"] = case.wrt
    query = query_of(case.function, operator, specs(case.inputs), **options)
    vectors = query.outputs if operator == VJP else query.wrt
    return replace(query, vectors=vectors, shared=())


def opened(linear: Linear, inputs: Sequence[ArrayLike]) -> tuple[jax.Array, ...]:
    """The residuals at a point."""
    opening = compile_program(linear.traced({})[0], 1, MEMORY)
    data = [np.asarray(array, given.dtype).tobytes() for array, given in zip(inputs, linear.query.inputs, strict=True)]
    (residuals,) = PreparedOpening(linear.opening, opening)([Points(1, tuple(data))])
    return residuals


def products(linear: Linear, residuals: Sequence[Any], vectors: Sequence[Array], bucket: int) -> list[Array]:
    """The products of so many vectors."""
    return compile_program(linear.traced({})[1], bucket, MEMORY).run([*residuals, *vectors])


def vectors_for(query: Query, count: int) -> list[Array]:
    own = query.arrays[len(query.inputs) :]
    return [random.normal(size=(count, *given.shape)).astype(given.dtype) for given in own]


@pytest.mark.parametrize(("name", "operator"), EACH, ids=[f"{name}-{operator}" for name, operator in EACH])
def test_the_parts_give_what_the_whole_does(name: str, operator: Any) -> None:
    case = CASES[name]
    query = query_for(case, operator)
    linear = Linear(query)
    vectors = vectors_for(query, 4)

    found = products(linear, opened(linear, case.inputs), vectors, 4)

    eps = 64 * np.finfo(query.inputs[0].dtype).eps
    for index in range(4):
        expected = answer(query, *case.inputs, *(vector[index] for vector in vectors))[-1]
        assert [array.dtype for array in found] == [array.dtype for array in expected]
        for mine, its in zip(found, expected, strict=True):
            scale = np.max(np.abs(its), initial=1.0)
            terms = 100 if name in ("scan", "large constant") else 1  # of both signs, in a sum
            np.testing.assert_allclose(mine[index], its, rtol=0, atol=eps * scale * terms)


def test_closed_forms() -> None:
    residuals: Any
    x = np.array([1.0, -2.0, 0.5])
    v = np.array([[1.0, 2.0, 3.0], [0.0, 1.0, 0.0]])
    for operator, vectors, expected in (
        (HVP, v, 12 * x**2 * v),
        (JVP, v, (4 * x**3 * v).sum(axis=1)),
        (VJP, np.array([2.0, 3.0]), np.outer([2.0, 3.0], 4 * x**3)),
    ):
        linear = Linear(query_for(Case(quartic, [x], []), operator))
        residuals = opened(linear, [x])
        (found,) = products(linear, residuals, [vectors], 2)
        np.testing.assert_allclose(found, expected, rtol=1e-14)
        assert linear.residual_bytes == sum(residual.nbytes for residual in residuals)


def test_a_scan_by_hand() -> None:
    v = random.normal(size=(2, 6))
    gradient = energy_gradient(X)
    for operator, vectors, expected in (
        (HVP, v, energy_products(X, v)), (JVP, v, v @ gradient), (VJP, v[:, 0], np.outer(v[:, 0], gradient)),
    ):  # fmt: skip
        linear = Linear(query_for(CASES["scan"], operator))
        (found,) = products(linear, opened(linear, [X]), [vectors], 2)
        np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-12)


def test_only_what_depends_on_the_point_is_kept() -> None:
    linear = Linear(query_for(CASES["large constant"], JVP))
    linear.traced({})
    # The slope at each of the hundred sums, and the sums doubled; the constant is the program's own.
    assert 0 < linear.residual_bytes <= 4 * 100 * 8


def test_a_linear_function_keeps_no_more_than_its_factor() -> None:
    linear = Linear(query_for(Case(triple, [X], []), JVP))
    residuals = opened(linear, [X])
    assert linear.residual_bytes <= 8
    assert products(linear, residuals, [np.ones((2, 6))], 2)[0].tolist() == [18.0, 18.0]


def test_what_cannot_be_kept_is_refused_by_name() -> None:
    @jax.custom_vjp
    def noisy(y: Any, key: Any) -> Any:
        return y

    noisy.defvjp(lambda y, key: (y, key), lambda key, g: (g * jax.random.normal(key, g.shape), None))

    def keyed(x: Any) -> Any:
        """A residual that is no array: a random key that depends on the point."""
        return jnp.sum(noisy(x, jax.random.fold_in(jax.random.key(0), jnp.astype(x[0], jnp.int32))))

    with pytest.raises(NotDifferentiable, match="cannot be linearized ahead of its vectors"):
        Linear(query_for(Case(keyed, [X], []), VJP)).traced({})


def test_a_loop_of_unknown_length_is_refused_in_reverse() -> None:
    with pytest.raises(NotDifferentiable, match="cannot be linearized ahead of its vectors"):
        Linear(query_for(CASES["loop of unknown length"], VJP)).traced({})


def test_whole_has_a_vector_for_everything_and_none_stacked() -> None:
    inputs = (spec((3,)), spec((2,)))
    hvp = query_of(scalar_of_several, HVP, inputs, wrt=(0, 1), vectors=(1,), stack=5)
    assert (whole(hvp).vectors, whole(hvp).stack, whole(hvp).shared) == ((0, 1), None, (False,) * 4)
    vjp = query_of(several, VJP, inputs, outputs=(0, 2), wrt=(1,), vectors=(2,))
    assert (whole(vjp).vectors, whole(vjp).shared) == ((0, 2), (False,) * 4)


def test_a_query_has_one_linear_map_and_few_are_remembered() -> None:
    linears = Linears()
    first = query_for(CASES["quartic"], HVP)
    assert linears.of(first) is linears.of(replace(first))
    kept = linears.of(first)
    for size in range(MAX_LINEARS):
        linears.of(query_of(first.function, JVP, (spec((size,)),), vectors=(0,)))
    assert linears.of(first) is not kept


def test_a_budget_is_never_exceeded() -> None:
    budget = Budget(100)
    assert budget.reserve(60)
    assert not budget.reserve(41)
    assert budget.reserve(40)
    budget.release(60)
    assert budget.used == 40


def test_products_ride_together_and_a_released_point_is_refused() -> None:
    cache = ProgramCache(100, 64, MEMORY)
    runner = LinearRunner(DerivativeRunner(cache, 64, 1 << 26), cache)
    linear = Linear(query_for(CASES["scan"], HVP))
    cache.wait(linear.opening, 1, 60)
    cache.wait(linear.product, 4, 60)
    opening = runner.prepare(linear.opening, 1, lambda *_: None)
    assert isinstance(opening, PreparedOpening)
    (residuals,) = opening([Points(1, (X.tobytes(),))])
    at = Linearization(linear, residuals)
    v = random.normal(size=(3, 6))

    prepared = runner.prepare(at, 3, lambda *_: None)

    assert isinstance(prepared, Prepared)
    one, two = prepared([Points(1, (v[:1].tobytes(),)), Points(2, (v[1:].tobytes(),))])
    found = np.concatenate([one.groups[0][0][0], two.groups[0][0][0]])
    np.testing.assert_allclose(found, energy_products(X, v), rtol=1e-11, atol=1e-12)
    at.release()
    with pytest.raises(Cancelled, match="has ended"):
        runner.prepare(at, 1, lambda *_: None)
    again = prepared([Points(3, (v.tobytes(),))])  # what runs has them until it is done
    np.testing.assert_allclose(again[0].groups[0][0][0], found, rtol=1e-12)
    cache.close()
