"""What is light runs in the thread that it arrived in, together with what arrived with it."""

import random
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from bench import NEVER, Asked, Bench, Make, error, outcome
from nablad.errors import CompileFailed, DeadlineExceeded, Draining, FunctionFailed, Internal
from puppets import MEDIUM, SAFETY

LIGHT = 5e-5


def light(b: Bench, *keys: str) -> None:
    """Has the runner say that these keys are light."""
    b.runner.estimates |= dict.fromkeys(keys or ["key"], LIGHT)


def test_light_work_runs_in_the_callers_thread(bench: Make) -> None:
    b = bench()
    light(b)
    b.runner.seconds["key"] = LIGHT

    got = outcome(b.submit("light"))

    assert b.runner.batches[0].thread == threading.get_ident()
    assert got.result == ("done", "light")
    assert (got.batch_points, got.queue_seconds, got.compile_seconds) == (1, 0.0, 0.0)
    assert got.compute_seconds == pytest.approx(LIGHT)


@pytest.mark.parametrize("seconds", [MEDIUM, 1.0])
def test_other_work_runs_in_a_worker(bench: Make, seconds: float) -> None:
    b = bench(heavy_workers=1)
    b.runner.estimates["key"] = seconds

    assert outcome(b.submit("a")).result == ("done", "a")

    assert b.runner.batches[0].thread != threading.get_ident()


def test_what_calls_back_never_runs_in_the_callers_thread_however_light_it_seems(bench: Make) -> None:
    b = bench(heavy_workers=1)
    light(b)
    b.runner.calling_back.add("key")
    tickets = [b.ticket(name) for name in "abc"]

    b.batcher.take(tickets)
    for ticket in tickets:
        outcome(ticket)
    outcome(b.submit("later"))

    assert threading.get_ident() not in {batch.thread for batch in b.runner.batches}


def test_heavy_work_never_occupies_the_light_worker(bench: Make) -> None:
    b = bench(heavy_workers=2)
    heavy = ["heavy 0", "heavy 1", "calls back"]
    b.runner.estimates |= {"heavy 0": 1.0, "heavy 1": 1.0}
    b.runner.calling_back.add("calls back")
    b.runner.hold(heavy)
    first = [b.submit(key, key) for key in heavy[:2]]
    b.runner.await_batches(2)
    third = b.submit("calls back", "calls back")

    assert outcome(b.submit("a", "medium")).result == ("done", "a")
    assert "calls back" not in b.runner.executed(), "all workers for heavy work are held"
    b.runner.let_go()
    for ticket in [*first, third]:
        outcome(ticket)

    threads = {key: batch.thread for batch in b.runner.batches for key in batch.payloads}
    assert threads["a"] not in {threads[key] for key in heavy}


def test_what_arrives_together_and_asks_the_same_runs_together(bench: Make) -> None:
    b = bench()
    light(b, "x", "y")
    tickets = [b.ticket(name, key, points=2) for name, key in zip("abcde", "xyxyx", strict=True)]

    b.batcher.take(tickets)

    outcomes = [outcome(ticket) for ticket in tickets]
    assert b.batches() == [("a", "c", "e"), ("b", "d")]
    assert b.runner.asked == [("x", 6), ("y", 4)]
    assert [got.result for got in outcomes] == [("done", name) for name in "abcde"]
    assert [got.batch_points for got in outcomes] == [6, 4, 6, 4, 6]
    assert {batch.thread for batch in b.runner.batches} == {threading.get_ident()}


def test_what_arrives_together_holds_no_more_points_than_a_batch_may(bench: Make) -> None:
    b = bench(max_points=4)
    light(b)
    tickets = [b.ticket(name, points=points) for name, points in zip("abcdef", (2, 2, 1, 9, 3, 1), strict=True)]

    b.batcher.take(tickets)

    assert b.batches() == [("a", "b"), ("c",), ("d",), ("e", "f")]
    assert [outcome(ticket).result for ticket in tickets] == [("done", name) for name in "abcdef"]


def test_what_must_be_alone_is_alone_among_what_arrives_with_it(bench: Make) -> None:
    b = bench()
    light(b)
    tickets = [b.ticket(name, alone=name in "bc") for name in "abcd"]

    b.batcher.take(tickets)

    assert sorted(b.batches()) == [("a", "d"), ("b",), ("c",)]
    assert [outcome(ticket).result for ticket in tickets] == [("done", name) for name in "abcd"]


def test_an_expired_ticket_among_what_arrives_together_is_not_run(bench: Make) -> None:
    b = bench()
    light(b)
    b.clock.advance(4.0)
    tickets = {name: b.ticket(name, deadline=deadline) for name, deadline in zip("abcd", (9, 4, 5, 3), strict=True)}

    b.batcher.take(list(tickets.values()))

    assert b.batches() == [("a", "c")]
    assert all(isinstance(error(tickets[name]), DeadlineExceeded) for name in "bd")
    assert [outcome(tickets[name]).batch_points for name in "ac"] == [2, 2]


def test_none_is_lost_when_what_is_left_of_a_group_runs_in_parts(bench: Make) -> None:
    b = bench()
    light(b)
    tickets = {name: b.ticket(name, deadline=0.0 if name == "late" else NEVER) for name in ("a", "late", "b", "c")}
    b.runner.first["key"] = {4: 4, 3: 1, 2: 1, 1: 1}  # four fit into one execution, three do not

    b.batcher.take(list(tickets.values()))

    assert isinstance(error(tickets["late"]), DeadlineExceeded)
    assert [outcome(tickets[name]).result for name in "abc"] == [("done", name) for name in "abc"]
    assert b.batches() == [("a",), ("b",), ("c",)]


def test_of_several_executions_each_is_answered_when_it_is_done(bench: Make) -> None:
    b = bench()
    light(b)
    b.runner.first["key"] = dict.fromkeys(range(20), 3)
    b.runner.seconds["key"] = 1e-3
    tickets = [b.ticket(name, points=points) for name, points in zip("abcd", (2, 1, 2, 9), strict=True)]

    b.batcher.take(tickets)

    assert b.batches() == [("a", "b"), ("c",), ("d",)]
    outcomes = [outcome(ticket) for ticket in tickets]
    assert [got.batch_points for got in outcomes] == [3, 3, 2, 9]
    assert [got.queue_seconds for got in outcomes] == pytest.approx([0, 0, 1e-3, 2e-3])


def test_what_arrives_together_keeps_the_thread_no_longer_than_a_heavy_batch(bench: Make) -> None:
    b = bench(heavy_seconds=1.0)
    light(b, "x", "y", "z")
    b.runner.seconds |= {"x": 0.9, "y": 0.9}
    tickets = [b.ticket(key, key) for key in "xyz"]

    b.batcher.take(tickets)

    assert [outcome(ticket).result for ticket in tickets] == [("done", key) for key in "xyz"]
    here = [batch.payloads for batch in b.runner.batches if batch.thread == threading.get_ident()]
    assert here == [("x",), ("y",)]


@pytest.mark.parametrize(("calls", "here"), [(9, False), (10, True)])
def test_what_costs_no_more_for_each_call_than_handing_it_over_runs_where_it_arrived(
    bench: Make, calls: int, here: bool
) -> None:
    b = bench(direct_seconds=MEDIUM / 10)
    tickets = [b.ticket(index) for index in range(calls)]

    b.batcher.take(tickets)
    for ticket in tickets:
        outcome(ticket)

    assert {batch.thread == threading.get_ident() for batch in b.runner.batches} == {here}


def test_light_work_whose_deadline_has_passed_is_not_run(bench: Make) -> None:
    b = bench()
    light(b)

    assert isinstance(error(b.submit("late", deadline=b.clock())), DeadlineExceeded)
    assert b.batches() == []


def test_of_a_group_that_fails_each_runs_alone_and_only_the_culprit_fails(bench: Make) -> None:
    b = bench()
    light(b)
    b.runner.failing["bad"] = FunctionFailed("raised by bad")
    tickets = {name: b.ticket(name) for name in ("a", "bad", "b", "c")}

    b.batcher.take(list(tickets.values()))

    assert b.batches() == [("a", "bad", "b", "c"), ("a",), ("bad",), ("b",), ("c",)]
    assert error(tickets["bad"]) is b.runner.failing["bad"]
    assert [outcome(tickets[name]).result for name in "abc"] == [("done", name) for name in "abc"]
    assert {batch.thread for batch in b.runner.batches} == {threading.get_ident()}


def test_light_work_that_cannot_be_prepared_is_told_so_each_with_its_own_error(bench: Make) -> None:
    b = bench()
    b.runner.refusing["key"] = CompileFailed("cannot be")
    tickets = [b.ticket(name) for name in "ab"]

    b.batcher.take(tickets)

    one, other = map(error, tickets)
    assert isinstance(one, CompileFailed)
    assert isinstance(other, CompileFailed)
    assert one is not other


def test_a_defect_of_the_runner_is_internal_with_its_cause(bench: Make) -> None:
    b = bench()
    light(b)
    b.runner.failing["bad"] = ZeroDivisionError("in the runner")

    failed = error(b.submit("bad"))

    assert isinstance(failed, Internal)
    assert failed.__cause__ is b.runner.failing["bad"]
    assert outcome(b.submit("good")).result == ("done", "good")


def test_light_work_joins_what_waits_in_its_lane(bench: Make) -> None:
    b = bench()
    b.occupy()
    waiting = b.submit("waits")
    light(b)

    joins = b.submit("joins")
    assert b.batcher.waiting() == 2
    b.runner.let_go()

    assert (outcome(waiting).batch_points, outcome(joins).batch_points) == (2, 2)


def test_light_work_that_is_not_ready_waits_in_its_lane(bench: Make) -> None:
    b = bench()
    light(b)
    b.runner.make_cold("key")
    ticket = b.submit("a")
    b.await_lane("key")

    assert ticket.answers.empty()
    b.runner.finish("key")

    assert outcome(ticket).result == ("done", "a")


def test_a_closed_batcher_runs_nothing_directly(bench: Make) -> None:
    b = bench()
    light(b)
    b.batcher.close()

    assert isinstance(error(b.submit("late")), Draining)
    assert b.batches() == []


THREADS, ROUNDS = 8, 30


def test_under_random_load_everything_is_answered_exactly_once(bench: Make) -> None:
    b = bench(heavy_workers=2, max_points=8, max_tickets=10_000)
    b.runner.estimates |= {"key0": LIGHT, "key1": LIGHT, "key2": MEDIUM, "key3": 1.0}
    b.runner.failing = {(thread, 7): FunctionFailed("chosen") for thread in range(THREADS)}
    together = threading.Barrier(THREADS)

    def load(thread: int) -> list[tuple[Asked, bool]]:
        chance = random.Random(thread)  # noqa: S311 - no secret
        fates, index = [], 0
        together.wait(SAFETY)
        for _ in range(ROUNDS):
            group = []
            for _ in range(chance.randint(1, 5)):
                key, points = f"key{chance.randrange(4)}", chance.randint(1, 3)
                group.append(b.ticket((thread, index), key, points=points, alone=chance.random() < 0.1))
                index += 1
            early = [chance.random() < 0.1 and b.batcher.cancel(ticket) for ticket in group]
            b.batcher.take(group)
            late = [chance.random() < 0.3 and b.batcher.cancel(ticket) for ticket in group]
            fates += [(ticket, a or z) for ticket, a, z in zip(group, early, late, strict=True)]
        return fates

    with ThreadPoolExecutor(THREADS) as threads:
        fates = [fate for thread in threads.map(load, range(THREADS)) for fate in thread]
    b.batcher.close()

    runs = Counter(b.runner.executed())
    for ticket, cancelled in fates:
        if cancelled:
            assert ticket.answers.empty()
            assert runs[ticket.payload] == 0
            continue
        failed = error(ticket) if ticket.payload in b.runner.failing else None
        if failed is None:
            assert outcome(ticket).result == ("done", ticket.payload)
        else:
            assert failed is b.runner.failing[ticket.payload]
        assert ticket.answers.empty(), "told twice"
        assert 1 <= runs[ticket.payload] <= 2, "each runs once, and once more alone if its batch failed"
    assert b.batcher.waiting() == 0
