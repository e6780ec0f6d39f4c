"""Traces: spans for sampled requests only.

A role holds either a `Tracing` or None. A gateway asks `sampled` and opens a `RequestSpan` for the few that
are; a worker collects the sampled members of a batch (`w3c.is_sampled`) and makes all their spans in one call
when the batch is answered. `batch_spans` draws the whole tree.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Mapping, Sequence
from time import time_ns
from typing import TYPE_CHECKING, Literal

from opentelemetry.trace import Span, SpanKind

from qinfer import __version__
from qinfer.errors import QInferError
from qinfer.message import BatchInfo
from qinfer.telemetry import batch_spans
from qinfer.telemetry import conventions as names
from qinfer.telemetry.batch_spans import TracedBatch, TracedMember
from qinfer.telemetry.sampling import HeadSampler, sampler_from_env
from qinfer.telemetry.spans import Attributes, remote_parent, set_error, start_span
from qinfer.telemetry.w3c import format_traceparent, usable_tracestate

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

logger = logging.getLogger(__name__)

_EXPORTER_VARIABLE = "OTEL_TRACES_EXPORTER"
_ENDPOINT_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_DISABLED_VARIABLE = "OTEL_SDK_DISABLED"


def tracing_from_env(
    role: Literal["gateway", "worker", "kafka-score"],
    instance: str = "",
    environ: Mapping[str, str] = os.environ,
) -> Tracing | None:
    """Set tracing up as the standard `OTEL_*` variables say; None, with the SDK not imported, when off.

    Tracing is on when OTEL_TRACES_EXPORTER or an OTLP endpoint is set, unless OTEL_SDK_DISABLED is true.

    Args:
        role: gives the default service name: "qinfer-gateway", "qinfer-worker" or "qinfer-kafka-score".
        instance: id of this process, for `service.instance.id`.
        environ: decides whether and what to export and sample; OpenTelemetry reads the exporter's details
            from the process environment.

    Raises:
        SetupError: an exporter is asked for that is not installed, or a setting is invalid.
    """
    exporters = _exporters(environ)
    if not exporters:
        return None
    from qinfer.telemetry.provider import build_provider

    sampler = sampler_from_env(environ)
    provider = build_provider(
        exporters, service=f"qinfer-{role}", instance=instance, bound=sampler.bound, environ=environ
    )
    return Tracing(provider, sampler, instance=instance)


def _exporters(environ: Mapping[str, str]) -> tuple[str, ...]:
    if environ.get(_DISABLED_VARIABLE, "").strip().lower() == "true":
        return ()
    listed = environ.get(_EXPORTER_VARIABLE, "").strip()
    if not listed:
        return ("otlp",) if any(environ.get(name) for name in _ENDPOINT_VARIABLES) else ()
    exporters = tuple(dict.fromkeys(name.strip().lower() for name in listed.split(",") if name.strip()))
    return () if "none" in exporters else exporters


class Tracing:
    """Makes the spans of one process; `tracing_from_env` builds it.

    Args:
        provider: the SDK, which exports every span it is asked for.
        sampler: decides which requests that are.
        instance: id of this process.

    Attributes:
        sampled: `sampled(traceparent) -> bool`, for a gateway: whether to trace the request that came with
            this trace context, if any. The only call for requests that are not traced.
    """

    def __init__(self, provider: TracerProvider, sampler: HeadSampler, *, instance: str = "") -> None:
        self.sampled = sampler.sampled
        self._provider = provider
        self._tracer = provider.get_tracer(names.INSTRUMENTATION_SCOPE, __version__)
        self._instance = instance
        self._closing: threading.Thread | None = None

    def start_request(
        self,
        name: str,
        *,
        model: str,
        protocol: str,
        traceparent: str | None = None,
        tracestate: str | None = None,
        destination: str = "",
        request_id: str = "",
        attributes: Attributes | None = None,
        start_ns: int = 0,
    ) -> RequestSpan:
        """Open the spans of a request that `sampled` chose.

        Args:
            name: name of the SERVER span, such as "POST /v2/models/{model}/infer"; never a raw path.
            model: name of the model.
            protocol: "http", "grpc", ...
            traceparent, tracestate: as the caller sent them; without valid ones a new trace starts.
            destination: subject the request is published on.
            request_id: the caller's identifier.
            attributes: further attributes of the SERVER span.
            start_ns: when the request arrived, Unix nanoseconds; now when 0.
        """
        shared: Attributes = {names.TRITON_MODEL_NAME: model}
        if request_id:
            shared = {**shared, names.TRITON_REQUEST_ID: request_id}
        server = start_span(
            self._tracer,
            name,
            remote_parent(traceparent, tracestate),
            start_ns or time_ns(),
            kind=SpanKind.SERVER,
            attributes={**shared, names.PROTOCOL: protocol, **(attributes or {})},
        )
        messaging = {
            names.MESSAGING_SYSTEM: names.SYSTEM_NATS,
            names.MESSAGING_OPERATION_NAME: names.OPERATION_PUBLISH,
            names.MESSAGING_OPERATION_TYPE: names.OPERATION_SEND,
            names.MESSAGING_DESTINATION_NAME: destination,
            names.MESSAGING_MESSAGE_ID: request_id,
            names.MESSAGING_CLIENT_ID: self._instance,
        }
        producer = start_span(
            self._tracer,
            names.publish_span(model),
            server.get_span_context(),
            time_ns(),
            kind=SpanKind.PRODUCER,
            attributes={**shared, **{key: value for key, value in messaging.items() if value}},
        )
        return RequestSpan(server, producer, protocol, usable_tracestate(tracestate))

    def start_record(
        self,
        name: str,
        *,
        system: str,
        destination: str,
        consumer: str,
        traceparent: str,
        tracestate: str = "",
        attributes: Attributes | None = None,
    ) -> Span:
        """Open the CONSUMER span of a sampled record of a stream.

        Args:
            name: name of the span.
            system: `messaging.system`, for instance "kafka".
            destination: topic the record was read from.
            consumer: consumer group that read it.
            traceparent, tracestate: as the record has them.
            attributes: further attributes.
        """
        messaging = {
            names.MESSAGING_SYSTEM: system,
            names.MESSAGING_OPERATION_NAME: names.OPERATION_PROCESS,
            names.MESSAGING_OPERATION_TYPE: names.OPERATION_PROCESS,
            names.MESSAGING_DESTINATION_NAME: destination,
            names.MESSAGING_CONSUMER_GROUP_NAME: consumer,
            names.MESSAGING_CLIENT_ID: self._instance,
        }
        return start_span(
            self._tracer,
            name,
            remote_parent(traceparent, tracestate),
            time_ns(),
            kind=SpanKind.CONSUMER,
            attributes={**messaging, **(attributes or {})},
        )

    def record_batch(self, batch: TracedBatch, members: Sequence[TracedMember]) -> None:
        """Make all spans of an answered batch; `members` are its sampled requests, at least one."""
        batch_spans.record_batch(self._tracer, self._instance, batch, members)

    def record_unexecuted(
        self, member: TracedMember, *, model: str, version: str = "", destination: str = "", end_ns: int = 0
    ) -> None:
        """Make the span of a sampled request that was never executed: expired, cancelled, refused.

        Args:
            member: the request; its `error` says why.
            model, version, destination: as in `TracedBatch`.
            end_ns: when it was answered or dropped, Unix nanoseconds; now when 0.
        """
        batch_spans.record_unexecuted(
            self._tracer,
            self._instance,
            model=model,
            version=version,
            destination=destination,
            member=member,
            end_ns=end_ns or time_ns(),
        )

    def close(self, timeout: float = 5.0) -> bool:
        """Export what is queued, within `timeout` seconds; call it off the event loop. A repeat waits again.

        Returns:
            Whether everything was exported or refused in time. What is left is lost when the process ends.
        """
        # The SDK's own shutdown waits up to 30 s and cannot be told otherwise: a thread to walk away from.
        if self._closing is None:
            self._closing = threading.Thread(
                target=self._provider.shutdown, name="tracing shutdown", daemon=True
            )
            self._closing.start()
        self._closing.join(timeout)
        done = not self._closing.is_alive()
        if not done:
            logger.warning("spans could not be exported within %.1f s; the rest is lost", timeout)
        return done


class RequestSpan:
    """The spans of one request in a gateway: SERVER from arrival to answer, PRODUCER up to its publication.

    Attributes:
        trace_id: 32 hex digits, for exemplars and logs.
        traceparent, tracestate: what the message carries; the worker's spans become children of the PRODUCER.
    """

    __slots__ = ("_producer", "_protocol", "_published", "_server", "trace_id", "traceparent", "tracestate")

    def __init__(self, server: Span, producer: Span, protocol: str, tracestate: str) -> None:
        self._server = server
        self._producer = producer
        self._protocol = protocol
        self._published = False
        context = producer.get_span_context()
        self.trace_id = f"{context.trace_id:032x}"
        self.traceparent = format_traceparent(context.trace_id, context.span_id, context.trace_flags)
        self.tracestate = tracestate

    def published(self, ts_ns: int = 0) -> None:
        """The message is on its way, at `ts_ns` (Unix nanoseconds; now when 0). Repeats are ignored."""
        if not self._published:
            self._published = True
            self._producer.end(ts_ns or time_ns())

    def finish(
        self,
        error: QInferError | None = None,
        *,
        batch: BatchInfo | None = None,
        worker: str = "",
        model_version: str = "",
        queue_us: int = 0,
        end_ns: int = 0,
    ) -> None:
        """The request is answered. Without `published` before it, there is no PRODUCER span.

        Args:
            error: what it was answered with, if not with outputs. Its reason is always recorded; as the
                conventions ask of a server, the span's status is "error" only for faults of the server (5xx).
            batch, worker, model_version, queue_us: from the response frame, where there was one.
            end_ns: when, Unix nanoseconds; now when 0.
        """
        span = self._server
        if batch is not None:
            span.set_attributes(
                {
                    names.BATCH_ROWS: batch.rows,
                    names.BATCH_REQUESTS: batch.requests,
                    names.BATCH_COMPUTE_INFER_US: batch.compute_infer_ns // 1000,
                    names.QUEUE_US: queue_us,
                }
            )
        if worker:
            span.set_attribute(names.WORKER, worker)
        if model_version:
            span.set_attribute(names.TRITON_MODEL_VERSION, model_version)
        if self._protocol == "http":
            span.set_attribute(names.HTTP_RESPONSE_STATUS_CODE, error.http_status if error else 200)
        elif self._protocol == "grpc":
            span.set_attribute(names.RPC_RESPONSE_STATUS_CODE, error.grpc_status.name if error else "OK")
        if error is not None:
            set_error(span, error, fault=error.http_status >= 500)
        span.end(end_ns or time_ns())
