"""A line in the log for every call, where that is asked for."""

from typing import Any

import grpc
import numpy as np
import pytest

import nablad
from end_to_end.pipelines import Stream, evaluate
from nablad import errors
from servers import ServerProcess


def test_every_call_that_is_over_has_a_line_with_its_outcome() -> None:
    with ServerProcess("--log-calls") as process:

        def lines() -> list[dict[str, Any]]:
            """Those logged; what the client asks for itself is left out."""
            calls = [line for line in process.log if line["event"] == "call"]
            return [line for line in calls if line["rpc"] != "DescribeFunction"]

        def await_line(rpc: str, outcome: str) -> None:
            while (rpc, outcome) not in [(line["rpc"], line["outcome"]) for line in lines()]:
                process.wait_for("call")

        with nablad.Client(process.address) as client, grpc.insecure_channel(process.address) as channel:
            client.gradient("rosenbrock", np.ones(2))
            await_line("Gradient", "OK")
            with pytest.raises(errors.WrongShape):
                client.gradient("rosenbrock", np.ones((2, 2)))
            await_line("Gradient", "WRONG_SHAPE")
            stream = Stream(channel)
            stream.send(evaluate(1, "sin", 0.0))
            stream.rest()
            await_line("Pipeline", "OK")
            list(client.functions())
            await_line("ListFunctions", "OK")
            assert client.healthy()
            call: Any = channel.stream_unary("/nablad.v1.CatalogService/ListFunctions")
            with pytest.raises(grpc.RpcError):
                call(iter([]), timeout=60)
            await_line("ListFunctions", "MALFORMED_REQUEST")

        assert [(line["rpc"], line["outcome"]) for line in lines()] == [
            ("Gradient", "OK"), ("Gradient", "WRONG_SHAPE"), ("Pipeline", "OK"),
            ("ListFunctions", "OK"), ("ListFunctions", "MALFORMED_REQUEST"),
        ]  # fmt: skip
        assert {line["caller"] for line in lines()} == {"ipv4:127.0.0.1"}
        assert all(0 < line["seconds"] < 60 for line in lines())
        assert process.errors() == []
