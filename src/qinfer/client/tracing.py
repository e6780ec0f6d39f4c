"""The trace that a request belongs to."""

from __future__ import annotations

import sys

from qinfer.telemetry.w3c import format_traceparent


def current_trace() -> tuple[str, str]:
    """`traceparent` and `tracestate` of the current OpenTelemetry span; empty where there is none."""
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None:  # who has not imported it has no span
        return "", ""
    context = trace.get_current_span().get_span_context()
    if not context.is_valid:
        return "", ""
    parent = format_traceparent(context.trace_id, context.span_id, context.trace_flags)
    return parent, context.trace_state.to_header()
