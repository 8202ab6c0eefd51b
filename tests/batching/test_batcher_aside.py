"""Batches that wait for something else than this process have workers of their own."""

from bench import Make, outcome


def test_what_is_set_aside_occupies_no_other_worker(bench: Make) -> None:
    b = bench(heavy_workers=1, aside_workers=2)
    b.runner.aside |= {"box": "f", "other box": "g"}
    b.runner.calling_back |= {"box", "other box", "calls back"}
    b.runner.hold(["box", "other box"])
    boxes = [b.submit(key, key) for key in ("box", "other box")]
    b.runner.await_batches(2)

    assert outcome(b.submit("light", "light")).result == ("done", "light")
    assert outcome(b.submit("calls back", "calls back")).result == ("done", "calls back")
    assert {batch.key for batch in b.runner.batches[:2]} == {"box", "other box"}
    b.runner.let_go()
    assert [outcome(ticket).result for ticket in boxes] == [("done", "box"), ("done", "other box")]


def test_of_two_that_wait_for_the_same_one_runs_at_a_time(bench: Make) -> None:
    b = bench(heavy_workers=0, aside_workers=3)
    b.runner.aside |= {"value": "f", "gradient": "f", "other": "g"}
    b.runner.calling_back |= {"value", "gradient", "other"}
    b.runner.hold(["value", "gradient"])
    first = b.submit("value", "value")
    b.runner.await_batches(1)
    second = b.submit("gradient", "gradient")

    assert outcome(b.submit("other", "other")).result == ("done", "other")
    assert b.runner.executed() == ["value", "other"]
    b.runner.let_go()

    assert [outcome(ticket).result for ticket in (first, second)] == [("done", "value"), ("done", "gradient")]


def test_more_than_there_are_workers_wait_their_turn(bench: Make) -> None:
    b = bench(aside_workers=1)
    b.runner.aside |= {name: name for name in "abc"}
    b.runner.calling_back |= set("abc")
    b.runner.hold(["a"])
    tickets = [b.submit(name, name) for name in "abc"]
    b.runner.await_batches(1)

    assert outcome(b.submit("light", "light")).result == ("done", "light")
    assert len(b.runner.executed()) <= 3  # whoever is first: those before a, a itself and the light one
    b.runner.let_go()

    assert [outcome(ticket).result for ticket in tickets] == [("done", name) for name in "abc"]
