"""Waiting, in an Endpoint's thread, for work that the batcher does with everybody else's."""

import queue
import time

import numpy as np

from nablad.errors import DeadlineExceeded, NabladError
from nablad.tensors import Array
from nablad_server.batching.ticket import Outcome
from nablad_server.derivatives.inspection import Inspection
from nablad_server.derivatives.query import Query
from nablad_server.derivatives.runner import Points, Results
from nablad_server.serving.limits import OWNER
from nablad_server.serving.work import Desk


def outcome_of(desk: Desk, name: str, query: Query | Inspection, points: Points, seconds: float) -> Outcome:
    """What comes of a query, with how that came about; its result is a Results. Blocks.

    `name` is the RPC's, for the log.

    Raises:
        DeadlineExceeded: it is not there after so many seconds; what has not begun by then is not begun any more.
        NabladError: what the work gave, or why it was not taken on.
    """
    answers: queue.SimpleQueue[Outcome | NabladError] = queue.SimpleQueue()
    deadline = time.monotonic() + seconds
    ticket = desk.begin(
        name, query, points, owner=OWNER.get(), deadline=deadline, answered=answers.put, failed=answers.put
    )
    try:
        answer = answers.get(timeout=max(0.0, deadline - time.monotonic()))
    except queue.Empty:
        if ticket is not None:
            desk.cancel(ticket)
        raise DeadlineExceeded(
            f"{query} was not computed within the {seconds:.3g} s that were left of the call; allow more, or ask for "
            "fewer points"
        ) from None
    if isinstance(answer, NabladError):
        raise answer
    return answer


def computed(desk: Desk, name: str, query: Query | Inspection, points: Points, seconds: float) -> list[list[Array]]:
    """The groups of arrays that a query gives, the points axis first, as its operator lists them. Blocks.

    Raises as `outcome_of`.
    """
    return joined(outcome_of(desk, name, query, points, seconds).result)


def joined(results: Results) -> list[list[Array]]:
    """The groups of arrays with their pieces put together, the points axis first; of one piece a read-only view."""
    return [[pieces[0] if len(pieces) == 1 else np.concatenate(pieces) for pieces in group] for group in results.groups]
