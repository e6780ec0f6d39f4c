"""The worker's counters: one object a loaded model version, updated once a batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import Literal, TypeAlias

from qinfer.telemetry.histogram import DURATION_SECONDS, POWERS_OF_TWO, Histogram
from qinfer.telemetry.statistics import (
    BatchStatistics,
    Duration,
    InferenceStatistics,
    MemoryUsage,
    ModelStatistics,
    ResponseStatistics,
)

CloseReason: TypeAlias = Literal[
    "full", "preferred", "window", "deadline", "idle", "alone", "drain", "isolated"
]
"""Why a batch was closed: full; of a preferred size; its window over; its tightest member's time up; an idle
instance and nothing more queued; all that its gateways have in flight already in it; the worker draining; its
requests delivered before, and run apart from others."""

ResponseOutcome: TypeAlias = Literal["success", "fail", "empty_response", "cancel"]

_NS = 1e-9


class ModelStats:
    """Counters and histograms of one version of a model in one worker.

    All methods are called by one thread, the event loop's. Times are nanoseconds.

    Args:
        model, version: which one; they become metric labels, so never anything a client made up.
        pending: how many requests wait in this worker; asked when metrics are scraped, from another thread.
    """

    __slots__ = (
        "batch_rows", "batch_wait", "closed", "compute_infer", "compute_infer_ns", "compute_input_ns",
        "compute_output_ns", "executions", "failed", "failed_ns", "first_response", "last_failure",
        "last_inference_ms", "memory_usage", "model", "pending", "queue_ns", "queue_wait", "request_ns",
        "responses", "rows", "sizes", "succeeded", "version",
    )  # fmt: skip

    def __init__(self, model: str, version: str, *, pending: Callable[[], int] = lambda: 0) -> None:
        self.model = model
        self.version = version
        self.pending = pending
        self.last_inference_ms = 0
        self.rows = 0
        self.executions = 0
        self.succeeded = 0
        self.request_ns = 0
        self.queue_ns = 0
        self.compute_input_ns = 0
        self.compute_infer_ns = 0
        self.compute_output_ns = 0
        self.failed: dict[str, int] = {}
        self.failed_ns = 0
        self.last_failure = ""  # its reason
        self.closed: dict[str, int] = {}
        self.sizes: dict[int, list[int]] = {}
        self.responses: dict[str, ResponseStatistics] = {}
        self.memory_usage: list[MemoryUsage] = []
        self.queue_wait = Histogram(DURATION_SECONDS, unit=_NS)
        self.batch_wait = Histogram(DURATION_SECONDS, unit=_NS)
        self.compute_infer = Histogram(DURATION_SECONDS, unit=_NS)
        self.batch_rows = Histogram(POWERS_OF_TWO)
        self.first_response = Histogram(DURATION_SECONDS, unit=_NS)

    def record_batch(
        self,
        *,
        rows: int,
        queue_ns: Sequence[int],
        batch_wait_ns: Sequence[int],
        compute_input_ns: int,
        compute_infer_ns: int,
        compute_output_ns: int,
        reason: CloseReason,
        now_ms: int,
        failed_rows: int = 0,
        trace_ids: Mapping[int, str] | None = None,
    ) -> None:
        """Count one executed batch and its answered requests; the failed ones go to `record_failures`.

        Args:
            rows: rows executed, those of failed requests included.
            queue_ns: for each answered request, publication to arrival in this worker; a negative value,
                which two hosts' clocks can produce, counts as zero.
            batch_wait_ns: for each answered request, arrival to start of the batch; as long as `queue_ns`.
            compute_input_ns: time to make the batch's input tensors.
            compute_infer_ns: time in the backend.
            compute_output_ns: time to split the outputs.
            reason: why the batch was closed.
            now_ms: Unix milliseconds.
            failed_rows: rows of requests that got an error instead.
            trace_ids: trace ids (32 hex digits) of the traced requests, by index in `queue_ns`.
        """
        if queue_ns and min(queue_ns) < 0:
            queue_ns = [max(0, wait) for wait in queue_ns]
        requests = len(queue_ns)
        waited = sum(queue_ns) + sum(batch_wait_ns)
        self.last_inference_ms = max(self.last_inference_ms, now_ms)
        self.rows += rows - failed_rows
        self.executions += 1
        self.succeeded += requests
        self.queue_ns += waited
        self.compute_input_ns += requests * compute_input_ns
        self.compute_infer_ns += requests * compute_infer_ns
        self.compute_output_ns += requests * compute_output_ns
        self.request_ns += waited + requests * (compute_input_ns + compute_infer_ns + compute_output_ns)
        self.closed[reason] = self.closed.get(reason, 0) + 1
        size = self.sizes.get(rows)
        if size is None:
            size = self.sizes[rows] = [0, 0, 0, 0]
        size[0] += 1
        size[1] += compute_input_ns
        size[2] += compute_infer_ns
        size[3] += compute_output_ns
        self.queue_wait.observe_many(queue_ns, trace_ids)
        self.batch_wait.observe_many(batch_wait_ns, trace_ids)
        trace = next(iter(trace_ids.values())) if trace_ids else ""
        self.compute_infer.observe(compute_infer_ns, trace)
        self.batch_rows.observe(rows, trace)

    def record_failures(self, reason: str, requests: int = 1, *, total_ns: int = 0) -> None:
        """Count requests answered with an error, executed or not.

        Args:
            reason: `QInferError.reason` of the error.
            requests: how many.
            total_ns: sum of their times from publication to answer.
        """
        self.failed[reason] = self.failed.get(reason, 0) + requests
        self.failed_ns += max(0, total_ns)
        self.last_failure = reason

    def record_response(
        self, position: int, outcome: ResponseOutcome, *, compute_infer_ns: int, compute_output_ns: int = 0
    ) -> None:
        """Count one response of a decoupled model.

        Args:
            position: 0 for a request's first response.
            outcome: what became of it.
            compute_infer_ns: time since the request's previous response, or since its start, in the backend.
            compute_output_ns: time to make the response of the backend's output; 0 when there is none.
        """
        stats = self.responses.setdefault(str(position), ResponseStatistics())
        outcome_stats: Duration = getattr(stats, outcome)
        outcome_stats.count += 1
        outcome_stats.ns += compute_infer_ns + compute_output_ns
        if outcome == "cancel":
            return
        stats.compute_infer.count += 1
        stats.compute_infer.ns += compute_infer_ns
        if compute_output_ns:
            stats.compute_output.count += 1
            stats.compute_output.ns += compute_output_ns

    def snapshot(self) -> ModelStatistics:
        """The counters as the protocol's statistics object; shares nothing with this one."""
        requests = self.succeeded
        return ModelStatistics(
            name=self.model,
            version=self.version,
            last_inference=self.last_inference_ms,
            inference_count=self.rows,
            execution_count=self.executions,
            inference_stats=InferenceStatistics(
                success=Duration(requests, self.request_ns),
                fail=Duration(sum(self.failed.values()), self.failed_ns),
                queue=Duration(requests, self.queue_ns),
                compute_input=Duration(requests, self.compute_input_ns),
                compute_infer=Duration(requests, self.compute_infer_ns),
                compute_output=Duration(requests, self.compute_output_ns),
            ),
            response_stats=deepcopy(self.responses),
            batch_stats=[
                BatchStatistics(rows, Duration(count, fill), Duration(count, infer), Duration(count, split))
                for rows, (count, fill, infer, split) in sorted(self.sizes.items())
            ],
            memory_usage=deepcopy(self.memory_usage),
        )
