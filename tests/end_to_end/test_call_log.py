"""A line in the log for every call, where that is asked for."""

import grpc
import numpy as np
import pytest

import nablad
from end_to_end.pipelines import Stream, evaluate
from nablad import errors
from servers import ServerProcess


def test_every_call_that_is_over_has_a_line_with_its_outcome() -> None:
    with ServerProcess("--log-calls") as process:
        with nablad.Client(process.address) as client, grpc.insecure_channel(process.address) as channel:
            client.gradient("rosenbrock", np.ones(2))
            process.wait_for("call")
            with pytest.raises(errors.WrongShape):
                client.gradient("rosenbrock", np.ones((2, 2)))
            process.wait_for("call")
            stream = Stream(channel)
            stream.send(evaluate(1, "sin", 0.0))
            stream.rest()
            process.wait_for("call")
        lines = [line for line in process.log if line["event"] == "call"]

        assert [(line["rpc"], line["outcome"]) for line in lines] == [
            ("Gradient", "OK"), ("Gradient", "WRONG_SHAPE"), ("Pipeline", "OK"),
        ]  # fmt: skip
        assert {line["caller"] for line in lines} == {"ipv4:127.0.0.1"}
        assert all(0 < line["seconds"] < 60 for line in lines)
        assert process.errors() == []
