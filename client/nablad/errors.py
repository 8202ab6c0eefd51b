"""Every way in which a call can fail, for both ends of the wire.

    NabladError
    ├── InvalidArgument (also ValueError)         the request contradicts itself or the signature: correct it
    │   ├── MalformedRequest    InvalidReference    UnknownInput    MissingInput    DuplicateName    UnknownOutput
    │   └── InvalidTensor    WrongDtype    WrongShape    InvalidBatch    InvalidOption    InvalidVector
    ├── NotFound (also LookupError)               no such function here
    │   └── FunctionNotFound    VersionNotFound
    ├── FailedPrecondition                        the function does not allow it: retrying will not help
    │   └── NotScalar    NotDifferentiable    FunctionFailed    CompileFailed    LinearizationExpired
    ├── OutOfRange
    │   └── ResultTooLarge                        ask for less
    ├── DeadlineExceeded (also TimeoutError)
    ├── Cancelled
    ├── ResourceExhausted                         too much at once
    │   └── QueueFull    CompileQueueFull         retry after `retry_after` seconds
    │       RateLimited                           likewise
    │       TooManyCalls                          let some end
    │       TooManyLinearizations                 close some
    ├── Unavailable (also ConnectionError)        the server cannot be reached, is loading or draining: retry
    │   └── Loading    Draining
    ├── Unauthenticated                           the server does not know the caller: send a token it knows
    ├── PermissionDenied                          it does, and does not allow this: ask whoever runs it
    └── Internal                                  a defect of the server: report `metadata["request_id"]`

The server raises these classes and sends them as a `google.rpc.Status` (`to_status`); the client receives one and
raises the same class again (`from_rpc_error`). Within a stream they travel as a `nablad.v1.Error`
(`to_wire`, `from_wire`). The reasons are those of nablad/v1/error.proto.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from nablad.v1 import error_pb2

DOMAIN = "nablad"
MAX_MESSAGE_CHARS = 1200
"""Longer messages are cut: a status travels in HTTP/2 headers, where many peers allow 8 KiB in all."""
MAX_METADATA_CHARS = 200


class NabladError(Exception):
    """A call failed.

    Attributes:
        message: what was given, what was expected, what to try.
        field: path of the request field to blame, such as `inputs[1].tensor.data`; empty if none is.
        metadata: the facts of the message, for programs.
        retry_after: seconds to wait before the same call is worth repeating; None if it is not.
        code: the gRPC status code.
        reason: the name of the nablad.v1.Reason, without its prefix; empty for an error that the transport made.
    """

    code: ClassVar[grpc.StatusCode] = grpc.StatusCode.UNKNOWN
    reason: ClassVar[str] = ""

    def __init__(
        self,
        message: str,
        *,
        field: str = "",
        metadata: Mapping[str, str] | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.metadata = dict(metadata or {})
        self.retry_after = retry_after

    def __str__(self) -> str:
        return f"{self.message} [{self.field}]" if self.field else self.message


class InvalidArgument(NabladError, ValueError):
    """The request contradicts itself or the signature; `field` says where."""

    code = grpc.StatusCode.INVALID_ARGUMENT


class MalformedRequest(InvalidArgument):
    """The bytes are not a well-formed message of the request's type."""

    reason = "MALFORMED_REQUEST"


class InvalidReference(InvalidArgument):
    """A function reference is not `name` or `name@version`."""

    reason = "INVALID_REFERENCE"


class UnknownInput(InvalidArgument):
    """A name is not an input of the function."""

    reason = "UNKNOWN_INPUT"


class MissingInput(InvalidArgument):
    """An input of the function was not given."""

    reason = "MISSING_INPUT"


class DuplicateName(InvalidArgument):
    """A name was given twice."""

    reason = "DUPLICATE_NAME"


class UnknownOutput(InvalidArgument):
    """A name is not an output of the function, or several qualify and none was named."""

    reason = "UNKNOWN_OUTPUT"


class InvalidTensor(InvalidArgument):
    """A tensor contradicts itself."""

    reason = "INVALID_TENSOR"


class WrongDtype(InvalidArgument):
    """A dtype that the signature does not accept there."""

    reason = "WRONG_DTYPE"


class WrongShape(InvalidArgument):
    """A shape that the signature does not accept there."""

    reason = "WRONG_SHAPE"


class InvalidBatch(InvalidArgument):
    """No points, or batched tensors that disagree on the number of points."""

    reason = "INVALID_BATCH"


class InvalidOption(InvalidArgument):
    """An option has a value that is unknown or does not fit the others."""

    reason = "INVALID_OPTION"


class InvalidVector(InvalidArgument):
    """A tangent, cotangent or direction is missing, or a direction has no length."""

    reason = "INVALID_VECTOR"


class NotFound(NabladError, LookupError):
    """Nothing is registered under that reference."""

    code = grpc.StatusCode.NOT_FOUND


class FunctionNotFound(NotFound):
    """No function of that name."""

    reason = "FUNCTION_NOT_FOUND"


class VersionNotFound(NotFound):
    """The function has no such version."""

    reason = "VERSION_NOT_FOUND"


class FailedPrecondition(NabladError):
    """The function does not allow what was asked; retrying will not help."""

    code = grpc.StatusCode.FAILED_PRECONDITION


class NotScalar(FailedPrecondition):
    """The operator needs a scalar where the function has none."""

    reason = "NOT_SCALAR"


class NotDifferentiable(FailedPrecondition):
    """An input or output cannot be differentiated, or the function cannot in this mode."""

    reason = "NOT_DIFFERENTIABLE"


class FunctionFailed(FailedPrecondition):
    """The function raised an error of its own."""

    reason = "FUNCTION_FAILED"


class CompileFailed(FailedPrecondition):
    """The derivative was traced but could not be compiled."""

    reason = "COMPILE_FAILED"


class LinearizationExpired(FailedPrecondition):
    """A Linearize stream was idle for too long; open a new one."""

    reason = "LINEARIZATION_EXPIRED"


class OutOfRange(NabladError):
    """The answer is outside what the service returns."""

    code = grpc.StatusCode.OUT_OF_RANGE


class ResultTooLarge(OutOfRange):
    """The result would be larger than a response may be; ask for less."""

    reason = "RESULT_TOO_LARGE"


class DeadlineExceeded(NabladError, TimeoutError):
    """The deadline passed."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED
    reason = "DEADLINE_EXCEEDED"


class Cancelled(NabladError):
    """The call was cancelled."""

    code = grpc.StatusCode.CANCELLED
    reason = "CANCELLED"


class ResourceExhausted(NabladError):
    """Too much at once, or a message larger than the limit."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED


class QueueFull(ResourceExhausted):
    """The queue is full; retry after `retry_after` seconds."""

    reason = "QUEUE_FULL"


class CompileQueueFull(ResourceExhausted):
    """Too many programs wait to be compiled; retry after `retry_after` seconds."""

    reason = "COMPILE_QUEUE_FULL"


class TooManyLinearizations(ResourceExhausted):
    """The caller has too many Linearize streams open; close some."""

    reason = "TOO_MANY_LINEARIZATIONS"


class TooManyCalls(ResourceExhausted):
    """The caller has too many calls or streams open; let some end."""

    reason = "TOO_MANY_CALLS"


class RateLimited(ResourceExhausted):
    """The caller asks too often; retry after `retry_after` seconds."""

    reason = "RATE_LIMITED"


class Unavailable(NabladError, ConnectionError):
    """The server cannot be reached, or cannot serve now; retry, preferably elsewhere."""

    code = grpc.StatusCode.UNAVAILABLE


class Loading(Unavailable):
    """The server is warming up."""

    reason = "LOADING"


class Draining(Unavailable):
    """The server is shutting down."""

    reason = "DRAINING"


class Unauthenticated(NabladError):
    """The server has to know its callers, and does not know this one."""

    code = grpc.StatusCode.UNAUTHENTICATED
    reason = "UNAUTHENTICATED"


class PermissionDenied(NabladError):
    """The caller may not do this."""

    code = grpc.StatusCode.PERMISSION_DENIED
    reason = "PERMISSION_DENIED"


class Internal(NabladError):
    """A defect of the server."""

    code = grpc.StatusCode.INTERNAL
    reason = "INTERNAL"


def _subclasses(of: type[NabladError]) -> list[type[NabladError]]:
    return [of] + [leaf for child in of.__subclasses__() for leaf in _subclasses(child)]


_BY_REASON = {kind.reason: kind for kind in _subclasses(NabladError) if kind.reason}
_BY_CODE = {kind.code: kind for kind in reversed(_subclasses(NabladError)) if "code" in vars(kind)}


def to_wire(error: NabladError) -> error_pb2.Error:
    """The error as it travels within a stream. Cut to stay under 4 KiB."""
    code: int = error.code.value[0]
    sent = error_pb2.Error(
        code=code,
        reason=error_pb2.Reason.Value(f"REASON_{error.reason or 'UNSPECIFIED'}"),
        message=_cut(error.message, MAX_MESSAGE_CHARS),
        field=_cut(error.field, MAX_METADATA_CHARS),
        metadata={key: _cut(value, MAX_METADATA_CHARS) for key, value in error.metadata.items()},
    )
    if error.retry_after is not None:
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(int(error.retry_after * 1e9))
        sent.retry_after.CopyFrom(delay)
    return sent


def from_wire(error: error_pb2.Error) -> NabladError:
    """The exception that an error within a stream stands for; unknown reasons are treated as their code alone."""
    known = error.reason in error_pb2.Reason.values()
    reason = error_pb2.Reason.Name(error.reason).removeprefix("REASON_") if known else ""
    kind = _BY_REASON.get(reason, _kind_of_code(error.code))
    retry_after = error.retry_after.ToNanoseconds() / 1e9 if error.HasField("retry_after") else None
    return kind(error.message, field=error.field, metadata=dict(error.metadata), retry_after=retry_after)


def to_status(error: NabladError) -> status_pb2.Status:
    """The error as it travels: code, message and the details that error.proto lists. Cut to stay under 4 KiB."""
    sent = to_wire(error)
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=dict(sent.metadata))
    details: list[error_details_pb2.ErrorInfo | error_details_pb2.BadRequest | error_details_pb2.ResourceInfo
                  | error_details_pb2.RetryInfo] = [info]  # fmt: skip
    if sent.field:
        violation = error_details_pb2.BadRequest.FieldViolation(field=sent.field)
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if isinstance(error, NotFound):
        name = sent.metadata.get("function", "")
        details.append(error_details_pb2.ResourceInfo(resource_type="nablad.v1.Function", resource_name=name))
    if sent.HasField("retry_after"):
        details.append(error_details_pb2.RetryInfo(retry_delay=sent.retry_after))
    status = status_pb2.Status(code=sent.code, message=sent.message)
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return status


def from_rpc_error(error: grpc.RpcError, *, cancelled_here: bool = True) -> NabladError:
    """The exception that a failed call stands for.

    Without `cancelled_here` nobody on this side has cancelled it: a call that is cancelled nevertheless reached a
    server in the moment in which it stopped, and is Unavailable.

    `error` is what grpc or grpc.aio raised. Without details (the transport made the error, or a proxy) the class is
    chosen by the status code alone and `reason` is empty.
    """
    call: Any = error  # grpc's and grpc.aio's errors are calls too, which their types do not say
    if call.code() is grpc.StatusCode.CANCELLED and not cancelled_here:
        return Unavailable("the server stopped as the call reached it; retry elsewhere")
    try:
        status = rpc_status.from_call(call)
        if status is not None:
            return from_status(status)
    except (ValueError, DecodeError):  # details that are none, or contradict the status, which a proxy may have made
        pass
    kind = _BY_CODE.get(call.code(), NabladError)
    return kind(f"{call.code().name}: {call.details() or 'no further detail'}")


def from_status(status: status_pb2.Status) -> NabladError:
    """The exception that a `google.rpc.Status` stands for; unknown reasons are treated as their code alone."""
    kind = _kind_of_code(status.code)
    field, retry_after, metadata = "", None, {}
    for packed in status.details:
        info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
        retry = error_details_pb2.RetryInfo()
        if packed.Unpack(info) and info.domain == DOMAIN:
            kind = _BY_REASON.get(info.reason, kind)
            metadata = dict(info.metadata)
        elif packed.Unpack(bad) and bad.field_violations:
            field = bad.field_violations[0].field
        elif packed.Unpack(retry):
            retry_after = retry.retry_delay.ToNanoseconds() / 1e9
    return kind(status.message, field=field, metadata=metadata, retry_after=retry_after)


def _kind_of_code(number: int) -> type[NabladError]:
    by_number = {code.value[0]: code for code in grpc.StatusCode}
    return _BY_CODE.get(by_number.get(number, grpc.StatusCode.UNKNOWN), NabladError)


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
