"""The gate: phases, permits, and waiting for those inside."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from nablad.errors import Draining, Loading
from nablad_server.serving.gate import Gate


def test_nobody_enters_before_it_opens_or_after_it_closes() -> None:
    gate = Gate(1)
    with pytest.raises(Loading), gate:
        pass
    gate.open()
    with gate:
        pass
    assert gate.close(0.0)
    with pytest.raises(Draining), gate:
        pass


def test_closing_waits_for_those_inside() -> None:
    gate = Gate(2)
    gate.open()
    leave = threading.Event()
    entered = threading.Event()

    def stay() -> None:
        with gate:
            entered.set()
            assert leave.wait(30)

    with ThreadPoolExecutor(2) as pool:
        inside = pool.submit(stay)
        assert entered.wait(30)
        assert not gate.close(0.0)
        closing = pool.submit(gate.close, 30.0)
        leave.set()
        assert closing.result(30)
        inside.result(30)


def test_a_parked_call_lets_another_one_run() -> None:
    gate = Gate(1)
    gate.open()
    entered = threading.Event()

    def pass_through() -> None:
        with gate:
            entered.set()

    with ThreadPoolExecutor(1) as pool:
        with gate:
            other = pool.submit(pass_through)
            assert not entered.is_set()
            with gate.parked:
                other.result(30)
        assert entered.is_set()
    assert gate.close(0.0)
