from hypothesis import given
from hypothesis import strategies as st

from nablad.errors import NabladError
from nablad_server.batching.held import Held
from nablad_server.batching.ticket import Outcome, Owner, Ticket

HALF = Owner("half", 0.5)
QUARTER = Owner("quarter", 0.25)
OWNERS = (HALF, QUARTER, Owner("all", 1.0), Owner("tenth", 0.1))


def unanswered(answer: Outcome | NabladError) -> None:
    raise AssertionError("nobody is answered here")


def ticket(owner: Owner, size: int = 1) -> Ticket:
    return Ticket("key", None, 1, size, unanswered, owner=owner)


def filled(held: Held, owner: Owner, count: int, size: int = 1) -> list[Ticket]:
    tickets = [ticket(owner, size) for _ in range(count)]
    for each in tickets:
        held.add(each)
    return tickets


def test_one_beyond_its_share_makes_room_with_its_newest() -> None:
    held = Held(8, 1000)
    flood = filled(held, HALF, 8)

    assert held.makes_room(ticket(QUARTER)) is flood[-1]
    held.remove(flood[-1])
    assert held.fits(ticket(QUARTER))


def test_whoever_is_beyond_its_own_share_gets_no_room() -> None:
    held = Held(8, 1000)
    filled(held, HALF, 6)
    filled(held, QUARTER, 2)

    assert held.makes_room(ticket(QUARTER)) is None
    assert held.makes_room(ticket(HALF)) is None


def test_within_their_shares_nobody_makes_room() -> None:
    held = Held(8, 1000)
    for owner in (HALF, Owner("other", 0.5)):
        filled(held, owner, 4)

    assert held.makes_room(ticket(QUARTER)) is None


def test_bytes_count_as_tickets_do() -> None:
    held = Held(1000, 100)
    large = filled(held, HALF, 2, size=45)
    small = ticket(QUARTER, size=20)

    assert not held.fits(small)
    assert held.makes_room(small) is large[-1]
    assert held.makes_room(ticket(QUARTER, size=26)) is None


@given(st.lists(st.tuples(st.sampled_from(OWNERS), st.integers(0, 40)), max_size=60))
def test_making_room_ends_and_takes_nothing_from_within_a_share(asked: list[tuple[Owner, int]]) -> None:
    held = Held(10, 100)
    waiting: list[Ticket] = []
    for owner, size in asked:
        newcomer = ticket(owner, size)
        while not held.fits(newcomer):
            leaving = held.makes_room(newcomer)
            if leaving is None:
                break
            theirs = [t for t in waiting if t.owner == leaving.owner]
            used = max(len(theirs) / 10, sum(t.size for t in theirs) / 100)
            assert used > leaving.owner.share
            assert leaving is theirs[-1]
            assert leaving.owner != newcomer.owner
            held.remove(leaving)
            waiting.remove(leaving)
        else:
            held.add(newcomer)
            waiting.append(newcomer)
        assert (held.tickets, held.size) == (len(waiting), sum(t.size for t in waiting))
        assert held.tickets <= 10
        assert held.size <= 100
