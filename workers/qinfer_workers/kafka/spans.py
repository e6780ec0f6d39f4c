"""W3C trace context of records: from their headers to a span, and on to the headers of what is written.

Without tracing the headers are carried through as they are, so that a trace goes on behind the scorer.
"""

from __future__ import annotations

from collections.abc import Sequence

from opentelemetry.trace import Span

from qinfer.errors import from_reason
from qinfer.telemetry import conventions as names
from qinfer.telemetry.spans import set_error
from qinfer.telemetry.tracing import Tracing
from qinfer.telemetry.w3c import format_traceparent, is_sampled
from qinfer_workers.kafka.contract import Headers, Record
from qinfer_workers.kafka.group import Dead, Group, Outcome

TRACEPARENT = "traceparent"
TRACESTATE = "tracestate"


class RecordSpans:
    """Makes a span for each sampled record.

    Args:
        tracing: None when tracing is off.
        group: the consumer group.
    """

    def __init__(self, tracing: Tracing | None, group: str) -> None:
        self._tracing = tracing
        self._group = group

    def open(self, group: Group) -> OpenSpans:
        """Begin the spans of a group, and have its outputs carry them."""
        if self._tracing is None:
            return OpenSpans({})
        spans: dict[int, Span] = {}
        for place, record in enumerate(group.records):
            headers = record.headers
            if not headers:
                continue
            traceparent = _header(headers, TRACEPARENT)
            if is_sampled(traceparent):
                span = spans[place] = self._span(self._tracing, record, traceparent)
                group.headers[place] = _carrying(span, headers)
        return OpenSpans(spans)

    def _span(self, tracing: Tracing, record: Record, traceparent: str) -> Span:
        return tracing.start_record(
            names.score_span(record.topic),
            system=names.SYSTEM_KAFKA,
            destination=record.topic,
            consumer=self._group,
            traceparent=traceparent,
            tracestate=_header(record.headers, TRACESTATE),
            attributes={
                names.MESSAGING_KAFKA_PARTITION: str(record.partition),
                names.MESSAGING_KAFKA_OFFSET: record.offset,
            },
        )


class OpenSpans:
    """The spans of a group that is being scored."""

    def __init__(self, spans: dict[int, Span]) -> None:
        self._spans = spans

    def close(self, outcomes: Sequence[Outcome]) -> None:
        """End them."""
        for place, span in self._spans.items():
            outcome = outcomes[place]
            if isinstance(outcome, Dead):
                set_error(span, from_reason(outcome.bad.reason, outcome.bad.message))
                span.set_attribute(names.ERROR_TYPE, outcome.bad.reason)
            span.end()


def _header(headers: Headers, name: str) -> str:
    """The last header of that name, "" for none."""
    for found, value in reversed(tuple(headers)):
        if found == name and value is not None:
            return value.decode("ascii", "replace")
    return ""


def _carrying(span: Span, headers: Headers) -> Headers:
    context = span.get_span_context()
    traceparent = format_traceparent(context.trace_id, context.span_id, context.trace_flags)
    return (
        *[header for header in headers if header[0] != TRACEPARENT],
        (TRACEPARENT, traceparent.encode()),
    )
