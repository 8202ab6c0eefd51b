from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from bench import Asked, Make, Observed, draining, error, outcome
from nablad.errors import DeadlineExceeded, Draining, FunctionFailed, Internal, QueueFull
from nablad_server.batching.batcher import Batcher
from nablad_server.batching.policy import Policy
from nablad_server.batching.ticket import Outcome
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


def test_what_would_run_in_a_later_execution_waits_on_and_can_be_cancelled(bench: Make) -> None:
    b = bench()
    b.runner.first["key"] = dict.fromkeys(range(20), 2)
    b.occupy()
    tickets = [b.submit(name) for name in "abcd"]
    b.runner.hold(["key"])
    b.runner.await_batches(2)

    assert b.batches() == [("a", "b")]
    assert b.batcher.cancel(tickets[2])
    b.runner.let_go()

    assert [outcome(tickets[index]).batch_points for index in (0, 1, 3)] == [2, 2, 1]
    assert b.batches() == [("a", "b"), ("d",)]


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
    outcomes = [outcome(tickets[name]) for name in "abc"]
    assert [got.result for got in outcomes] == [("done", name) for name in "abc"]
    assert [got.batch_points for got in outcomes] == [1, 1, 1]
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

    assert isinstance(error(b.submit("late", deadline=4.0)), DeadlineExceeded)
    assert b.batcher.waiting() == 0
    assert b.batches() == []


def test_a_cancelled_ticket_is_never_run_and_the_others_are(bench: Make) -> None:
    b = bench()
    b.occupy()
    tickets = {name: b.submit(name) for name in "abc"}

    assert b.batcher.cancel(tickets["b"]) is True
    assert b.batcher.cancel(tickets["b"]) is False
    b.runner.let_go()

    assert outcome(tickets["a"]).result == ("done", "a")
    assert outcome(tickets["c"]).result == ("done", "c")
    assert tickets["b"].answers.empty(), "who cancels is told nothing"
    assert b.batches() == [("a", "c")]


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

    refused = error(b.submit("c", "three", size=10))
    assert isinstance(refused, QueueFull)
    assert message in refused.message
    assert refused.retry_after == 0.25

    b.batcher.cancel(first)
    third = b.submit("c", "three", size=10)
    b.runner.let_go()
    assert outcome(third).result == ("done", "c")
    assert b.batcher.waiting() == 0


def test_what_was_refused_can_no_longer_be_cancelled(bench: Make) -> None:
    """Whoever cancels takes it that there will be no answer: there must not be both."""
    b = bench(max_tickets=1)
    b.runner.refusing["broken"] = FunctionFailed("does not compile")
    b.runner.estimates["light"] = 0.0
    b.occupy()
    b.submit("first", "lane")
    b.clock.advance(5.0)

    refused = {
        "full": b.submit("second", "lane"),
        "failed": b.submit("never", "broken"),
        "late": b.submit("late", "light", deadline=4.0),
        "late and heavy": b.submit("late", "lane", deadline=4.0),
    }

    assert {name: type(error(ticket)).__name__ for name, ticket in refused.items()} == {
        "full": "QueueFull",
        "failed": "FunctionFailed",
        "late": "DeadlineExceeded",
        "late and heavy": "DeadlineExceeded",
    }
    assert [b.batcher.cancel(ticket) for ticket in refused.values()] == [False] * 4
    b.runner.let_go()


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
    assert isinstance(error(b.submit("late")), Draining)


def test_a_stream_of_expensive_work_does_not_starve_cheap_work(bench: Make) -> None:
    b = bench(max_points=1)
    b.runner.seconds = {"hessian": 10.0, "gradient": 0.1}
    b.occupy()
    tickets = [b.submit(f"h{i}", "hessian") for i in range(3)] + [b.submit(f"g{i}", "gradient") for i in range(5)]
    b.runner.let_go()
    for ticket in tickets:
        outcome(ticket)

    assert [name for (name,) in b.batches()] == ["h0", "g0", "g1", "g2", "g3", "g4", "h1", "h2"]


def test_a_ticket_cancelled_before_it_is_taken_on_is_never_run(bench: Make) -> None:
    b = bench()
    gone, stays = b.ticket("gone"), b.ticket("stays")

    assert b.batcher.cancel(gone)
    b.batcher.take([gone, stays])

    assert outcome(stays).result == ("done", "stays")
    assert gone.answers.empty()
    assert b.batches() == [("stays",)]


def test_whoever_observes_is_told_of_each_execution_and_its_padding(bench: Make) -> None:
    b = bench()
    b.runner.seconds["key"], b.runner.padding["key"] = 0.5, 3
    b.runner.failing["bad"] = FunctionFailed("raised by bad")
    b.occupy()
    tickets = [b.submit("a", points=2), b.submit("b", points=3)]
    b.runner.let_go()
    for ticket in tickets:
        outcome(ticket)
    error(b.submit("bad"))
    b.batcher.close()

    assert [execution for execution in b.observed.executions if execution.key == "key"] == [("key", 5, 8, 0.5)]


def test_a_runner_that_loses_a_result_fails_the_call_and_not_the_worker() -> None:
    class Forgetful(PuppetRunner):
        def _execute(self, key: Any, payloads: Any) -> Any:
            return [] if payloads[0] == "lost" else super()._execute(key, payloads)

    batcher = Batcher(Forgetful(), Policy(heavy_workers=0), Observed())
    lost, next_one = Asked("key", "lost"), Asked("key", "next")
    batcher.take([lost])
    with pytest.raises(Internal, match="0 results for 1 calls"):
        outcome(lost)
    batcher.take([next_one])
    assert outcome(next_one).result == ("done", "next")
    batcher.close()
