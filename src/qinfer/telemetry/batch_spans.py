"""The spans of a batch, made in one go after it is answered.

    gateway     POST .../infer (SERVER) ── publish mlp (PRODUCER)
                                              │ traceparent of the message
    worker                                 process mlp (CONSUMER)   one a sampled request, links to its batch
                                              ├─ queue wait         publication to arrival
                                              ├─ batch wait         arrival to start of the batch
                                              ├─ batch mlp          in the first sampled request's trace;
                                              │    │                links to every sampled request
                                              │    ├─ compute input
                                              │    ├─ backend infer
                                              │    └─ compute output
                                              └─ reply              outputs ready to answer published

All times are Unix nanoseconds; 0 means it did not get that far.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from opentelemetry.trace import Span, SpanContext, SpanKind, Tracer

from qinfer.errors import QInferError
from qinfer.telemetry import conventions as names
from qinfer.telemetry.spans import Attributes, remote_parent, set_error, span_between, start_span


@dataclass(frozen=True, slots=True, kw_only=True)
class TracedMember:
    """A sampled request of a batch.

    Attributes:
        traceparent, tracestate: of the message.
        request_id: the caller's identifier.
        rows: its rows.
        attempt: which delivery this is, from 1.
        sent_ns: publication by the sender's clock, which may differ from this host's.
        received_ns: arrival in this worker.
        error: what it was answered with, if not with outputs.
    """

    traceparent: str
    tracestate: str = ""
    request_id: str = ""
    rows: int = 1
    attempt: int = 1
    sent_ns: int = 0
    received_ns: int
    error: QInferError | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TracedBatch:
    """What the members of a batch share.

    Attributes:
        model, version: what ran.
        instance: the instance that ran it.
        rows, requests: all of the batch, sampled or not.
        close_reason: why the batch was closed.
        started_ns: start of the batch, which is the start of making its inputs.
        input_end_ns: inputs made, backend called.
        infer_end_ns: backend returned.
        output_end_ns: outputs split.
        replied_ns: answers published.
        destination: subject the requests came on.
        consumer: durable consumer they were pulled through.
        error: why the whole batch failed, if it did.
    """

    model: str
    version: str
    instance: str
    rows: int
    requests: int
    close_reason: str
    started_ns: int
    input_end_ns: int = 0
    infer_end_ns: int = 0
    output_end_ns: int = 0
    replied_ns: int
    destination: str = ""
    consumer: str = ""
    error: QInferError | None = None

    @property
    def computed_ns(self) -> int:
        """When the last phase it got to was over."""
        return max(self.started_ns, self.input_end_ns, self.infer_end_ns, self.output_end_ns)


def record_batch(tracer: Tracer, worker: str, batch: TracedBatch, members: Sequence[TracedMember]) -> None:
    """Make all spans of one batch; members without a valid, sampled trace context get none."""
    shared = _shared(worker, batch.model, batch.version, batch.destination, batch.consumer)
    traced: list[tuple[Span, TracedMember]] = []
    for member in members:
        span = _process_span(tracer, batch.model, shared, member)
        if span is not None:
            traced.append((span, member))
    if not traced:
        return
    batch_context = _batch_span(tracer, batch, shared, [span.get_span_context() for span, _ in traced])
    for span, member in traced:
        context = span.get_span_context()
        received = min(member.received_ns, batch.started_ns)
        span_between(tracer, names.SPAN_QUEUE_WAIT, context, _sent(member), received)
        span_between(tracer, names.SPAN_BATCH_WAIT, context, received, batch.started_ns)
        span_between(tracer, names.SPAN_REPLY, context, batch.computed_ns, batch.replied_ns)
        span.add_link(batch_context)
        if member.error is not None:
            set_error(span, member.error)
        span.end(max(batch.replied_ns, batch.computed_ns))


def record_unexecuted(
    tracer: Tracer,
    worker: str,
    *,
    model: str,
    version: str,
    destination: str,
    member: TracedMember,
    end_ns: int,
) -> None:
    """Make the span of a request that was answered or dropped without being executed."""
    shared = _shared(worker, model, version, destination, "")
    span = _process_span(tracer, model, shared, member)
    if span is None:
        return
    context = span.get_span_context()
    span_between(tracer, names.SPAN_QUEUE_WAIT, context, _sent(member), member.received_ns)
    span_between(tracer, names.SPAN_BATCH_WAIT, context, member.received_ns, end_ns)
    if member.error is not None:
        set_error(span, member.error)
    span.end(max(member.received_ns, end_ns))


def _shared(worker: str, model: str, version: str, destination: str, consumer: str) -> Attributes:
    attributes = {
        names.MESSAGING_SYSTEM: names.SYSTEM_NATS,
        names.MESSAGING_OPERATION_NAME: names.OPERATION_PROCESS,
        names.MESSAGING_OPERATION_TYPE: names.OPERATION_PROCESS,
        names.MESSAGING_DESTINATION_NAME: destination,
        names.MESSAGING_CONSUMER_GROUP_NAME: consumer,
        names.MESSAGING_CLIENT_ID: worker,
        names.TRITON_MODEL_NAME: model,
        names.TRITON_MODEL_VERSION: version,
    }
    return {name: value for name, value in attributes.items() if value}


def _sent(member: TracedMember) -> int:
    """Start of the request's wait: its publication, unless the sender's clock puts that into the future."""
    return min(member.sent_ns or member.received_ns, member.received_ns)


def _process_span(tracer: Tracer, model: str, shared: Attributes, member: TracedMember) -> Span | None:
    parent = remote_parent(member.traceparent, member.tracestate)
    if parent is None or not parent.trace_flags.sampled:
        return None
    attributes = {**shared, names.ROWS: member.rows, names.ATTEMPT: member.attempt}
    if member.request_id:
        attributes[names.TRITON_REQUEST_ID] = member.request_id
        attributes[names.MESSAGING_MESSAGE_ID] = member.request_id
    return start_span(
        tracer,
        names.process_span(model),
        parent,
        _sent(member),
        kind=SpanKind.CONSUMER,
        attributes=attributes,
    )


def _batch_span(
    tracer: Tracer, batch: TracedBatch, shared: Attributes, members: Sequence[SpanContext]
) -> SpanContext:
    span = start_span(
        tracer,
        names.batch_span(batch.model),
        members[0],
        batch.started_ns,
        attributes={
            **shared,
            names.MESSAGING_BATCH_MESSAGE_COUNT: batch.requests,
            names.BATCH_ROWS: batch.rows,
            names.BATCH_REQUESTS: batch.requests,
            names.BATCH_CLOSE_REASON: batch.close_reason,
            names.INSTANCE: batch.instance,
        },
        links=members,
    )
    context = span.get_span_context()
    start = batch.started_ns
    for name, end in (
        (names.SPAN_COMPUTE_INPUT, batch.input_end_ns),
        (names.SPAN_BACKEND_INFER, batch.infer_end_ns),
        (names.SPAN_COMPUTE_OUTPUT, batch.output_end_ns),
    ):
        if end:
            span_between(tracer, name, context, start, end)
            start = end
    if batch.error is not None:
        set_error(span, batch.error)
    span.end(batch.computed_ns)
    return context
