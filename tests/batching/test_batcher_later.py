"""Tickets that come one by one and from any thread: what was cancelled before stays so."""

from collections.abc import Callable

import pytest

from bench import Asked, Bench
from nablad.errors import DeadlineExceeded, Draining, Internal, NabladError, QueueFull
from nablad_server.batching.ticket import Outcome, State
from puppets import SAFETY


def answer(ticket: Asked) -> Outcome | NabladError:
    return ticket.answers.get(timeout=SAFETY)


def test_a_ticket_offered_is_run_by_a_worker(bench: Callable[..., Bench]) -> None:
    place = bench()
    ticket = Asked("k", "p")
    place.batcher.offer(ticket)
    found = answer(ticket)
    assert isinstance(found, Outcome)
    assert found.result == ("done", "p")
    assert not place.batcher.cancel(ticket)


def test_a_ticket_cancelled_before_it_is_offered_is_not_run(bench: Callable[..., Bench]) -> None:
    place = bench()
    ticket, other = Asked("k", "p"), Asked("k", "q")
    assert place.batcher.cancel(ticket)
    place.batcher.offer(ticket)
    place.batcher.refuse(ticket, Internal("late"))
    place.batcher.offer(other)
    answer(other)
    assert ticket.answers.empty()
    assert [batch.payloads for batch in place.runner.batches] == [("q",)]


def test_a_ticket_refused_is_told_once_and_cannot_be_cancelled(bench: Callable[..., Bench]) -> None:
    place = bench()
    ticket = Asked("k", "p")
    error = Internal("no")
    place.batcher.refuse(ticket, error)
    place.batcher.refuse(ticket, error)
    assert answer(ticket) is error
    assert ticket.answers.empty()
    assert not place.batcher.cancel(ticket)
    place.batcher.offer(ticket)
    assert (ticket.state, place.batcher.waiting()) == (State.DROPPED, 0)


@pytest.mark.parametrize(
    ("policy", "deadline", "closed", "error"),
    [
        ({}, 0.0, False, DeadlineExceeded),
        ({}, float("inf"), True, Draining),
        ({"max_tickets": 0}, float("inf"), False, QueueFull),
    ],
)
def test_what_is_offered_in_vain_is_told_so(
    bench: Callable[..., Bench], policy: dict[str, int], deadline: float, closed: bool, error: type[NabladError]
) -> None:
    place = bench(**policy)
    if closed:
        place.batcher.close()
    ticket = Asked("k", "p", deadline=deadline)
    place.batcher.offer(ticket)
    assert isinstance(answer(ticket), error)
    assert not place.batcher.cancel(ticket)
