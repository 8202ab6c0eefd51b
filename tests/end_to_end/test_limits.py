"""That one caller cannot starve another: real servers, with callers who say who they are."""

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pytest

import nablad
from end_to_end.pipelines import Stream, gradient
from nablad.errors import CompileQueueFull, NabladError, RateLimited, TooManyCalls
from nablad.v1 import differentiation_pb2 as pb
from servers import ServerProcess

FLOOD, OTHER, SLOW, OTHER_SLOW, FEW_STREAMS, FEW_CALLS, CATALOGUE = (f"{name:=<40}" for name in (
    "flood", "other", "slow", "other-slow", "few-streams", "few-calls", "catalogue"
))  # fmt: skip
SHAPES = 1000
POINT = np.array([1.0, 2.0])


@pytest.fixture(scope="module")
def identities(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("identities") / "identities.toml"
    entry = '[[identity]]\nname = "{}"\ntoken_sha256 = "{}"\nroles = ["evaluate", "catalogue"]\n{}\n'
    own = {
        FLOOD: "", OTHER: "", SLOW: "rate = 3.0", OTHER_SLOW: "rate = 2.5", FEW_STREAMS: "streams = 1",
        FEW_CALLS: "calls = 1", CATALOGUE: "rate = 0.01",
    }  # fmt: skip
    path.write_text(
        "".join(entry.format(token, hashlib.sha256(token.encode()).hexdigest(), own[token]) for token in own)
    )
    return path


@pytest.fixture(scope="module")
def limited(identities: Path) -> Iterator[ServerProcess]:
    with ServerProcess("--tokens", identities, "--warm", "gradient rosenbrock n=2") as process:
        yield process
        assert process.errors() == []


def client_of(server: ServerProcess, token: str) -> nablad.Client:
    return nablad.Client(server.address, token=token, timeout=120, retries=False)


def reason(answer: pb.Answer) -> str:
    return nablad.errors.from_wire(answer.error).reason if answer.HasField("error") else ""


def test_a_thousand_new_shapes_of_one_delay_anothers_first_by_a_few_compilations(limited: ServerProcess) -> None:
    with client_of(limited, FLOOD) as flooding, client_of(limited, OTHER) as other:
        other.gradient("rosenbrock", POINT)
        other.evaluate("styblinski_tang", POINT)  # what follows needs one program more, and nothing else
        pipeline = flooding.pipeline()
        futures = [pipeline.gradient("rosenbrock", np.ones(3 + size)) for size in range(SHAPES)]
        futures[0].result(120)  # the first is compiled, and others wait
        compiled = sum(future.done() and future.exception() is None for future in futures)

        gradient = other.gradient("styblinski_tang", np.ones(2011)).gradient

        between = sum(future.done() and future.exception() is None for future in futures) - compiled
        warm = [other.gradient("rosenbrock", POINT).value.item() for _ in range(20)]
        assert not all(future.done() for future in futures), "warm calls had to wait for all of the flood"
        results = [future.exception(120) for future in futures]
        pipeline.close()

    assert gradient.shape == (2011,)
    assert between <= 6, "compilations of the flood while the other's one was waited for"
    assert set(warm) == {100.0}
    refused = [error for error in results if error is not None]
    assert all(isinstance(error, CompileQueueFull) and error.retry_after for error in refused)
    assert len(refused) > SHAPES // 2
    assert len(refused) < SHAPES


def test_the_compilations_that_one_caller_has_waiting_are_bounded_and_the_message_says_so(
    limited: ServerProcess,
) -> None:
    with client_of(limited, FLOOD) as flooding, flooding.pipeline() as pipeline:
        futures = [pipeline.gradient("rastrigin", np.ones(3 + size)) for size in range(100)]
        errors = [error for future in futures if (error := future.exception(120)) is not None]

    assert errors
    assert all("asked for by this caller" in str(error) for error in errors)


def test_who_has_used_up_its_seconds_of_compiling_is_refused_new_shapes_and_nothing_else(identities: Path) -> None:
    warm = (
        "--warm",
        "gradient rosenbrock n=2",
        "--warm",
        "gradient rosenbrock n=3",
        "--warm",
        "gradient rosenbrock n=4",
    )
    with (
        ServerProcess("--tokens", identities, *warm, "--compile-seconds-per-caller", "0.05") as process,
        client_of(process, FLOOD) as flooding,
        client_of(process, OTHER) as other,
    ):
        refused = None
        for size in range(100, 200):
            try:
                flooding.gradient("rosenbrock", np.ones(size))
            except CompileQueueFull as error:
                refused = error
                break
        assert refused is not None
        assert "more than the 0.05 s that it may take" in refused.message
        assert refused.retry_after
        assert flooding.gradient("rosenbrock", POINT).value == 100.0
        assert other.gradient("rosenbrock", np.ones(201)).value == 0.0


def test_more_requests_than_the_rate_are_refused_with_a_time_to_wait(limited: ServerProcess) -> None:
    with client_of(limited, SLOW) as slow, client_of(limited, OTHER) as other:
        errors = []
        for _ in range(30):
            try:
                slow.gradient("rosenbrock", POINT)
            except RateLimited as error:
                errors.append(error)
        answered = [other.gradient("rosenbrock", POINT).value for _ in range(30)]

    assert len(errors) >= 10
    assert all(error.retry_after is not None and 0 < error.retry_after <= 1 / 3 for error in errors)
    assert "3 times a second" in errors[0].message
    assert errors[0].metadata == {"limit": "3"}
    assert answered == [100.0] * 30


def test_operations_of_a_stream_count_as_requests(limited: ServerProcess) -> None:
    with grpc.insecure_channel(limited.address) as channel:
        stream = Stream(channel, token=OTHER_SLOW)
        stream.send(*(gradient(identity, POINT) for identity in range(1, 31)))
        reasons = [reason(answer) for answer in stream.take(30)]
        stream.end()

    assert reasons.count("RATE_LIMITED") >= 20
    assert set(reasons) == {"", "RATE_LIMITED"}


def test_calls_of_the_catalogue_count_as_well(limited: ServerProcess) -> None:
    with client_of(limited, CATALOGUE) as client:
        assert next(client.functions()).name

        with pytest.raises(RateLimited) as refused:
            next(client.functions())

    assert refused.value.retry_after == pytest.approx(100, rel=0.1)


def test_a_caller_may_have_so_many_streams_open_and_another_its_own(limited: ServerProcess) -> None:
    with grpc.insecure_channel(limited.address) as channel:
        streams = [Stream(channel, token=token) for token in (FEW_STREAMS, OTHER, OTHER, OTHER)]
        for each in streams:
            each.send(gradient(1, POINT))
            assert [reason(answer) for answer in each.take(1)] == [""]

        second = Stream(channel, token=FEW_STREAMS)
        second.send(gradient(1, POINT))
        with pytest.raises(grpc.RpcError) as refused:
            second.take(1)
        second.end()
        streams[0].rest()
        third = Stream(channel, token=FEW_STREAMS)
        third.send(gradient(1, POINT))
        assert [reason(answer) for answer in third.take(1)] == [""], "the first has ended"
        for each in (*streams[1:], third):
            each.end()

    error = nablad.errors.from_rpc_error(refused.value)
    assert isinstance(error, TooManyCalls)
    assert error.metadata == {"limit": "1"}
    assert error.retry_after


def test_a_call_beside_the_only_one_that_a_caller_may_have_is_refused(limited: ServerProcess) -> None:
    with grpc.insecure_channel(limited.address) as channel, client_of(limited, FEW_CALLS) as client:
        stream = Stream(channel, token=FEW_CALLS)
        stream.send(gradient(1, POINT))
        stream.take(1)

        with pytest.raises(TooManyCalls, match="1 calls of this caller") as refused:
            client.evaluate("rosenbrock", POINT)
        assert refused.value.retry_after
        stream.end()


def test_calls_of_many_at_once_are_answered_or_refused_and_none_is_lost(limited: ServerProcess) -> None:
    def ask(_: int) -> str:
        try:
            return f"{slow.gradient('rosenbrock', POINT).value:g}"
        except NabladError as error:
            return error.reason

    with client_of(limited, SLOW) as slow, ThreadPoolExecutor(16) as pool:
        reasons = set(pool.map(ask, range(64)))

    assert reasons <= {"100", "RATE_LIMITED"}
    assert "RATE_LIMITED" in reasons
