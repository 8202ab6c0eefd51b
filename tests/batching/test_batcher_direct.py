import contextlib
import random
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor

import pytest

from bench import Bench, Make, outcome
from nablad.errors import (
    DeadlineExceeded,
    FunctionFailed,
    NabladError,
)
from nablad_server.batching.ticket import Outcome, Ticket
from puppets import SAFETY


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
