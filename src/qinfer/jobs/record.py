"""What is known of a job, as it lies at the broker and as people see it."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from qinfer.message import WireError


class JobState(StrEnum):
    """Where a job is on its way."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


ENDED = frozenset((JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED))
"""States that a job does not leave, but for a retry that is asked for."""


class JobOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a job is to be run; times in seconds.

    Attributes:
        max_queue_time: a job that was not begun by then fails with `deadline_exceeded`; 0 for no limit.
        timeout: what one attempt may take; 0 for the server's.
        max_attempts: how often it is tried before it fails; errors that say that a retry is in vain end it
            at once.
        keep: how long its record and its result are kept after its end; 0 for the server's.
        webhook: URL that is told of its end; "" for none.
        spare: run it only on capacity that nothing else wants, after all other jobs.
    """

    max_queue_time: float = 0.0
    timeout: float = 0.0
    max_attempts: int = 3
    keep: float = 0.0
    webhook: str = ""
    spare: bool = False


class Progress(msgspec.Struct, frozen=True):
    """How far a job of many rows is.

    Attributes:
        done: rows that are done, those that failed included.
        total: of how many; an estimate where they are not counted beforehand.
        failed: rows that could not be scored.
    """

    done: int = 0
    total: int = 0
    failed: int = 0


class JobRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A job.

    Attributes:
        id: 32 hexadecimal digits that cannot be guessed.
        state: where it is.
        model, version: what it asks; version "" for the newest.
        owner: name of the API key or user that submitted it, who alone may see it; "" without keys.
        created_us, started_us, ended_us: Unix microseconds; 0 when that has not happened.
        attempts: how often it was begun.
        priority: as for requests; 0 for the model's default.
        options: how it is run.
        error: why it failed.
        progress: of jobs with many rows.
        queue_position: jobs before it and itself; None when it does not wait, or nobody knows.
        webhook_state: "" without one, else "pending", "delivered" or "failed".
    """

    id: str
    state: JobState
    model: str
    version: str = ""
    owner: str = ""
    created_us: int = 0
    started_us: int = 0
    ended_us: int = 0
    attempts: int = 0
    priority: int = 0
    options: JobOptions = JobOptions()
    error: WireError | None = None
    progress: Progress | None = None
    queue_position: int | None = None
    webhook_state: str = ""
