from concurrent.futures import ThreadPoolExecutor

import pytest

from bench import Make, draining, error, outcome
from nablad.errors import (
    CompileFailed,
    DeadlineExceeded,
    Draining,
    Internal,
    NabladError,
)
from puppets import SAFETY


@pytest.mark.parametrize("failure", [None, Draining("nothing more is compiled")])
def test_closing_waits_for_a_compilation_and_what_waits_for_it(bench: Make, failure: NabladError | None) -> None:
    b = bench()
    b.runner.make_cold("cold")
    ticket = b.submit("a", "cold")
    b.await_lane("cold")
    with ThreadPoolExecutor(1) as closer:
        closing = closer.submit(b.batcher.close)
        while not draining(b):
            pass
        b.runner.finish("cold", failure)
        closing.result(SAFETY)

    assert not ticket.answers.empty(), "answered before the batcher had closed"
    assert type(error(ticket)) is type(failure)


def test_a_key_that_is_refused_fails_its_tickets_each_with_its_own_error_and_recovers(bench: Make) -> None:
    b = bench()
    b.occupy()
    refusal = CompileFailed("cannot be", field="f", metadata={"a": "b"}, retry_after=2.0)
    b.runner.refusing["key"] = refusal
    tickets = [b.submit("a"), b.submit("b")]
    other = b.submit("c", "other")
    b.runner.let_go()

    errors = [error(ticket) for ticket in tickets]
    assert errors[0] is not errors[1]
    for failed in errors:
        assert isinstance(failed, CompileFailed)
        assert vars(failed) == vars(refusal)
    assert outcome(other).result == ("done", "c")
    assert b.runner.executed() == ["blocker", "c"]

    del b.runner.refusing["key"]
    assert outcome(b.submit("d")).result == ("done", "d")


def test_a_defect_of_the_runner_while_preparing_does_not_end_the_worker(bench: Make) -> None:
    b = bench()
    b.runner.refusing["key"] = ZeroDivisionError("a defect")

    assert isinstance(error(b.submit("a")), Internal)
    assert outcome(b.submit("b", "other")).result == ("done", "b")
    del b.runner.refusing["key"]
    assert outcome(b.submit("c")).result == ("done", "c")


def test_a_lane_that_is_not_ready_blocks_no_other_and_runs_whole_when_it_is(bench: Make) -> None:
    b = bench()
    b.runner.make_cold("cold")
    waiting = [b.submit(name, "cold") for name in "ab"]
    b.await_lane("cold")

    assert outcome(b.submit("c", "warm")).result == ("done", "c")
    assert b.batcher.waiting() == 2
    b.clock.advance(3.0)
    b.runner.finish("cold", seconds=2.0)

    assert [outcome(ticket).compile_seconds for ticket in waiting] == [2.0, 2.0]
    assert b.batches() == [("c",), ("a", "b")]


def test_a_ticket_waits_for_no_more_of_a_compilation_than_since_it_came(bench: Make) -> None:
    b = bench()
    b.runner.make_cold("cold")
    b.submit("a", "cold")
    b.await_lane("cold")
    b.clock.advance(3.0)
    late = b.submit("b", "cold")
    b.clock.advance(1.0)
    b.runner.finish("cold", seconds=4.0)

    assert outcome(late).compile_seconds == 1.0


def test_a_compilation_that_fails_fails_those_who_wait_for_it(bench: Make) -> None:
    b = bench()
    b.runner.make_cold("cold")
    tickets = [b.submit(name, "cold") for name in "ab"]
    b.await_lane("cold")
    b.runner.finish("cold", CompileFailed("cannot be"))

    assert all(isinstance(error(ticket), CompileFailed) for ticket in tickets)
    assert outcome(b.submit("again", "cold")).result == ("done", "again")
    assert b.batches() == [("again",)]


def test_a_compilation_may_end_after_everybody_has_left(bench: Make) -> None:
    b = bench()
    b.runner.make_cold("cold")
    gone = b.submit("gone", "cold")
    b.await_lane("cold")
    b.batcher.cancel(gone)
    b.runner.finish("cold")

    assert outcome(b.submit("next", "cold")).result == ("done", "next")
    assert b.batches() == [("next",)]


def test_deadlines_that_pass_during_a_compilation_cost_no_execution(bench: Make) -> None:
    b = bench()
    b.runner.make_cold("cold")
    late = b.submit("late", "cold", deadline=1.0)
    b.await_lane("cold")
    b.clock.advance(2.0)
    b.runner.finish("cold", seconds=2.0)

    assert isinstance(error(late), DeadlineExceeded)
    assert b.batches() == []
