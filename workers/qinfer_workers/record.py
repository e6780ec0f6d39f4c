"""Statistics and traces of a model version, written once a batch."""

from __future__ import annotations

from time import perf_counter_ns, time_ns

from qinfer.errors import QInferError
from qinfer.message import Request
from qinfer.telemetry.batch_spans import TracedBatch, TracedMember
from qinfer.telemetry.stats import ModelStats
from qinfer.telemetry.tracing import Tracing
from qinfer.telemetry.w3c import is_sampled, trace_id
from qinfer_workers.batch import HeldFrame, Member
from qinfer_workers.instance import Completion


class BatchRecorder:
    """Records what happened to the requests of one model version on this worker.

    Args:
        stats: its counters.
        tracing: makes spans for sampled requests; None when tracing is off.
        destination: subject the requests are published on.
    """

    def __init__(self, stats: ModelStats, tracing: Tracing | None = None, destination: str = "") -> None:
        self.stats = stats
        self._tracing = tracing
        self._destination = destination

    def executed(self, completion: Completion) -> None:
        """A batch was answered."""
        batch, timing = completion.batch, completion.timing
        queue: list[int] = []
        wait: list[int] = []
        failed_rows = 0
        traced: dict[int, str] = {}
        for member in batch.members:
            frame = member.frame
            response = member.response
            if response is not None and response.error is not None:
                failed_rows += member.rows
                total = frame.age_ns + completion.ended_ns - frame.received_ns
                self.stats.record_failures(response.error.reason, total_ns=total)
            else:
                parent = member.request.traceparent
                if self._tracing is not None and is_sampled(parent) and (trace := trace_id(parent)):
                    traced[len(queue)] = trace
                queue.append(frame.age_ns)
                wait.append(completion.started_ns - frame.received_ns)
        self.stats.record_batch(
            rows=batch.rows,
            queue_ns=queue,
            batch_wait_ns=wait,
            compute_input_ns=timing.input_ns,
            compute_infer_ns=timing.infer_ns,
            compute_output_ns=timing.output_ns,
            reason=batch.reason,
            now_ms=time_ns() // 1_000_000,
            failed_rows=failed_rows,
            trace_ids=traced,
        )
        if self._tracing is not None:
            self._trace(self._tracing, completion)

    def refused(self, error: QInferError, request: Request, held: HeldFrame) -> None:
        """A request was answered with an error without being executed."""
        self.stats.record_failures(error.reason)
        if self._tracing is not None and is_sampled(request.traceparent):
            self._tracing.record_unexecuted(
                _traced(request, held, 0, error, _unix_offset()),
                model=self.stats.model,
                version=self.stats.version,
                destination=self._destination,
            )

    def _trace(self, tracing: Tracing, completion: Completion) -> None:
        members = [m for m in completion.batch.members if is_sampled(m.request.traceparent)]
        if not members:
            return
        batch, timing = completion.batch, completion.timing
        offset = _unix_offset()
        started = completion.started_ns + offset
        inputs_made = started + timing.input_ns
        inferred = inputs_made + timing.infer_ns
        tracing.record_batch(
            TracedBatch(
                model=self.stats.model,
                version=self.stats.version,
                instance=completion.instance.name,
                rows=batch.rows,
                requests=len(batch.members),
                close_reason=batch.reason,
                started_ns=started,
                input_end_ns=inputs_made,
                infer_end_ns=inferred,
                output_end_ns=inferred + timing.output_ns,
                replied_ns=time_ns(),
                destination=self._destination,
            ),
            [_traced_member(member, offset) for member in members],
        )


def _unix_offset() -> int:
    """What turns a time of `perf_counter_ns` into Unix nanoseconds."""
    return time_ns() - perf_counter_ns()


def _traced_member(member: Member, offset: int) -> TracedMember:
    response = member.response
    error = response.error.exception() if response is not None and response.error is not None else None
    return _traced(member.request, member.frame, member.rows, error, offset)


def _traced(
    request: Request, frame: HeldFrame, rows: int, error: QInferError | None, offset: int
) -> TracedMember:
    received = frame.received_ns + offset
    return TracedMember(
        traceparent=request.traceparent,
        tracestate=request.tracestate,
        request_id=request.request_id,
        rows=rows,
        attempt=frame.delivery.attempt,
        sent_ns=received - frame.age_ns,
        received_ns=received,
        error=error,
    )
