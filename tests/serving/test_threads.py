"""A few threads: how much is taken on, and that what is done makes room."""

import threading

import pytest

from nablad_server.serving import threads as threads_module
from nablad_server.serving.threads import Threads
from puppets import SAFETY


class Work:
    """Something that is under way until it is told to end."""

    def __init__(self) -> None:
        self.begun, self.end, self.done = threading.Event(), threading.Event(), threading.Event()

    def __call__(self) -> None:
        self.begun.set()
        assert self.end.wait(SAFETY)
        self.done.set()


def test_so_many_are_under_way_and_so_many_wait_in_order() -> None:
    threads = Threads("test", 2, waiting=1)
    first, second, third, fourth = works = [Work() for _ in range(4)]
    assert [threads.run(work, 1) for work in works] == [True, True, True, False]
    assert first.begun.wait(SAFETY)
    assert second.begun.wait(SAFETY)
    assert not third.begun.is_set()

    second.end.set()
    assert third.begun.wait(SAFETY), "in the thread that is free again"
    assert threads.run(fourth, 1)
    for work in (first, third, fourth):
        work.end.set()
        assert work.done.wait(SAFETY)


def test_what_waits_is_bounded_in_bytes_and_one_alone_may_have_any_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads_module, "MAX_BYTES", 10)
    threads = Threads("test", 1, waiting=9)
    large, small, other = Work(), Work(), Work()
    assert threads.run(large, 1000)
    assert not threads.run(small, 1)
    large.end.set()
    while not threads.run(small, 6):
        assert large.done.wait(SAFETY)
    assert not threads.run(other, 6)
    assert threads.run(other, 4)
    for work in (small, other):
        work.end.set()
        assert work.done.wait(SAFETY)
