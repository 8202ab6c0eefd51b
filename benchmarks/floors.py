"""The floor of the transport: a gRPC server that answers any request with ready-made bytes.

`python -m benchmarks.floors threads|asyncio` prints its address. The method `/echo/N` answers with N bytes, and the
method `/stream/N/K` with a stream of K messages of N bytes. There is no JAX in it and nothing of nablad's.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import repeat
from typing import Any

import click
import grpc

KINDS = ("threads", "asyncio")
UNLIMITED = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
"""Channel options, for both ends: messages of any size."""


def echo_method(length: int) -> str:
    """The path of the method that answers with so many bytes."""
    return f"/echo/{length}"


def stream_method(length: int, count: int) -> str:
    """The path of the method that answers with so many messages of so many bytes."""
    return f"/stream/{length}/{count}"


class _Echo(grpc.GenericRpcHandler):
    """Makes a handler once for each method."""

    def __init__(
        self, make: Callable[[bytes], Callable[..., Any]], make_stream: Callable[[bytes, int], Callable[..., Any]]
    ) -> None:
        self._make = make
        self._make_stream = make_stream
        self._handler: Callable[[str], grpc.RpcMethodHandler[bytes, bytes]] = cache(self._made)

    def _made(self, method: str) -> "grpc.RpcMethodHandler[bytes, bytes]":
        _, kind, *numbers = method.split("/")
        if kind == "stream":
            length, count = map(int, numbers)
            return grpc.unary_stream_rpc_method_handler(self._make_stream(bytes(length), count))
        return grpc.unary_unary_rpc_method_handler(self._make(bytes(int(numbers[0]))))

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        return self._handler(handler_call_details.method)


def _sync_stream(reply: bytes, count: int) -> Callable[[bytes, Any], Iterator[bytes]]:
    return lambda request, context: repeat(reply, count)  # noqa: ARG005 - the interface's


def _async_stream(reply: bytes, count: int) -> Callable[[bytes, Any], AsyncIterator[bytes]]:
    async def answer(request: bytes, context: Any) -> AsyncIterator[bytes]:  # noqa: ARG001 - the interface's
        for _ in range(count):
            yield reply

    return answer


def _sync(reply: bytes) -> Callable[[bytes, Any], bytes]:
    return lambda request, context: reply  # noqa: ARG005 - the interface's


def _async(reply: bytes) -> Callable[[bytes, Any], Awaitable[bytes]]:
    async def answer(request: bytes, context: Any) -> bytes:  # noqa: ARG001 - the interface's
        return reply

    return answer


def serve_threads() -> None:
    """The threaded server, until it is terminated."""
    server = grpc.server(ThreadPoolExecutor(8), options=UNLIMITED)
    server.add_generic_rpc_handlers((_Echo(_sync, _sync_stream),))
    print(f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}", flush=True)
    server.start()
    server.wait_for_termination()


async def serve_asyncio() -> None:
    """The asyncio server, until it is terminated."""
    server = grpc.aio.server(options=UNLIMITED)
    server.add_generic_rpc_handlers((_Echo(_async, _async_stream),))
    print(f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}", flush=True)
    await server.start()
    await server.wait_for_termination()


@click.command()
@click.argument("kind", type=click.Choice(KINDS))
def main(kind: str) -> None:
    """Serves echoes."""
    if kind == "threads":
        serve_threads()
    else:
        asyncio.run(serve_asyncio())


if __name__ == "__main__":
    main()
