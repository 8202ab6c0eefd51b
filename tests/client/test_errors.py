"""The exception tree and its way over the wire."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from google.rpc import code_pb2, status_pb2

from nablad import errors
from nablad.errors import _BY_REASON, NabladError, from_status, from_wire, to_status, to_wire
from nablad.v1 import error_pb2


@pytest.mark.parametrize("kind", _BY_REASON.values(), ids=lambda kind: kind.__name__)
def test_every_error_arrives_as_it_was_raised(kind: type[NabladError]) -> None:
    sent = kind("what was given", field="inputs[0].name", metadata={"input": "x"}, retry_after=0.25)
    for got in (
        from_status(status_pb2.Status.FromString(to_status(sent).SerializeToString())),
        from_wire(error_pb2.Error.FromString(to_wire(sent).SerializeToString())),
    ):
        assert type(got) is kind
        assert (got.message, got.field, got.metadata, got.retry_after) == (
            sent.message,
            sent.field,
            sent.metadata,
            0.25,
        )


def test_an_unknown_reason_is_its_status_code() -> None:
    status = to_status(errors.WrongShape("m"))
    status.details[0].value = status.details[0].value.replace(b"WRONG_SHAPE", b"OTHER_SHAPE")
    assert type(from_status(status)) is errors.InvalidArgument
    sent = to_wire(errors.WrongShape("m"))
    sent.reason = 999  # type: ignore[assignment]  # of a server newer than this client
    assert type(from_wire(error_pb2.Error.FromString(sent.SerializeToString()))) is errors.InvalidArgument


def test_an_error_without_a_reason_is_its_status_code() -> None:
    assert type(from_wire(to_wire(errors.NotFound("m")))) is errors.NotFound


def test_an_unknown_code_is_a_nablad_error() -> None:
    assert type(from_status(status_pb2.Status(code=code_pb2.DATA_LOSS, message="m"))) is NabladError
    assert type(from_wire(error_pb2.Error(code=99, message="m"))) is NabladError


def test_details_stay_under_4_kib() -> None:
    error = errors.UnknownInput("é" * 10_000, field="f" * 10_000, metadata={"input": "x" * 10_000})
    assert to_status(error).ByteSize() < 4096
    assert to_wire(error).ByteSize() < 4096


@pytest.mark.parametrize(
    ("kind", "builtin"),
    [(errors.InvalidTensor, ValueError), (errors.FunctionNotFound, LookupError),
     (errors.DeadlineExceeded, TimeoutError), (errors.Draining, ConnectionError)],
)  # fmt: skip
def test_errors_are_also_what_python_calls_them(kind: type[NabladError], builtin: type[Exception]) -> None:
    assert issubclass(kind, builtin)


def test_the_drawing_names_every_class() -> None:
    drawn = errors.__doc__ or ""
    classes = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, NabladError)]
    assert [kind.__name__ for kind in classes if kind.__name__ not in drawn] == []
    assert all(isinstance(kind.code, grpc.StatusCode) for kind in classes)


def test_details_that_are_none_leave_the_status_code() -> None:
    def behave(_: bytes, context: grpc.ServicerContext) -> bytes:
        context.set_trailing_metadata((("grpc-status-details-bin", b"\xff\xff"),))
        context.abort(grpc.StatusCode.NOT_FOUND, "a proxy's own")
        raise AssertionError

    server = grpc.server(ThreadPoolExecutor(1))
    method: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {"Anything": grpc.unary_unary_rpc_method_handler(behave)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("any.Service", method),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        call: Any = channel.unary_unary("/any.Service/Anything")
        with pytest.raises(grpc.RpcError) as caught:
            call(b"", timeout=60)
    server.stop(None).wait()

    error = errors.from_rpc_error(caught.value)
    assert type(error) is errors.NotFound
    assert error.message == "NOT_FOUND: a proxy's own"
