"""Statistics and traces of a model version, written once a batch."""

from __future__ import annotations

from time import time_ns

from qinfer.errors import QInferError
from qinfer.telemetry.stats import ModelStats
from qinfer_workers.instance import Completion


class BatchRecorder:
    """Records what happened to the requests of one model version on this worker."""

    def __init__(self, stats: ModelStats) -> None:
        self.stats = stats

    def executed(self, completion: Completion) -> None:
        """A batch was answered."""
        batch, timing = completion.batch, completion.timing
        queue: list[int] = []
        wait: list[int] = []
        failed_rows = 0
        for member in batch.members:
            frame = member.frame
            response = member.response
            if response is not None and response.error is not None:
                failed_rows += member.rows
                total = frame.age_ns + completion.ended_ns - frame.received_ns
                self.stats.record_failures(response.error.reason, total_ns=total)
            else:
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
        )

    def refused(self, error: QInferError) -> None:
        """A request was answered with an error without being executed."""
        self.stats.record_failures(error.reason)
