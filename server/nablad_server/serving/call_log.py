"""A log line for every call that is over, where that is asked for."""

import time

import structlog

from nablad_server.serving.call import Call
from nablad_server.serving.callers import OPEN

log = structlog.get_logger("nablad")


def log_call(call: Call) -> None:
    """Logs a call that is over, whether it was let in or not; but no health check: there is no end of them."""
    _, service, method = call.method.split("/")
    if service in OPEN:
        return
    failure = call.failure
    outcome = "OK" if call.ended else "CANCELLED"
    if failure is not None:
        outcome = failure.reason or failure.code.name
    # Where a defect of the server is to blame, its own line has the same request id.
    known = {} if failure is None or "request_id" not in failure.metadata else {
        "request_id": failure.metadata["request_id"]
    }  # fmt: skip
    log.info("call", rpc=method, outcome=outcome, seconds=round(time.monotonic() - call.began, 6),
             caller=call.caller.key, **known)  # fmt: skip
