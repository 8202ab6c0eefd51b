"""What becomes of products at one point: by themselves, or from a linearisation that is kept, and what that holds."""

import gc
import queue
import weakref
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from end_to_end.linearized_functions import pendulums
from nablad.errors import NabladError, NotDifferentiable
from nablad.tensors import Array
from nablad.v1 import function_pb2
from nablad_server.batching.batcher import Batcher
from nablad_server.batching.policy import Policy
from nablad_server.batching.ticket import Outcome, State, Ticket
from nablad_server.derivatives.cache import ProgramCache
from nablad_server.derivatives.linear import Linear
from nablad_server.derivatives.linear_runner import Budget, Linearization, LinearRunner
from nablad_server.derivatives.query import Query
from nablad_server.derivatives.runner import DerivativeRunner, Points
from nablad_server.serving.linearizer import Kept, Linearizer
from nablad_server.serving.statistics import Statistics
from pendulums import energy_gradient, energy_products
from puppets import SAFETY
from queries import query_of, spec

HVP, VJP = function_pb2.OPERATOR_HVP, function_pb2.OPERATOR_VJP
SIZE = 1000
X = np.linspace(-2.0, 2.0, SIZE)
AMPLE = 1 << 30


def light(x: Any) -> Any:
    return jnp.sum(x[:2] ** 3)


@jax.custom_vjp
def noisy(y: Any, key: Any) -> Any:
    return y


noisy.defvjp(lambda y, key: (y, key), lambda key, g: (g * jax.random.normal(key, g.shape), None))


def keyed(x: Any) -> Any:
    """A heavy function that leaves over what is no array: a random key that depends on the point."""
    key = jax.random.fold_in(jax.random.key(0), jnp.astype(x[0], jnp.int32))
    return pendulums(x) + jnp.sum(noisy(x, key))


class Place:
    """A batcher, with all that is behind it, that has compiled the product of a function by itself.

    Attributes:
        query: the product.
        answers: whatever tickets came to.
    """

    def __init__(self, function: Any, operator: Any = HVP, room: int = AMPLE) -> None:
        self.cache = ProgramCache(100, 64, 1 << 32)
        runner = LinearRunner(DerivativeRunner(self.cache, 64, 1 << 26), self.cache)
        self.batcher = Batcher(runner, Policy(), Statistics())
        self.budget = Budget(room)
        self.linearizer = Linearizer(self.cache, self.batcher, self.budget)
        query = query_of(function, operator, (spec((SIZE,)),))
        own = query.outputs if operator == VJP else query.wrt
        self.query: Query = query_of(query.function, operator, query.inputs, vectors=own)
        self.cache.wait(self.query, 1, SAFETY)
        self.kept = Kept(self.linearizer, self.query, (X.tobytes(),))
        self.answers: queue.SimpleQueue[Outcome | NabladError] = queue.SimpleQueue()

    @property
    def linear(self) -> Linear:
        return self.linearizer.linears.of(self.query)

    def compile(self) -> None:
        """Has the linear map's programs compiled."""
        for part in (self.linear.opening, self.linear.product):
            self.cache.wait(part, 1, SAFETY)

    def ticket(self, vector: Array) -> Ticket:
        return Ticket(self.query, Points(1, (X.tobytes(), vector.tobytes())), 1, 0, self.answers.put)

    def ask(self, vector: Array) -> Ticket:
        """Has a product computed, this way or that."""
        ticket = self.ticket(vector)
        if self.kept.direct(ticket, partial(Points, 1, (vector.tobytes(),))):
            self.batcher.take([ticket])
        return ticket

    def answer(self) -> Array:
        """The next product that is done."""
        outcome = self.answers.get(timeout=SAFETY)
        assert isinstance(outcome, Outcome), outcome
        product: Array = outcome.result.groups[-1][0][0][0]
        return product

    def close(self) -> None:
        self.kept.close()
        self.cache.close(SAFETY)
        self.batcher.close(SAFETY)


@pytest.fixture
def places() -> Iterator[list[Place]]:
    made: list[Place] = []
    yield made
    for place in made:
        place.close()


def expected(vector: Array) -> Array:
    found: Array = energy_products(X, [vector])[0]
    return found


def check(found: Array, wanted: Array) -> None:
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-11 * np.max(np.abs(wanted)))


VECTORS = np.random.default_rng(0).normal(size=(4, SIZE))


def test_heavy_products_wait_for_the_residuals_and_are_right(places: list[Place]) -> None:
    place = Place(pendulums)
    places.append(place)
    place.compile()

    tickets = [place.ask(vector) for vector in VECTORS]

    found = [place.answer() for _ in tickets]
    assert {type(ticket.key) for ticket in tickets} == {Linearization}
    assert len({ticket.key for ticket in tickets}) == 1
    order = np.argsort([product[0] for product in found])  # they may have been done in any order
    wanted = [expected(vector) for vector in VECTORS]
    for place_found, place_wanted in zip(order, np.argsort([product[0] for product in wanted]), strict=True):
        check(found[place_found], wanted[place_wanted])
    assert place.budget.used == place.linear.residual_bytes >= 200 * SIZE * 8


def test_until_the_programs_are_there_products_are_computed_by_themselves(places: list[Place]) -> None:
    place = Place(pendulums)
    places.append(place)
    ticket = place.ask(VECTORS[0])
    check(place.answer(), expected(VECTORS[0]))
    while ticket.key is place.query:
        ticket = place.ask(VECTORS[1])
        check(place.answer(), expected(VECTORS[1]))
    assert isinstance(ticket.key, Linearization)


def test_light_products_are_always_computed_by_themselves(places: list[Place]) -> None:
    place = Place(light)
    places.append(place)
    place.compile()
    for vector in VECTORS:
        assert place.ask(vector).key is place.query
        assert place.answer()[:2].tolist() == pytest.approx((6 * X[:2] * vector[:2]).tolist())
    assert place.budget.used == 0


def test_what_does_not_fit_is_computed_by_itself(places: list[Place]) -> None:
    place = Place(pendulums, room=1000)
    places.append(place)
    place.compile()
    assert place.linear.residual_bytes > 1000
    for vector in VECTORS:
        assert place.ask(vector).key is place.query
        check(place.answer(), expected(vector))
    assert place.budget.used == 0


def test_closing_gives_everything_back_at_once(places: list[Place]) -> None:
    place = Place(pendulums)
    places.append(place)
    place.compile()
    ticket = place.ask(VECTORS[0])
    place.answer()
    assert isinstance(ticket.key, Linearization)
    assert ticket.key.residuals is not None
    residuals = [weakref.ref(residual) for residual in ticket.key.residuals]
    assert place.budget.used == place.linear.residual_bytes

    gc.disable()  # nothing may be left to the collector of cycles
    try:
        place.kept.close()

        assert place.budget.used == 0
        assert [residual() for residual in residuals] == [None] * len(residuals)
    finally:
        gc.enable()
    assert vars(ticket.key)["residuals"] is None  # the lane may still be remembered, and holds nothing
    place.kept.close()
    assert place.budget.used == 0


def test_closing_while_the_residuals_are_computed_gives_everything_back(places: list[Place]) -> None:
    place = Place(pendulums)
    places.append(place)
    place.compile()
    tickets = [place.ask(vector) for vector in VECTORS]
    place.kept.close()
    cancelled = [place.batcher.cancel(ticket) for ticket in tickets]
    for done in cancelled:
        if not done:
            place.answers.get(timeout=SAFETY)
    assert place.batcher.close(SAFETY)
    assert place.budget.used == 0
    assert [ticket.state for ticket, done in zip(tickets, cancelled, strict=True) if done] == [State.DROPPED] * sum(
        cancelled
    )


def test_what_cannot_be_linearised_is_computed_by_itself(places: list[Place]) -> None:
    place = Place(keyed, VJP)
    places.append(place)
    one = np.ones(())
    place.ask(one)
    noise = place.answer() - energy_gradient(X)
    assert 0.9 < np.std(noise) < 1.1
    with pytest.raises(NotDifferentiable):
        place.compile()
    for _ in range(3):
        assert place.ask(one).key is place.query
        check(place.answer(), energy_gradient(X) + noise)
    assert place.budget.used == 0


def test_a_full_compile_queue_is_no_error(places: list[Place]) -> None:
    place = Place(pendulums)
    places.append(place)
    place.cache.close(SAFETY)  # compiles nothing more
    for _ in range(3):
        assert place.ask(VECTORS[0]).key is place.query
        check(place.answer(), expected(VECTORS[0]))
    assert place.budget.used == 0
