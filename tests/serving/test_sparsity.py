"""Requests that have to wait for a pattern: answered once, cancelled in peace, and out of the gate in every case."""

import queue
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest

from held import Held
from nablad.errors import DeadlineExceeded, Draining, InvalidOption, NabladError, ResultTooLarge
from nablad.tensors import to_array, to_tensor
from nablad.v1 import catalog_pb2, tensor_pb2
from nablad.v1 import differentiation_pb2 as pb
from nablad_server.batching.batcher import Batcher
from nablad_server.batching.policy import Policy
from nablad_server.batching.ticket import NOBODY, Ticket
from nablad_server.derivatives.cache import ProgramCache
from nablad_server.derivatives.operators.sparse import pattern_of
from nablad_server.derivatives.patterns import Patterns
from nablad_server.derivatives.query import Query
from nablad_server.derivatives.runner import DerivativeRunner
from nablad_server.functions.registry import Registry
from nablad_server.serving.decode import Decoder
from nablad_server.serving.gate import Gate
from nablad_server.serving.sparsity import AIDED_ELEMENTS, Pending, when_known
from nablad_server.serving.sparsity_requests import sparsity_of
from nablad_server.serving.statistics import Statistics
from nablad_server.serving.work import Desk
from puppets import SAFETY

X = np.linspace(0.5, 1.5, 5)
NEVER = float("inf")
MEMORY = 1 << 40


def tridiagonal(x: Any) -> Any:
    """The Hessian of the function that is held, by hand."""
    beside = np.diag(np.cos(x[1:]), 1)
    return np.diag(np.concatenate([[0.0], -np.sin(x[1:]) * x[:-1]])) + beside + beside.T


class Answer(NamedTuple):
    """What a request came to."""

    response: pb.HessianResponse | None
    error: NabladError | None


class Place:
    """A desk with all that is behind it.

    Attributes:
        held: the only function.
        answers: whatever any request came to.
    """

    def __init__(self, patterns: Patterns) -> None:
        self.held = Held()
        self.patterns = patterns
        self.decoder = Decoder(Registry([self.held.function]), patterns, max_points=100, max_result_bytes=1 << 26)
        self.cache = ProgramCache(100, 64, MEMORY)
        statistics = Statistics()
        self.batcher = Batcher(DerivativeRunner(self.cache, 64, 1 << 26), Policy(), statistics)
        self.gate = Gate()
        self.gate.open()
        self.desk = Desk(self.decoder, patterns, self.batcher, self.gate, statistics)
        self.answers: queue.SimpleQueue[Answer] = queue.SimpleQueue()

    def know_outputs(self, size: int = len(X)) -> None:
        """Has the function traced as far as reading a request takes: from then on it is held in searches alone."""
        self.held.let_go.set()
        self.decoder.evaluate(pb.EvaluateRequest(function="held", inputs=request(size).inputs))
        self.held.let_go.clear()

    def ask(self, asked: pb.HessianRequest, deadline: float = NEVER) -> Ticket | None:
        """Asks for a Hessian."""
        message = asked.SerializeToString()
        ticket = self.desk.take(
            "Hessian", b"before" + message + b"after", 6, 6 + len(message),
            allowed=None, owner=NOBODY, deadline=deadline, written=self._written,
            failed=lambda error: self.answers.put(Answer(None, error)),
        )  # fmt: skip
        self.desk.together()
        return ticket

    def _written(self, parts: list[Any], length: int) -> None:
        data = b"".join(parts)
        assert len(data) == length
        response = pb.HessianResponse.FromString(data)
        assert response.SerializeToString(deterministic=True) == data, "protobuf would write it otherwise"
        self.answers.put(Answer(response, None))

    def response(self) -> pb.HessianResponse:
        """The next answer, which is no error."""
        answer = self.answers.get(timeout=SAFETY)
        if answer.response is None:
            raise LookupError(f"the request failed: {answer.error}")
        return answer.response

    def close(self) -> None:
        self.held.let_go.set()
        assert self.gate.close(SAFETY), "somebody was let in who never came out"
        assert self.patterns.close(SAFETY)
        assert self.cache.close(SAFETY)
        assert self.batcher.close(SAFETY)


@pytest.fixture
def place() -> Iterator[Place]:
    made = Place(Patterns(MEMORY))
    made.know_outputs()
    yield made
    made.close()


def request(size: int = len(X), **options: Any) -> pb.HessianRequest:
    options = {"structure": pb.HESSIAN_STRUCTURE_SPARSE} | options
    x = tensor_pb2.NamedTensor(name="x", tensor=to_tensor(np.resize(X, size)))
    return pb.HessianRequest(function="held", inputs=[x], **options)


def query_of(decoder: Decoder) -> Query:
    """The query whose pattern has to be found."""
    with pytest.raises(Pending) as pending:
        decoder.hessian(request())
    return pending.value.query


def matrix(response: pb.HessianResponse) -> Any:
    pattern = response.sparse.pattern
    dense = np.zeros((len(X), len(X)))
    dense[to_array(pattern.row_indices), to_array(pattern.column_indices)] = to_array(response.sparse.values)
    return dense


def test_a_request_is_answered_once_its_pattern_is_found(place: Place) -> None:
    place.ask(request())
    place.held.entered.get(timeout=SAFETY)
    place.ask(request())
    assert place.answers.empty()
    place.held.let_go.set()
    for _ in range(2):
        np.testing.assert_allclose(matrix(place.response()), tridiagonal(X), atol=1e-15)
    assert place.held.entered.empty()  # one search for both


def test_a_request_that_is_cancelled_while_it_waits_is_not_worked_on(place: Place) -> None:
    query = query_of(place.decoder)
    ticket = place.ask(request())
    place.held.entered.get(timeout=SAFETY)
    assert isinstance(ticket, Ticket)
    assert place.desk.cancel(ticket)
    assert not place.desk.cancel(ticket)
    place.held.let_go.set()
    place.patterns.settle(query, SAFETY)
    place.patterns.settle(query, SAFETY)  # whoever waited before has been told by now
    assert place.answers.empty()


def test_a_request_whose_deadline_passes_while_it_waits_is_told_so(place: Place) -> None:
    place.ask(request(), deadline=0.0)
    place.held.let_go.set()
    assert isinstance(place.answers.get(timeout=SAFETY).error, DeadlineExceeded)


def test_a_request_that_proves_wrong_once_the_pattern_is_known_is_refused(place: Place) -> None:
    place.know_outputs(1 << 12)
    decoder = Decoder(Registry([place.held.function]), place.patterns, max_points=100, max_result_bytes=1 << 16)
    place.desk = Desk(decoder, place.patterns, place.batcher, place.gate, Statistics())
    place.ask(request(1 << 12))
    place.held.let_go.set()
    assert isinstance(place.answers.get(timeout=SAFETY).error, ResultTooLarge)


def test_requests_that_wait_when_the_server_shuts_down_are_sent_elsewhere(place: Place) -> None:
    place.ask(request())
    place.held.entered.get(timeout=SAFETY)
    assert place.patterns.close(SAFETY)
    assert isinstance(place.answers.get(timeout=SAFETY).error, Draining)
    assert place.ask(request()) is None
    assert isinstance(place.answers.get(timeout=SAFETY).error, Draining)


def test_what_was_asked_before_is_read_without_being_parsed_and_the_known_pattern_left_out(place: Place) -> None:
    place.held.let_go.set()
    place.ask(request())
    first = place.response()
    known = request(known_pattern=first.sparse.pattern.fingerprint)
    place.ask(known)
    second = place.response()
    assert not second.sparse.HasField("pattern")
    assert second.sparse.values == first.sparse.values
    place.ask(request(known_pattern=b"another"))
    third = place.response()
    assert third.sparse.pattern == first.sparse.pattern


def test_the_pattern_travels_in_coordinates_and_in_compressed_rows(place: Place) -> None:
    place.held.let_go.set()
    asked = catalog_pb2.GetSparsityRequest(hessian=request(structure=pb.HESSIAN_STRUCTURE_UNSPECIFIED))
    pattern = sparsity_of(asked, place.decoder, place.patterns, SAFETY)
    place.ask(request())
    answer = place.response()
    sent = answer.sparse.pattern
    assert sent.fingerprint == pattern.fingerprint
    assert to_array(sent.row_starts).tolist() == [0, 1, 4, 7, 10, 12]
    assert to_array(sent.column_indices).tolist() == [1, 0, 1, 2, 1, 2, 3, 2, 3, 4, 3, 4]
    assert (sent.colors, sent.source) == (3, tensor_pb2.PATTERN_SOURCE_DETECTED)
    assert [(axis.name, list(axis.shape)) for axis in sent.rows] == [("x", [5])] == [
        (axis.name, list(axis.shape)) for axis in sent.columns
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"structure": 99}, "structure"),
        ({"columns": ["x"]}, "columns"),
        ({"estimate": pb.Estimate(samples=4)}, "estimate"),
        ({"structure": pb.HESSIAN_STRUCTURE_DENSE, "known_pattern": b"p"}, "known_pattern"),
    ],
)
def test_options_that_do_not_fit_a_sparse_matrix(place: Place, options: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidOption) as refused:
        place.decoder.hessian(request(**options))
    assert refused.value.field == field


def test_unknown_structures_of_jacobians_are_refused(place: Place) -> None:
    for options in ({"structure": 99}, {"known_pattern": b"p"}):
        with pytest.raises(InvalidOption):
            place.decoder.jacobian(pb.JacobianRequest(function="held", inputs=request().inputs, **options))
    with pytest.raises(InvalidOption, match="set jacobian or hessian"):
        sparsity_of(catalog_pb2.GetSparsityRequest(), place.decoder, place.patterns, SAFETY)


def test_a_diagonal_asks_for_a_pattern_where_that_saves_products(place: Place) -> None:
    place.held.let_go.set()
    diagonal = pb.HESSIAN_STRUCTURE_DIAGONAL
    assert place.decoder.hessian(request(AIDED_ELEMENTS, structure=diagonal)).query.pattern is None
    asked = request(AIDED_ELEMENTS + 1, structure=diagonal)
    query = when_known(lambda: place.decoder.hessian(asked), place.patterns, SAFETY).query
    assert (query.diagonal, query.sparse, pattern_of(query).coloring.count) == (True, False, 3)
    trace = pb.LaplacianRequest(function="held", inputs=asked.inputs)
    assert place.decoder.laplacian(trace).query.pattern is query.pattern
