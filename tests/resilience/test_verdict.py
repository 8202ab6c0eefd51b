"""What the fuzzer's verdicts find: answers that nobody asked for, that come twice or not at all, or tell too much."""

import grpc
import numpy as np
import pytest
from google.protobuf.message import Message

from nablad.tensors import to_tensor
from nablad.v1 import catalog_pb2, error_pb2
from nablad.v1 import differentiation_pb2 as pb
from nablad.v1.function_pb2 import Function
from nablad.v1.tensor_pb2 import NamedTensor
from resilience.corpus import rpcs
from resilience.questions import gradient_of_rosenbrock
from resilience.verdict import MARKED, Verdict, marked

RPCS = {rpc.path.rpartition("/")[2]: rpc for rpc in rpcs()}
FIRST, SECOND = MARKED[0], MARKED[1]


def right(identity: int) -> pb.Answer:
    """The right answer to a marked operation."""
    (named,) = marked(identity).operations[0].gradient.inputs
    gradient = gradient_of_rosenbrock(np.frombuffer(named.tensor.data))
    answer = pb.GradientResponse(gradients=[NamedTensor(name="x", tensor=to_tensor(gradient))])
    return pb.Answer(id=identity, gradient=answer)


def judged(name: str, asked: list[Message], answers: list[Message], functions: frozenset[str] | None = None) -> str:
    verdict = Verdict(RPCS[name], tuple(message.SerializeToString() for message in asked), functions)
    wrong = [text for answer in answers for text in verdict.answer(answer.SerializeToString())]
    return "; ".join([*wrong, *verdict.end(grpc.StatusCode.OK, whole=True)])


def pipeline(*answers: pb.Answer) -> str:
    return judged("Pipeline", [marked(FIRST), marked(SECOND)], [pb.PipelineResponse(answers=answers)])


def test_right_answers_in_any_order_are_right() -> None:
    assert pipeline(right(SECOND), right(FIRST)) == ""


def test_answers_that_are_not_to_these_questions_are_found() -> None:
    swapped = right(SECOND)
    swapped.id = FIRST
    failed = pb.Answer(id=FIRST, error=error_pb2.Error(code=grpc.StatusCode.INTERNAL.value[0], message="a defect"))

    assert "that to another question" in pipeline(swapped, right(SECOND))
    assert "answered 5 1 times, which was asked 0 times" in pipeline(right(FIRST), right(SECOND), pb.Answer(id=5))
    assert "2 times, which was asked 1 times" in pipeline(right(FIRST), right(SECOND), right(FIRST))
    assert f"left {SECOND} unanswered" in pipeline(right(FIRST))
    assert "a defect" in pipeline(failed, right(SECOND))


def test_rows_out_of_order_are_found() -> None:
    def rows(*firsts: int) -> str:
        answers = [pb.StreamHessianResponse(header=pb.MatrixHeader(first_row=1))]
        for first in firsts:
            block = pb.RowBlock(first_row=first, tensor=to_tensor(np.ones((2, 3))))
            answers.append(pb.StreamHessianResponse(block=block))
        return judged("StreamHessian", [RPCS["StreamHessian"].valid[0][0]], [*answers])

    assert rows(1, 3, 5) == ""
    assert "sent row 5; expected 3" in rows(1, 5)
    assert "sent row 0; expected 1" in rows(0)


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("Evaluate", pb.EvaluateResponse(execution=pb.Execution(function="matvec@1"))),
        ("ListFunctions", catalog_pb2.ListFunctionsResponse(functions=[Function(name="matvec")])),
        (
            "GetStatistics",
            catalog_pb2.GetStatisticsResponse(statistics=[catalog_pb2.OperatorStatistics(function="matvec@1")]),
        ),
    ],
)
def test_what_tells_of_a_function_that_a_caller_may_not_use_is_found(name: str, answer: Message) -> None:
    asked = [RPCS[name].valid[0][0]]

    assert "told of 'matvec'" in judged(name, asked, [answer], frozenset({"rosenbrock"}))
    assert judged(name, asked, [answer], frozenset({"rosenbrock", "matvec"})) == ""
