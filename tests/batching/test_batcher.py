import contextlib
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import Any

import pytest

from clock import HandClock
from nablad.errors import (
    Cancelled,
    CompileFailed,
    DeadlineExceeded,
    Draining,
    FunctionFailed,
    Internal,
    NabladError,
    QueueFull,
)
from nablad_server.batching.batcher import Batcher
from nablad_server.batching.policy import Policy
from nablad_server.batching.ticket import Outcome, Ticket
from puppets import SAFETY, PuppetRunner

NEVER = float("inf")


class Bench:
    """A batcher between a puppet runner and a clock that stands still."""

    def __init__(self, **policy: Any) -> None:
        self.clock = HandClock()
        self.runner = PuppetRunner(self.clock)
        self.policy = Policy(**{"workers": 1, "direct_seconds": 0.0} | policy)
        self.batcher = Batcher(self.runner, self.policy, self.clock)

    def submit(self, payload: Any, key: str = "key", **options: Any) -> Ticket:
        ticket = self.ticket(payload, key, **options)
        self.batcher.submit(ticket)
        return ticket

    def ticket(self, payload: Any, key: str = "key", points: int = 1, size: int = 1, **options: Any) -> Ticket:
        return Ticket(key, payload, points, size, **options)

    def occupy(self) -> Ticket:
        """Makes every worker busy until the runner lets go."""
        self.runner.hold()
        before = len(self.runner.batches)
        blockers = [self.submit("blocker", f"blocker {worker}") for worker in range(self.policy.workers)]
        self.runner.await_batches(before + len(blockers))
        return blockers[0]

    def batches(self) -> list[tuple[Any, ...]]:
        """The payloads of each execution, the blockers' aside."""
        return [batch.payloads for batch in self.runner.batches if batch.payloads != ("blocker",)]


def outcome(ticket: Ticket) -> Outcome:
    return ticket.future.result(SAFETY)


def error(ticket: Ticket) -> BaseException | None:
    return ticket.future.exception(SAFETY)


@pytest.fixture
def bench() -> Iterator[Callable[..., Bench]]:
    made: list[Bench] = []

    def make(**policy: Any) -> Bench:
        made.append(Bench(**policy))
        return made[-1]

    yield make
    for each in made:
        each.runner.let_go()
        each.batcher.close()
        assert all(points > 0 for _, points in each.runner.asked), "an empty lane was given a turn"


class Until:
    """Parks a call once its execution has begun."""

    def __init__(self, runner: PuppetRunner) -> None:
        self._runner = runner

    def __enter__(self) -> None:
        self._runner.await_batches(1)

    def __exit__(self, *_: object) -> None:
        pass


Make = Callable[..., Bench]


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


def draining(b: Bench) -> bool:
    try:
        probe = b.submit("probe", "probe")
    except Draining:
        return True
    b.batcher.cancel(probe)
    return False


@pytest.mark.parametrize("failure", [None, Draining("nothing more is compiled")])
def test_closing_waits_for_a_compilation_and_what_waits_for_it(bench: Make, failure: NabladError | None) -> None:
    b = bench()
    b.runner.make_cold("cold")
    ticket = b.submit("a", "cold")
    b.runner.await_demand("cold")
    with ThreadPoolExecutor(1) as closer:
        closing = closer.submit(b.batcher.close)
        while not draining(b):
            pass
        b.runner.finish("cold", failure)
        closing.result(SAFETY)

    assert (ticket.future.done(), type(error(ticket))) == (True, type(failure))


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
    b.runner.await_demand("cold")

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
    b.runner.await_demand("cold")
    b.clock.advance(3.0)
    late = b.submit("b", "cold")
    b.clock.advance(1.0)
    b.runner.finish("cold", seconds=4.0)

    assert outcome(late).compile_seconds == 1.0


def test_a_compilation_that_fails_fails_those_who_wait_for_it(bench: Make) -> None:
    b = bench()
    b.runner.make_cold("cold")
    tickets = [b.submit(name, "cold") for name in "ab"]
    b.runner.await_demand("cold")
    b.runner.finish("cold", CompileFailed("cannot be"))

    assert all(isinstance(error(ticket), CompileFailed) for ticket in tickets)
    assert outcome(b.submit("again", "cold")).result == ("done", "again")
    assert b.batches() == [("again",)]


def test_a_compilation_may_end_after_everybody_has_left(bench: Make) -> None:
    b = bench()
    b.runner.make_cold("cold")
    gone = b.submit("gone", "cold")
    b.runner.await_demand("cold")
    b.batcher.cancel(gone)
    b.runner.finish("cold")

    assert outcome(b.submit("next", "cold")).result == ("done", "next")
    assert b.batches() == [("next",)]


def test_deadlines_that_pass_during_a_compilation_cost_no_execution(bench: Make) -> None:
    b = bench()
    b.runner.make_cold("cold")
    late = b.submit("late", "cold", deadline=1.0)
    b.runner.await_demand("cold")
    b.clock.advance(2.0)
    b.runner.finish("cold", seconds=2.0)

    assert isinstance(error(late), DeadlineExceeded)
    assert b.batches() == []


def test_a_stream_of_expensive_work_does_not_starve_cheap_work(bench: Make) -> None:
    b = bench(max_points=1)
    b.runner.seconds = {"hessian": 10.0, "gradient": 0.1}
    b.occupy()
    tickets = [b.submit(f"h{i}", "hessian") for i in range(3)] + [b.submit(f"g{i}", "gradient") for i in range(5)]
    b.runner.let_go()
    for ticket in tickets:
        outcome(ticket)

    assert [name for (name,) in b.batches()] == ["h0", "g0", "g1", "g2", "g3", "g4", "h1", "h2"]


def learn(b: Bench, seconds: float, key: str = "key") -> None:
    """Has the batcher measure that one point of a key takes so long."""
    b.runner.seconds[key] = seconds
    outcome(b.submit("first", key))
    b.runner.batches.clear()


def test_light_work_runs_in_the_callers_thread(bench: Make) -> None:
    b = bench(direct_seconds=1e-4)
    learn(b, 5e-5)

    got = b.batcher.call(b.ticket("light"))

    assert b.runner.batches[0].thread == threading.get_ident()
    assert got.result == ("done", "light")
    assert (got.batch_points, got.queue_seconds, got.compile_seconds) == (1, 0.0, 0.0)
    assert got.compute_seconds == pytest.approx(5e-5)


@pytest.mark.parametrize("seconds", [2e-4, None])
def test_heavy_work_and_work_of_unknown_cost_run_in_a_worker(bench: Make, seconds: float | None) -> None:
    b = bench(direct_seconds=1e-4)
    if seconds is not None:
        learn(b, seconds)

    b.batcher.call(b.ticket("a"))

    assert b.runner.batches[0].thread != threading.get_ident()


def test_light_work_joins_what_waits_in_its_lane(bench: Make) -> None:
    b = bench(direct_seconds=1e-4)
    learn(b, 5e-5)
    b.occupy()
    waiting = b.submit("waits")
    parked = threading.Event()

    @contextlib.contextmanager
    def parking() -> Iterator[None]:
        parked.set()
        yield

    with ThreadPoolExecutor(1) as caller:
        call = caller.submit(b.batcher.call, b.ticket("joins"), parking())
        assert parked.wait(SAFETY)
        b.runner.let_go()
        assert call.result(SAFETY).batch_points == 2
    assert outcome(waiting).batch_points == 2


def test_light_work_whose_deadline_has_passed_is_not_run(bench: Make) -> None:
    b = bench(direct_seconds=1e-4)
    learn(b, 5e-5)

    with pytest.raises(DeadlineExceeded):
        b.batcher.call(b.ticket("late", deadline=b.clock()))
    assert b.batches() == []


def test_light_work_that_is_not_ready_waits_in_its_lane(bench: Make) -> None:
    b = bench(direct_seconds=1e-4)
    learn(b, 5e-5)
    b.runner.make_cold("key")
    with ThreadPoolExecutor(1) as caller:
        call = caller.submit(b.batcher.call, b.ticket("a"))
        b.runner.await_demand("key")
        b.runner.finish("key")
        # The worker may have asked only after the key was ready: either way the call is answered.
        assert call.result(SAFETY).result == ("done", "a")


def test_light_work_that_fails_raises_its_error(bench: Make) -> None:
    b = bench(direct_seconds=1e-4)
    learn(b, 5e-5)
    b.runner.failing["bad"] = FunctionFailed("raised by bad")

    with pytest.raises(FunctionFailed, match="raised by bad"):
        b.batcher.call(b.ticket("bad"))


def test_work_that_proves_heavier_than_estimated_goes_to_a_worker_again(bench: Make) -> None:
    b = bench(direct_seconds=1e-4)
    learn(b, 5e-5)
    b.runner.seconds["key"] = 1.0
    b.batcher.call(b.ticket("a"))

    b.batcher.call(b.ticket("b"))

    assert [batch.thread == threading.get_ident() for batch in b.runner.batches] == [True, False]


THREADS, CALLS = 8, 60


def test_under_random_load_everything_resolves_exactly_once(bench: Make) -> None:
    b = bench(workers=3, max_points=8, direct_seconds=1e-4, max_tickets=10_000)
    b.runner.failing = {(thread, 7): FunctionFailed("chosen") for thread in range(THREADS)}
    together = threading.Barrier(THREADS)

    def load(thread: int) -> list[tuple[Ticket, str]]:
        chance = random.Random(thread)  # noqa: S311 - no secret
        fates = []
        together.wait(SAFETY)
        for index in range(CALLS):
            ticket = b.ticket((thread, index), f"key{chance.randrange(4)}", points=chance.randint(1, 3))
            kind = chance.choice(["submit", "cancel", "call"])
            if kind == "call":
                try:
                    b.batcher.call(ticket)
                    fates.append((ticket, "served"))
                except NabladError:
                    fates.append((ticket, "failed"))
                continue
            b.batcher.submit(ticket)
            if kind == "cancel" and b.batcher.cancel(ticket):
                fates.append((ticket, "cancelled"))
            else:
                fates.append((ticket, "submitted"))
        return fates

    with ThreadPoolExecutor(THREADS) as threads:
        fates = [fate for thread in threads.map(load, range(THREADS)) for fate in thread]
    b.batcher.close()

    runs = Counter(b.runner.executed())
    assert len(fates) == THREADS * CALLS
    for ticket, fate in fates:
        bad = ticket.payload in b.runner.failing
        if fate == "cancelled":
            with pytest.raises(CancelledError):
                ticket.future.result(0)
            assert runs[ticket.payload] == 0
        elif fate == "submitted":
            resolved: Future[Outcome] = ticket.future
            assert resolved.done()
            assert (resolved.exception(0) is not None) == bad
            if not bad:
                assert resolved.result(0).result == ("done", ticket.payload)
        else:
            assert (fate == "failed") == bad
        if fate != "cancelled":
            assert 1 <= runs[ticket.payload] <= 2, "each runs once, and once more alone if its batch failed"
    assert b.batcher.waiting() == 0


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
