"""How a job goes from one state to the next. Each step is a function of the job as it is.

A step returns None where the job is not, or no longer, in a state that it could be taken from: somebody else
was there first.
"""

from __future__ import annotations

from msgspec.structs import replace

from qinfer.errors import DeadlineExceeded, QInferError
from qinfer.jobs.record import JobState, Progress
from qinfer.jobs.stored import UNENDED_LIFETIME, DataRef, Delivery, StoredJob
from qinfer.message import WireError

WEBHOOK_WINDOW = 86_400.0
"""Seconds after a job's end in which its webhook is tried."""

PENDING, DELIVERED, FAILED = "pending", "delivered", "failed"
"""States of a webhook."""

_SHORTEST = 1.0


def begun(job: StoredJob, now_us: int) -> StoredJob | None:
    """It runs. One that runs already goes on: whoever ran it is gone, and has not finished the attempt."""
    record = job.record
    if job.ended:
        return None
    attempts = record.attempts if record.state is JobState.RUNNING else record.attempts + 1
    started = record.started_us or now_us
    return replace(job, record=replace(record, state=JobState.RUNNING, attempts=attempts, started_us=started))


def put_back(job: StoredJob, *, counts: bool) -> StoredJob | None:
    """It waits again. An attempt that ended before the model could be asked does not count."""
    record = job.record
    if record.state is not JobState.RUNNING:
        return None
    attempts = record.attempts if counts else record.attempts - 1
    started = record.started_us if attempts else 0
    return replace(job, record=replace(record, state=JobState.QUEUED, attempts=attempts, started_us=started))


def progressed(job: StoredJob, done: int, total: int, failed: int = 0) -> StoredJob | None:
    """So many of its rows are done."""
    if job.record.state is not JobState.RUNNING:
        return None
    return replace(job, record=replace(job.record, progress=Progress(done, total, failed)))


def succeeded(job: StoredJob, result: DataRef | None, now_us: int) -> StoredJob | None:
    """It has its result, and its request is not needed any more."""
    if job.ended:
        return None
    record = replace(job.record, state=JobState.SUCCEEDED, ended_us=now_us)
    return replace(job, record=record, result=result, request=None, webhook=_due(job, now_us))


def failed(job: StoredJob, error: QInferError, now_us: int) -> StoredJob | None:
    """It will have no result."""
    if job.ended:
        return None
    record = replace(job.record, state=JobState.FAILED, ended_us=now_us, error=WireError.of(error))
    return replace(job, record=record, webhook=_due(job, now_us))


def overdue(job: StoredJob, now_us: int) -> StoredJob | None:
    """Its time in the queue is over, and it was never begun."""
    if not job.waits or now_us < job.queue_ends_us():
        return None
    seconds = (job.queue_ends_us() - job.queued_us) / 1e6
    return failed(job, DeadlineExceeded(f"the job was not begun within {seconds:g} s"), now_us)


def cancelled(job: StoredJob, now_us: int) -> StoredJob | None:
    """Nobody wants it any more."""
    if job.ended:
        return None
    record = replace(job.record, state=JobState.CANCELLED, ended_us=now_us)
    return replace(job, record=record, webhook=_due(job, now_us))


def retried(job: StoredJob, ticket: int, now_us: int) -> StoredJob | None:
    """It begins from the start. Not for one that succeeded, which has no request any more."""
    if job.record.state not in (JobState.FAILED, JobState.CANCELLED) or job.request is None:
        return None
    pending = PENDING if job.record.options.webhook else ""
    record = replace(
        job.record,
        state=JobState.QUEUED,
        attempts=0,
        started_us=0,
        ended_us=0,
        error=None,
        progress=None,
        webhook_state=pending,
    )
    round_ = job.round + 1
    return replace(job, record=record, round=round_, ticket=ticket, queued_us=now_us, webhook=None)


def webhook_tried(job: StoredJob, problem: str, next_us: int) -> StoredJob | None:
    """Its webhook was tried in vain, and is tried again then."""
    if not told_pending(job):
        return None
    before = job.webhook or Delivery()
    return replace(
        job,
        webhook=replace(before, attempts=before.attempts + 1, next_us=next_us, problem=problem),
    )


def webhook_ended(job: StoredJob, problem: str) -> StoredJob | None:
    """Its webhook was delivered, or is given up because of a problem."""
    if not told_pending(job):
        return None
    before = job.webhook or Delivery()
    return replace(
        job,
        record=replace(job.record, webhook_state=FAILED if problem else DELIVERED),
        webhook=replace(before, attempts=before.attempts + 1, problem=problem),
    )


def told_pending(job: StoredJob) -> bool:
    """Whether it has ended and its webhook is to be told."""
    return job.ended and job.record.webhook_state == PENDING


def lifetime(job: StoredJob, now_us: int) -> float:
    """Seconds for which it is to be remembered from now on."""
    if not job.ended:
        return UNENDED_LIFETIME
    left = job.keep - (now_us - job.record.ended_us) / 1e6
    if told_pending(job):
        left += WEBHOOK_WINDOW
    return max(_SHORTEST, left)


def _due(job: StoredJob, now_us: int) -> Delivery | None:
    return Delivery(first_us=now_us, next_us=now_us) if job.record.options.webhook else None
