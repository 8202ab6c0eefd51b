"""The gate: phases, and waiting for those inside."""

import threading
from concurrent.futures import ThreadPoolExecutor

from nablad.errors import Draining, Loading
from nablad_server.serving.gate import Gate


def test_nobody_enters_before_it_opens_or_after_it_closes() -> None:
    gate = Gate()
    loading = gate.enter()
    assert isinstance(loading, Loading)
    assert loading.retry_after == 1.0
    gate.open()
    assert gate.enter() is None
    gate.leave()
    assert gate.close(0.0)
    assert isinstance(gate.enter(), Draining)


def test_closing_waits_for_all_inside() -> None:
    gate = Gate()
    gate.open()
    assert [gate.enter(), gate.enter()] == [None, None]

    assert not gate.close(0.0)
    with ThreadPoolExecutor(1) as pool:
        closing = pool.submit(gate.close, 30.0)
        gate.leave()
        assert not gate.close(0.0), "one of two is still inside"
        gate.leave()
        assert closing.result(30)


def test_those_refused_are_not_inside() -> None:
    gate = Gate()
    gate.enter()
    gate.open()

    assert gate.close(0.0)
    gate.enter()
    assert gate.close(0.0)


def test_many_threads_come_and_go() -> None:
    gate, together = Gate(), threading.Barrier(8)
    gate.open()

    def come_and_go(_: int) -> None:
        together.wait(30)
        for _ in range(500):
            if gate.enter() is None:
                gate.leave()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(come_and_go, range(8)))

    assert gate.close(0.0)
