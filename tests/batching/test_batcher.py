import contextlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from bench import Make, Until, draining, error, outcome
from nablad.errors import (
    Cancelled,
    DeadlineExceeded,
    Draining,
    FunctionFailed,
    Internal,
    QueueFull,
)
from nablad_server.batching.batcher import Batcher
from nablad_server.batching.policy import Policy
from nablad_server.batching.ticket import Outcome, Ticket
from puppets import SAFETY, PuppetRunner


def test_an_idle_batcher_runs_a_ticket_without_waiting(bench: Make) -> None:
    b = bench()

    got = outcome(b.submit("a"))  # the clock stands still: no waiting window could pass

    assert got == Outcome(("done", "a"), batch_points=1, queue_seconds=0.0, compile_seconds=0.0, compute_seconds=0.0)


def test_a_batch_forms_while_the_worker_is_busy(bench: Make) -> None:
    b = bench()
    b.occupy()
    tickets = [b.submit(name, points=2) for name in "abc"]
    b.clock.advance(5.0)
    b.runner.let_go()

    outcomes = [outcome(ticket) for ticket in tickets]

    assert b.runner.asked[-1] == ("key", 6)
    assert b.batches() == [("a", "b", "c")]
    assert [got.result for got in outcomes] == [("done", name) for name in "abc"]
    assert {(got.batch_points, got.queue_seconds) for got in outcomes} == {(6, 5.0)}


def test_batches_hold_no_more_points_than_allowed_and_the_earliest_deadlines_first(bench: Make) -> None:
    b = bench(max_points=4)
    b.occupy()
    tickets = [b.submit(name, points=2, deadline=deadline) for name, deadline in zip("abcd", (9, 3, 7, 5), strict=True)]
    b.runner.let_go()
    for ticket in tickets:
        outcome(ticket)

    assert b.batches() == [("b", "d"), ("c", "a")]


def test_tickets_that_must_be_alone_are(bench: Make) -> None:
    b = bench()
    b.occupy()
    tickets = [b.submit("a"), b.submit("b", alone=True), b.submit("c", alone=True), b.submit("d")]
    b.runner.let_go()
    for ticket in tickets:
        outcome(ticket)

    assert b.batches() == [("a",), ("b",), ("c",), ("d",)]


def test_only_the_culprit_of_a_failed_batch_fails(bench: Make) -> None:
    b = bench()
    b.runner.failing["bad"] = FunctionFailed("raised by bad")
    b.occupy()
    tickets = {name: b.submit(name) for name in ("a", "b", "bad", "c")}
    b.runner.let_go()

    assert error(tickets["bad"]) is b.runner.failing["bad"]
    for name in "abc":
        assert outcome(tickets[name]).result == ("done", name)
        assert outcome(tickets[name]).batch_points == 1
    assert b.batches() == [("a", "b", "bad", "c"), ("a",), ("b",), ("bad",), ("c",)]


def test_a_ticket_that_fails_alone_is_not_run_again(bench: Make) -> None:
    b = bench()
    b.runner.failing["bad"] = FunctionFailed("raised by bad")

    assert isinstance(error(b.submit("bad")), FunctionFailed)
    assert b.runner.executed() == ["bad"]


def test_an_error_that_is_none_of_ours_becomes_internal_with_its_cause(bench: Make) -> None:
    b = bench()
    b.runner.failing["bad"] = ZeroDivisionError("in the runner")

    failed = error(b.submit("bad"))

    assert isinstance(failed, Internal)
    assert failed.__cause__ is b.runner.failing["bad"]
    assert outcome(b.submit("good")).result == ("done", "good")


def test_work_whose_deadline_passes_while_it_waits_is_never_run(bench: Make) -> None:
    b = bench()
    b.occupy()
    late, fine = b.submit("late", deadline=2.0), b.submit("fine", deadline=9.0)
    b.clock.advance(2.0)
    b.runner.let_go()

    assert isinstance(error(late), DeadlineExceeded)
    assert outcome(fine).result == ("done", "fine")
    assert b.batches() == [("fine",)]


def test_a_lane_in_which_all_deadlines_pass_runs_nothing(bench: Make) -> None:
    b = bench()
    b.occupy()
    late = [b.submit(name, deadline=1.0) for name in "ab"]
    b.clock.advance(3.0)
    b.runner.let_go()

    assert all(isinstance(error(ticket), DeadlineExceeded) for ticket in late)
    assert b.batches() == []
    assert b.batcher.waiting() == 0


def test_work_whose_deadline_has_passed_is_not_taken_on(bench: Make) -> None:
    b = bench()
    b.clock.advance(4.0)

    with pytest.raises(DeadlineExceeded):
        b.submit("late", deadline=4.0)
    assert b.batcher.waiting() == 0


def test_a_call_gives_up_at_its_deadline_and_its_work_is_not_done(bench: Make) -> None:
    b = bench()
    b.occupy()

    with pytest.raises(DeadlineExceeded, match="none was done"):
        b.batcher.call(b.ticket("late", deadline=0.001))
    b.runner.let_go()
    outcome(b.submit("next"))

    assert b.batches() == [("next",)]


def test_a_call_whose_work_is_under_way_at_its_deadline_says_so(bench: Make) -> None:
    b = bench()
    b.runner.hold()

    # The clock stands still, so that the ticket is in time whenever the worker takes it.
    with pytest.raises(DeadlineExceeded, match="under way"):
        b.batcher.call(b.ticket("slow", deadline=0.2), parked=Until(b.runner))


def test_a_waiting_call_is_parked_and_no_longer(bench: Make) -> None:
    b = bench()
    b.occupy()
    parked, left = threading.Event(), threading.Event()

    @contextlib.contextmanager
    def parking() -> Iterator[None]:
        parked.set()
        yield
        left.set()

    with ThreadPoolExecutor(1) as caller:
        call = caller.submit(b.batcher.call, b.ticket("a"), parking())
        assert parked.wait(SAFETY)
        assert not left.is_set()
        b.runner.let_go()
        assert call.result(SAFETY).result == ("done", "a")
    assert left.is_set()


def test_a_cancelled_ticket_is_never_run_and_the_others_are(bench: Make) -> None:
    b = bench()
    b.occupy()
    tickets = {name: b.submit(name) for name in "abc"}

    assert b.batcher.cancel(tickets["b"]) is True
    assert b.batcher.cancel(tickets["b"]) is False
    b.runner.let_go()

    assert outcome(tickets["a"]).result == ("done", "a")
    assert outcome(tickets["c"]).result == ("done", "c")
    assert tickets["b"].future.cancelled()
    assert b.batches() == [("a", "c")]


def test_a_cancelled_call_raises_cancelled(bench: Make) -> None:
    b = bench()
    b.occupy()
    ticket, parked = b.ticket("gone"), threading.Event()

    @contextlib.contextmanager
    def parking() -> Iterator[None]:
        parked.set()
        yield

    with ThreadPoolExecutor(1) as caller:
        call = caller.submit(b.batcher.call, ticket, parking())
        assert parked.wait(SAFETY)
        assert b.batcher.cancel(ticket) is True
        assert isinstance(call.exception(SAFETY), Cancelled)


def test_cancelling_what_runs_or_has_run_changes_nothing(bench: Make) -> None:
    b = bench()
    running = b.occupy()

    assert b.batcher.cancel(running) is False
    b.runner.let_go()
    assert outcome(running).result == ("done", "blocker")
    assert b.batcher.cancel(running) is False


def test_cancelling_a_ticket_that_was_never_submitted_harms_nobody(bench: Make) -> None:
    b = bench()
    b.occupy()
    neighbour = b.submit("neighbour", "key")

    assert b.batcher.cancel(b.ticket("early", "key"))
    assert b.batcher.waiting() == 1
    b.runner.let_go()
    assert outcome(neighbour).result == ("done", "neighbour")


@pytest.mark.parametrize(("limit", "message"), [({"max_tickets": 2}, "2 calls"), ({"max_bytes": 20}, "20 bytes")])
def test_a_full_queue_refuses_and_says_when_to_retry(bench: Make, limit: dict[str, int], message: str) -> None:
    b = bench(retry_seconds=0.25, **limit)
    b.occupy()
    first = b.submit("a", "one", size=10)
    b.submit("b", "two", size=10)

    with pytest.raises(QueueFull, match=message) as refused:
        b.submit("c", "three", size=10)
    assert refused.value.retry_after == 0.25

    b.batcher.cancel(first)
    third = b.submit("c", "three", size=10)
    b.runner.let_go()
    assert outcome(third).result == ("done", "c")
    assert b.batcher.waiting() == 0


def test_closing_finishes_what_waits_and_takes_nothing_on(bench: Make) -> None:
    b = bench(max_points=2)
    b.occupy()
    tickets = [b.submit(name, key) for name, key in zip("abcde", "xxxyz", strict=True)]
    with ThreadPoolExecutor(1) as closer:
        closing = closer.submit(b.batcher.close)
        while not draining(b):
            pass
        b.runner.let_go()
        closing.result(SAFETY)

    assert [outcome(ticket).result for ticket in tickets] == [("done", name) for name in "abcde"]
    assert b.batcher.waiting() == 0
    with pytest.raises(Draining):
        b.batcher.call(b.ticket("late"))


def test_a_stream_of_expensive_work_does_not_starve_cheap_work(bench: Make) -> None:
    b = bench(max_points=1)
    b.runner.seconds = {"hessian": 10.0, "gradient": 0.1}
    b.occupy()
    tickets = [b.submit(f"h{i}", "hessian") for i in range(3)] + [b.submit(f"g{i}", "gradient") for i in range(5)]
    b.runner.let_go()
    for ticket in tickets:
        outcome(ticket)

    assert [name for (name,) in b.batches()] == ["h0", "g0", "g1", "g2", "g3", "g4", "h1", "h2"]


def test_a_ticket_cancelled_before_it_is_submitted_is_never_run(bench: Make) -> None:
    made = bench()
    ticket = made.ticket("gone")
    assert made.batcher.cancel(ticket)
    with pytest.raises(Cancelled):
        made.batcher.submit(ticket)
    assert made.batcher.waiting() == 0
    assert made.runner.batches == []


def test_a_runner_that_loses_a_result_fails_the_call_and_not_the_worker() -> None:
    class Forgetful(PuppetRunner):
        def _execute(self, key: Any, payloads: Any) -> Any:
            return [] if payloads[0] == "lost" else super()._execute(key, payloads)

    batcher = Batcher(Forgetful(), Policy(workers=1, direct_seconds=0.0))
    lost, next_one = Ticket("key", "lost", 1, 1), Ticket("key", "next", 1, 1)
    batcher.submit(lost)
    with pytest.raises(Internal, match="0 results for 1 calls"):
        lost.future.result(SAFETY)
    batcher.submit(next_one)
    assert outcome(next_one).result == ("done", "next")
    batcher.close()
