"""The entrance to everything that grpc.server serves itself: nobody comes in who may not."""

import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import grpc
from grpc_status import rpc_status

from nablad.errors import NabladError, ResourceExhausted, to_status
from nablad_server.serving.caller import CURRENT, Caller
from nablad_server.serving.callers import OPEN, Callers, check_role
from nablad_server.serving.limits import OWNER, Accounts

MAX_STREAMS = 2
"""So many streams of reflection may be open at once: each holds a thread for as long as its caller likes."""

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


class Guard(grpc.ServerInterceptor):
    """Finds out who calls, and whether they may call this.

    What works on a call learns from `current` whose it is. Services that nobody thought of here are for `admin` alone.
    """

    def __init__(self, callers: Callers, accounts: Accounts) -> None:
        self._callers = callers
        self._accounts = accounts
        self._room = threading.Semaphore(MAX_STREAMS)

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], "Handler | None"],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "Handler | None":
        """The method's handler, behind the guard."""
        method = handler_call_details.method
        handler = continuation(handler_call_details)
        if handler is None or method.split("/")[1] in OPEN:
            return handler
        metadata = handler_call_details.invocation_metadata
        enter = lambda context: self._enter(method, metadata, context)
        if handler.unary_unary is not None:
            return grpc.unary_unary_rpc_method_handler(
                _guarded(handler.unary_unary, enter), handler.request_deserializer, handler.response_serializer
            )
        if handler.stream_stream is not None:  # reflection's
            return grpc.stream_stream_rpc_method_handler(
                _guarded_stream(handler.stream_stream, enter, self._room),
                handler.request_deserializer,
                handler.response_serializer,
            )
        raise TypeError(f"{method} has another form than those that are guarded")

    def _enter(self, method: str, metadata: Any, context: grpc.ServicerContext) -> Caller:
        try:
            caller = self._callers.of(metadata, context.peer, context.auth_context)
            check_role(caller, method)
            account = self._accounts.of(caller.key, caller.limits)
            refused = account.enter(stream=False)
            if refused is not None:
                raise refused
        except NabladError as error:
            context.abort_with_status(rpc_status.to_status(to_status(error)))
        if not context.add_callback(lambda: account.leave(stream=False)):
            account.leave(stream=False)  # the call is over already
        OWNER.set(account.owner)
        return caller


def _guarded(behave: Callable[[Any, Any], Any], enter: Callable[[Any], Caller]) -> Callable[[Any, Any], Any]:
    def guarded(request: Any, context: grpc.ServicerContext) -> Any:
        CURRENT.set(enter(context))  # in the call's own context: nothing to be undone
        return behave(request, context)

    return guarded


def _guarded_stream(
    behave: Callable[[Any, Any], Iterator[Any]], enter: Callable[[Any], Caller], room: threading.Semaphore
) -> Callable[[Any, Any], Iterator[Any]]:
    def guarded(requests: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        enter(context)
        if not room.acquire(blocking=False):
            full = ResourceExhausted(f"{MAX_STREAMS} such streams are open already; retry later", retry_after=1.0)
            context.abort_with_status(rpc_status.to_status(to_status(full)))
        if not context.add_callback(room.release):
            room.release()  # the call is over already
        return behave(requests, context)

    return guarded
