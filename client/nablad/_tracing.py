"""The W3C trace context of whoever calls: a server that is traced makes its spans children of theirs."""

import sys
from typing import Any

Metadata = tuple[tuple[str, str], ...]


def trace_context() -> Metadata | None:
    """The metadata that tells the current span of OpenTelemetry; None if there is none.

    Nothing is imported: a program that has a current span has imported the library.
    """
    trace: Any = sys.modules.get("opentelemetry.trace")
    if trace is None:
        return None
    context = trace.get_current_span().get_span_context()
    if not context.is_valid:
        return None
    parent = ("traceparent", f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}")
    state = context.trace_state.to_header()
    return (parent, ("tracestate", state)) if state else (parent,)
