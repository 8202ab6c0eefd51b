"""The state machine of pipelines: calls in, messages out; answers in, futures settled. No threads, no sockets."""

import itertools
from concurrent.futures import Future
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from client.pipeline_server import LARGE, POISON, PipelineServer
from nablad import errors
from nablad._calls import MISSING, OPERATORS
from nablad._packing import GRACE_SECONDS, MESSAGE_BYTES, PACK_SECONDS, Group, Operation, Packing, part_points
from nablad._plans import PACK_POINTS, Plan, key_of, make, rows
from nablad.results import Execution, FunctionInfo, Gradient, Jacobian, TensorInfo
from nablad.v1 import differentiation_pb2 as pb
from nablad.v1 import tensor_pb2

X, VALUE = TensorInfo("x", ("float64",), ("n",), True), TensorInfo("value", ("float64",), (), True)
INFO = FunctionInfo("bowl", 1, "", "", "", (X,), (VALUE,), ())
OPTIONS = {"wrt": None, "output": None, "mode": "auto", "batched": False}


class Held(Future[Any]):
    """A future that knows its operation."""

    operation: Operation | None = None


def plan(size: int = 3) -> Plan[Any]:
    operator = OPERATORS["gradient"]
    _, arguments = key_of(operator, "bowl", (np.zeros(size),), {}, vector=MISSING, options=OPTIONS)
    made = make(operator, operator.prepared(INFO, "bowl", arguments, {}, vector=MISSING, options=OPTIONS), arguments)
    assert made
    return made


def answered(message: bytes) -> list[pb.Answer]:
    """What an honest server says to a message."""
    server = PipelineServer()
    return [server._answer(operation) for operation in pb.PipelineRequest.FromString(message).operations]


def settle(packing: Packing, answers: list[pb.Answer], retries: bool = True) -> None:
    taken = packing.take(pb.PipelineResponse(answers=answers))
    again = [part for operation, answer in taken for part in operation.settle(answer, retries)]
    packing.settled(len(taken), again)


def submit(packing: Packing, group: Group, value: float, now: float = 0.0) -> Held:
    future = Held()
    packing.add_row(group, [np.full(group.plan.row_bytes // 8, value).tobytes()], future, now)
    return future


class Machine(RuleBasedStateMachine):
    """Whatever happens in whatever order, every future is settled once, with its own result."""

    def __init__(self) -> None:
        super().__init__()
        self.packing = Packing()
        self.groups = [Group(plan(3), 10.0), Group(plan(3), None), Group(plan(2000), 10.0)]
        self.calls: list[tuple[Held, float]] = []
        self.told: list[bytes] = []
        self.values = itertools.count(1)
        self.now = 0.0

    @rule(group=st.integers(0, 2), calls=st.integers(1, 700))
    def submit(self, group: int, calls: int) -> None:
        for _ in range(calls if group < 2 else calls // 20):
            value = float(next(self.values))
            value = {0: POISON, 1: LARGE}.get(int(value) % 97, value)
            self.calls.append((submit(self.packing, self.groups[group], value, self.now), value))

    @rule()
    def send(self) -> None:
        message = self.packing.message(self.now)
        if message is not None:
            request = pb.PipelineRequest.FromString(message)
            assert len(message) <= MESSAGE_BYTES + 1000 or len(request.operations) == 1
            assert len({operation.id for operation in request.operations}) == len(request.operations)
            self.told.append(message)

    @precondition(lambda self: self.told)
    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        message = self.told.pop(data.draw(st.integers(0, len(self.told) - 1)))
        answers = answered(message)
        settle(self.packing, data.draw(st.permutations(answers)) if len(answers) < 20 else answers[::-1])

    @rule()
    def lose_the_stream(self) -> None:
        self.told.clear()
        self.packing.resend()

    @precondition(lambda self: self.calls)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        future, _ = data.draw(st.sampled_from(self.calls))
        if not future.done() and future.cancel() and future.operation is not None:
            self.packing.unwanted(future.operation)

    @rule(seconds=st.floats(0, 0.2))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def counts_agree(self) -> None:
        assert self.packing.unsent_points >= 0
        assert (self.packing.unsent_points == 0) == (self.packing.unsent_bytes == 0)

    def teardown(self) -> None:
        while self.packing.open:
            self.send()
            for message in self.told:
                settle(self.packing, answered(message))
            self.told.clear()
        assert self.packing.unsent_points == 0
        for future, value in self.calls:
            if future.cancelled():
                continue
            if value == POISON:
                assert isinstance(future.exception(0), errors.FunctionFailed)
            else:
                assert np.all(future.result(0).gradient == 2 * value)


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=40, stateful_step_count=20, deadline=None)


@given(st.integers(1, 3000))
@settings(deadline=None, max_examples=30)
def test_packs_are_full_except_for_the_last(calls: int) -> None:
    packing, group = Packing(), Group(plan(), None)
    for value in range(calls):
        submit(packing, group, float(value))
    sizes = []
    while (message := packing.message(0.0)) is not None:
        for operation in pb.PipelineRequest.FromString(message).operations:
            named = operation.gradient.inputs[0]
            sizes.append(named.tensor.shape[0] if named.batched else 1)
    full, rest = divmod(calls, PACK_POINTS)
    assert sizes == [PACK_POINTS] * full + [rest] * bool(rest)


def test_a_single_call_is_the_plain_request() -> None:
    packing = Packing()
    submit(packing, Group(plan(), 2.0), 1.5, now=10.0)
    request = pb.PipelineRequest.FromString(packing.message(10.5) or b"")
    (operation,) = request.operations
    assert operation.timeout_nanoseconds == 1_500_000_000
    assert not operation.gradient.inputs[0].batched
    assert list(operation.gradient.inputs[0].tensor.shape) == [3]


def test_what_is_cancelled_before_it_is_sent_is_not_sent() -> None:
    packing, group = Packing(), Group(plan(), None)
    futures = [submit(packing, group, float(value)) for value in range(4)]
    for future in futures[1:3]:
        future.cancel()
        assert future.operation
        packing.unwanted(future.operation)
    message = packing.message(0.0) or b""
    (operation,) = pb.PipelineRequest.FromString(message).operations
    assert np.frombuffer(operation.gradient.inputs[0].tensor.data).tolist() == [0.0] * 3 + [3.0] * 3
    settle(packing, answered(message))
    assert futures[3].result(0).value == 27.0


def test_an_operation_that_nobody_wants_is_cancelled() -> None:
    packing, group = Packing(), Group(plan(), None)
    futures = [submit(packing, group, float(value)) for value in range(2)]
    packing.message(0.0)
    for future in futures:
        future.cancel()
        assert future.operation
        packing.unwanted(future.operation)
    assert pb.PipelineRequest.FromString(packing.message(0.0) or b"").cancelled_ids == [1]
    assert packing.open == 0


def test_lateness_is_counted_from_the_last_call_of_a_pack() -> None:
    packing, group = Packing(), Group(plan(), 1.0)
    submit(packing, group, 1.0, now=0.0)
    submit(packing, group, 2.0, now=PACK_SECONDS)
    assert packing.late(1.0 + GRACE_SECONDS) == []
    (late,) = packing.late(1.0 + PACK_SECONDS + GRACE_SECONDS)
    assert len(late.futures) == 2
    assert packing.open == packing.unsent_points == 0


def test_a_pack_does_not_wait_for_ever() -> None:
    packing, group = Packing(), Group(plan(), 1.0)
    assert packing.add_row(group, [b"\0" * 24], Held(), 0.0)
    assert not packing.add_row(group, [b"\0" * 24], Held(), PACK_SECONDS)
    assert packing.add_row(group, [b"\0" * 24], Held(), 2 * PACK_SECONDS + 0.01)


def response_of(size: int) -> pb.HessianResponse:
    tensor = tensor_pb2.Tensor(data=b"\0" * size)
    return pb.HessianResponse(blocks=[tensor_pb2.Block(tensor=tensor)])


def test_packs_shrink_to_the_size_of_results() -> None:
    small = plan()
    small.learn(response_of(4 << 20), 8)
    assert small.points == 1
    other = plan()
    other.learn(response_of(1 << 20), 16)
    assert other.points == 15
    assert other.answer_bytes > 65_536


def test_which_errors_one_of_many_points_may_be_to_blame_for() -> None:
    assert part_points(errors.FunctionFailed("m"), 9) == 1
    assert part_points(errors.InvalidVector("m"), 9) == 1
    assert part_points(errors.Internal("m"), 9) == 1
    assert part_points(errors.ResultTooLarge("m"), 9) == 5
    assert part_points(errors.FunctionFailed("m"), 1) == 0
    assert part_points(errors.NotScalar("m"), 9) == 0
    assert part_points(errors.QueueFull("m"), 9) == 0


def test_packs_shrink_for_good_only_if_results_are_too_large() -> None:
    packing, group = Packing(), Group(plan(), None)
    for error, limit in ((errors.FunctionFailed("m"), PACK_POINTS), (errors.ResultTooLarge("m"), PACK_POINTS // 2)):
        for value in range(PACK_POINTS):
            submit(packing, group, float(value))
        (operation,) = pb.PipelineRequest.FromString(packing.message(0.0) or b"").operations
        settle(packing, [pb.Answer(id=operation.id, error=errors.to_wire(error))])
        assert group.plan.points == limit
        while packing.message(0.0):
            pass


def test_an_answer_of_another_kind_is_an_error() -> None:
    packing = Packing()
    future = submit(packing, Group(plan(), None), 1.0)
    packing.message(0.0)
    settle(packing, [pb.Answer(id=1, hessian=pb.HessianResponse())])
    assert isinstance(future.exception(0), errors.Internal)


def test_an_operation_is_not_offered_for_ever_to_servers_that_drain() -> None:
    packing = Packing()
    future = submit(packing, Group(plan(), None), 1.0)
    sent = 0
    while (message := packing.message(0.0)) is not None:
        (operation,) = pb.PipelineRequest.FromString(message).operations
        sent += 1
        settle(packing, [pb.Answer(id=operation.id, error=errors.to_wire(errors.Draining("bye")))])
    assert sent == 4
    assert isinstance(future.exception(0), errors.Draining)


def test_rows_of_nested_results_and_their_own_flags() -> None:
    ran = Execution("f@1", 2, 0.0, 0.0, 0.0)
    value = {"a": np.array([1.0, 2.0]), "b": [np.zeros((2, 3))]}
    batched = Jacobian(value, True, ran, {"x": np.array([[1.0], [np.inf]]), "n": np.ones((2, 2))})
    first, second = rows(batched, 2)
    assert first.value["a"].shape == ()
    assert first.value["b"][0].shape == (3,)
    assert second.jacobian["x"].tolist() == [np.inf]
    assert [first.non_finite, second.non_finite] == [False, True]
    assert first.execution is ran
    calm = Gradient(np.zeros(2), False, ran, np.zeros((2, 3)))
    assert [row.non_finite for row in rows(calm, 2)] == [False, False]
    assert all(row.gradient.flags.writeable and row.value.flags.writeable for row in rows(calm, 2))
