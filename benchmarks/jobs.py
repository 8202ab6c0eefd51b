"""How a child process of the benchmark is told what to do: a job a line on stdin, its result a line on stdout."""

import json
import sys
from collections.abc import Callable, Mapping
from typing import Any


class WrongAnswer(Exception):
    """A server gave an answer that is not the closed form's. It ends the whole run."""


def serve_jobs(handlers: Mapping[str, Callable[..., Any]]) -> None:
    """Does jobs until stdin ends. A job is `{"do": a handler's name, …its keyword arguments}`."""
    for line in sys.stdin:
        job = json.loads(line)
        try:
            reply = {"result": handlers[job.pop("do")](**job)}
        except WrongAnswer as error:
            reply = {"wrong": str(error)}
        print(json.dumps(reply), flush=True)
