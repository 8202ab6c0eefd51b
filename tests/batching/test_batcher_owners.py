"""That one caller's work delays another's by little, however much of it there is."""

import itertools

from bench import Make, error, outcome
from nablad.errors import CompileQueueFull, QueueFull
from nablad_server.batching.ticket import Owner
from puppets import MEDIUM

FLOOD, OTHER = Owner("flood", 0.5), Owner("other", 0.5)


def test_a_flood_of_many_kinds_gets_no_more_turns_than_another_of_one(bench: Make) -> None:
    b = bench()
    b.runner.seconds |= {f"kind {index}": MEDIUM for index in range(50)}
    b.runner.seconds |= {f"its {index}": MEDIUM for index in range(3)}
    b.occupy()
    for index in range(50):
        b.submit(f"flood {index}", f"kind {index}", owner=FLOOD)
    others = [b.submit(f"other {index}", f"its {index}", owner=OTHER) for index in range(3)]

    b.runner.let_go()

    for each in others:
        outcome(each)
    executed = [payload for payload in b.runner.executed() if payload != "blocker"]
    before = executed[: executed.index("other 2")]
    assert sum(str(payload).startswith("flood") for payload in before) <= 4


def test_turns_are_shared_by_time_and_not_by_number(bench: Make) -> None:
    b = bench()
    b.occupy()
    for index in range(20):
        b.runner.estimates[f"slow {index}"] = b.runner.seconds[f"slow {index}"] = 4 * MEDIUM
        b.runner.estimates[f"quick {index}"] = b.runner.seconds[f"quick {index}"] = MEDIUM
    b.batcher.take([b.ticket("slow", f"slow {index}", owner=FLOOD) for index in range(20)])
    quick = [b.ticket(f"quick {index}", f"quick {index}", owner=OTHER) for index in range(20)]
    b.batcher.take(quick)

    b.runner.let_go()

    for each in quick:
        outcome(each)
    executed = b.runner.executed()
    assert executed[: executed.index("quick 19")].count("slow") <= 6


def test_one_kind_of_work_is_shared_in_each_batch(bench: Make) -> None:
    b = bench(max_points=4)
    b.occupy()
    for index in range(40):
        b.submit(f"flood {index}", owner=FLOOD)
    other = b.submit("other", owner=OTHER)

    b.runner.let_go()

    outcome(other)
    first = b.batches()[0]
    second = b.batches()[1]
    assert "other" in first + second


def test_once_the_queue_is_full_the_newest_of_the_flood_makes_room(bench: Make) -> None:
    b = bench(max_tickets=8)
    b.occupy()
    flood = [b.submit(f"flood {index}", owner=FLOOD) for index in range(8)]

    other = b.submit("other", owner=OTHER)

    assert isinstance(error(flood[-1]), QueueFull)
    assert isinstance(error(b.submit("flood too", owner=FLOOD)), QueueFull)
    b.runner.let_go()
    outcome(other)
    for each in flood[:-1]:
        outcome(each)


def test_a_queue_that_one_owner_fills_within_its_share_refuses_the_newcomer(bench: Make) -> None:
    b = bench(max_tickets=2)
    b.occupy()
    waiting = [b.submit(name, owner=Owner(name, 0.5)) for name in ("one", "two")]

    assert isinstance(error(b.submit("three", owner=Owner("three", 0.4))), QueueFull)

    b.runner.let_go()
    for each in waiting:
        outcome(each)


def test_what_one_owner_may_not_have_compiled_another_may(bench: Make) -> None:
    b = bench()
    b.occupy()
    full = CompileQueueFull("too many of this caller's", retry_after=1.0)
    b.runner.refusing["key"] = full
    b.runner.let_go()

    tickets = [b.ticket("flood", owner=FLOOD), b.ticket("other", owner=OTHER), b.ticket("flood too", owner=FLOOD)]
    b.batcher.take(tickets)

    assert all(isinstance(error(each), CompileQueueFull) for each in tickets)
    asked = {owner for key, owner in b.runner.askers if key == "key"}
    assert asked == {FLOOD, OTHER}, "each was asked for in its own name"


def test_who_joins_what_is_not_ready_asks_for_it_in_its_own_name(bench: Make) -> None:
    b = bench()
    b.runner.make_cold("cold")
    first = b.submit("flood", "cold", owner=FLOOD)
    b.await_lane("cold")

    second = b.submit("other", "cold", owner=OTHER)

    askers = [owner for key, owner in b.runner.askers if key == "cold"]
    assert [owner for owner, _ in itertools.groupby(askers)] == [FLOOD, OTHER]
    b.runner.finish("cold")
    outcome(first)
    outcome(second)
