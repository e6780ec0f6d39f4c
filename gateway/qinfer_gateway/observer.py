"""Counts, traces and logs what happens to calls, all in one place."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

from qinfer.errors import QInferError
from qinfer.message import Request, Response, ResponseFrame
from qinfer.telemetry.gateway import OK, GatewayStats
from qinfer.telemetry.request_log import RequestLog
from qinfer.telemetry.tracing import Tracing

if TYPE_CHECKING:
    from qinfer_gateway.dispatcher import Call


class Observer:
    """What a gateway tells of its calls. Tracing and the request log cost one test each when they are off.

    Args:
        stats: counters and latencies.
        tracing: makes spans; None when tracing is off.
        log: one line a call; None when that is off.
    """

    def __init__(
        self, stats: GatewayStats, tracing: Tracing | None = None, log: RequestLog | None = None
    ) -> None:
        self.stats = stats
        self._tracing = tracing
        self._log = log
        self.watches = tracing is not None or log is not None
        """Whether `started` has anything to do."""

    def started(self, call: Call, request: Request, destination: str) -> None:
        """A call is about to be published; a traced one gets its span and hands it on in the message."""
        if self._log is not None:
            call.request_id = request.request_id
        tracing = self._tracing
        if tracing is None or not tracing.sampled(request.traceparent or None):
            return
        span = call.span = tracing.start_request(
            call.operation,
            model=call.model,
            protocol=call.protocol,
            traceparent=request.traceparent,
            tracestate=request.tracestate,
            destination=destination,
            request_id=request.request_id,
        )
        request.traceparent, request.tracestate = span.traceparent, span.tracestate

    def published(self, call: Call) -> None:
        """A traced call's frame is on its way."""
        if call.span is not None:
            call.span.published()

    def begun(self, call: Call, now: float) -> None:
        """A call that takes many responses got its first; `now` is of `time.monotonic`."""
        self.stats.record_first(call.model, call.protocol, now - call.started)

    def answered(self, call: Call, frame: ResponseFrame, response: Response, now: float) -> None:
        """A call got its response, which may be an error; `now` is of `time.monotonic`."""
        error = response.error
        outcome = OK if error is None else error.reason
        span = call.span
        seconds = now - call.started
        self.stats.record(call.model, call.protocol, outcome, seconds, span.trace_id if span else "")
        if span is not None:
            span.finish(
                None if error is None else error.exception(),
                batch=frame.batch,
                worker=frame.worker,
                model_version=frame.model_version,
                queue_us=response.queue_us,
            )
        if self._log is not None:
            batch = frame.batch
            compute_ns = batch.compute_input_ns + batch.compute_infer_ns + batch.compute_output_ns
            self._log.record(
                request_id=call.request_id,
                model=call.model,
                version=frame.model_version,
                protocol=call.protocol,
                status=call.status(None if error is None else error.exception()),
                outcome=outcome,
                rows=call.rows,
                queue_us=response.queue_us,
                compute_us=compute_ns // 1000,
                total_us=int(seconds * 1e6),
                trace_id=span.trace_id if span is not None else "",
            )

    def failed(self, call: Call, error: QInferError) -> None:
        """A call ends without a response from a worker."""
        seconds = monotonic() - call.started
        span = call.span
        self.stats.record(call.model, call.protocol, error.reason, seconds, span.trace_id if span else "")
        if span is not None:
            span.finish(error)
        if self._log is not None:
            self._log.record(
                request_id=call.request_id,
                model=call.model,
                protocol=call.protocol,
                status=call.status(error),
                outcome=error.reason,
                rows=call.rows,
                total_us=int(seconds * 1e6),
                trace_id=span.trace_id if span is not None else "",
            )
