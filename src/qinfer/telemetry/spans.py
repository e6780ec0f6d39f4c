"""The little of the OpenTelemetry API that spans with explicit parents and times need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

from opentelemetry.context import Context
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    Tracer,
    TraceState,
    set_span_in_context,
)
from opentelemetry.util.types import AttributeValue

from qinfer.errors import QInferError
from qinfer.telemetry import conventions as names
from qinfer.telemetry.w3c import parse, usable_tracestate

Attributes: TypeAlias = Mapping[str, AttributeValue]

_MAX_DESCRIPTION = 256
_EMPTY = Context()


def remote_parent(traceparent: str | None, tracestate: str | None) -> SpanContext | None:
    """The span context a message or request came with; None when it has no valid one."""
    parent = parse(traceparent)
    if parent is None:
        return None
    state = usable_tracestate(tracestate)
    return SpanContext(
        parent.trace_id,
        parent.span_id,
        is_remote=True,
        trace_flags=TraceFlags(parent.flags),
        trace_state=TraceState.from_header([state]) if state else None,
    )


def start_span(
    tracer: Tracer,
    name: str,
    parent: SpanContext | None,
    start_ns: int,
    *,
    kind: SpanKind = SpanKind.INTERNAL,
    attributes: Attributes | None = None,
    links: Sequence[SpanContext] = (),
) -> Span:
    """Start a span as a child of exactly `parent`, whatever span is current; a root span without one."""
    context = set_span_in_context(NonRecordingSpan(parent), _EMPTY) if parent is not None else _EMPTY
    return tracer.start_span(
        name,
        context,
        kind,
        attributes,
        [Link(link) for link in links],
        start_time=start_ns,
        record_exception=False,
        set_status_on_exception=False,
    )


def span_between(tracer: Tracer, name: str, parent: SpanContext, start_ns: int, end_ns: int) -> None:
    """Make a finished child span; none when it has no start, and never one that ends before it starts."""
    if start_ns:
        start_span(tracer, name, parent, start_ns).end(max(start_ns, end_ns))


def set_error(span: Span, error: QInferError, *, fault: bool = True) -> None:
    """Record an error's reason; the span's status becomes "error" only if it is this side's `fault`."""
    span.set_attribute(names.ERROR_TYPE, error.reason)
    if fault:
        span.set_status(Status(StatusCode.ERROR, error.message[:_MAX_DESCRIPTION]))
