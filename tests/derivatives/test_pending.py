from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from nablad_server.derivatives.pending import Pending

LIMIT, LIMIT_EACH = 8, 3
ASKERS = st.sampled_from("abcd")


class PendingAgainstLists(RuleBasedStateMachine):
    """What waits beside a plain list of who asked for what, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.pending: Pending[int] = Pending(LIMIT, LIMIT_EACH)
        self.asked: list[tuple[str, int]] = []
        self.adders: dict[int, str] = {}
        self.taken: list[int] = []
        self.passed: dict[str, list[str]] = {}  # who had turns since an asker began to wait, or had its own last one
        self.items = 0

    @rule(asker=ASKERS)
    def add(self, asker: str) -> None:
        held = sum(adder == asker for adder in self.adders.values())
        room = held < LIMIT_EACH and len(self.adders) < (LIMIT * 3 // 4 if held else LIMIT)
        assert self.pending.has_room(asker) == room
        if room:
            self.items += 1
            self.pending.add(self.items, asker)
            self.adders[self.items] = asker
            self.ask(asker, self.items)

    @rule(asker=ASKERS, data=st.data())
    def join(self, asker: str, data: st.DataObject) -> None:
        if self.items:
            item = data.draw(st.integers(1, self.items))
            self.pending.join(item, asker)
            if item in self.adders and item not in self.taken:
                self.ask(asker, item)

    def ask(self, asker: str, item: int) -> None:
        if all(other != asker for other, _ in self.asked):
            self.passed[asker] = []
        if (asker, item) not in self.asked:
            self.asked.append((asker, item))

    @rule()
    def take(self) -> None:
        item = self.pending.take()
        assert (item is None) == (not self.asked)
        if item is None:
            return
        firsts = {asker: next(it for who, it in self.asked if who == asker) for asker, _ in self.asked}
        served = [asker for asker, first in firsts.items() if first == item]
        assert served, "not the first of anybody's"
        self.taken.append(item)
        self.asked = [(asker, it) for asker, it in self.asked if it != item]
        waiting = {asker for asker, _ in self.asked}
        if len(served) == 1:  # else it is not to be seen whose turn it was
            for asker in waiting - set(served):
                assert served[0] not in self.passed[asker], "a second turn before another's first"
                self.passed[asker].append(served[0])
        for asker in served:
            self.passed[asker] = []

    @rule()
    def finish(self) -> None:
        if self.taken:
            item = self.taken.pop(0)
            self.pending.finish(item, 0.0)
            del self.adders[item]

    @invariant()
    def counts_are_right(self) -> None:
        assert len(self.pending) == len(self.adders)
        for asker in "abcd":
            assert self.pending.held(asker) == sum(adder == asker for adder in self.adders.values())


TestPendingAgainstLists = PendingAgainstLists.TestCase
TestPendingAgainstLists.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def test_a_newcomer_waits_for_one_of_anothers_thousand() -> None:
    pending: Pending[str] = Pending(10_000, 0)
    for number in range(1000):
        pending.add(f"many {number}", "many")
    assert pending.take() == "many 0"

    pending.add("new", "newcomer")

    assert [pending.take() for _ in range(3)] == ["many 1", "new", "many 2"]


def test_what_two_ask_for_is_taken_once_in_the_turn_that_comes_first() -> None:
    pending: Pending[str] = Pending(100, 0)
    for name in ("first", "second", "shared"):
        pending.add(name, "one")

    pending.join("shared", "other")

    assert [pending.take() for _ in range(4)] == ["first", "shared", "second", None]


def test_turns_are_shared_by_the_time_that_items_take() -> None:
    pending: Pending[str] = Pending(100, 0)
    for number in range(3):
        pending.add(f"slow {number}", "slow")
    for number in range(12):
        pending.add(f"quick {number}", "quick")

    order = []
    while (item := pending.take()) is not None:
        order.append(item)
        assert pending.finish(item, 5.0 if item.startswith("slow") else 1.0) == item.split()[0]

    assert [order.index(f"slow {number}") for number in range(3)] == [0, 6, 12], (
        "five quick ones in the time of a slow one"
    )
