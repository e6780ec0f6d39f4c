"""Jobs as people see them over HTTP: the job object."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec

from qinfer.jobs import JobRecord

JOBS_PATH = "/v2/jobs"


def job_object(record: JobRecord) -> dict[str, Any]:
    """A job as JSON has it; times in RFC 3339, null where something has not happened."""
    path = f"{JOBS_PATH}/{record.id}"
    error = record.error
    progress = record.progress
    return {
        "id": record.id,
        "state": record.state.value,
        "model_name": record.model,
        "model_version": record.version,
        "created_at": _time(record.created_us),
        "started_at": _time(record.started_us),
        "ended_at": _time(record.ended_us),
        "attempts": record.attempts,
        "priority": record.priority,
        "queue_position": record.queue_position,
        "progress": None if progress is None else msgspec.to_builtins(progress),
        "error": None if error is None else {"reason": error.reason, "message": error.message},
        "webhook_state": record.webhook_state,
        "status_url": path,
        "result_url": f"{path}/result",
        "cancel_url": f"{path}/cancel",
        "events_url": f"{path}/events",
    }


def _time(unix_us: int) -> str | None:
    if not unix_us:
        return None
    moment = datetime.fromtimestamp(unix_us // 1_000_000, UTC).replace(microsecond=unix_us % 1_000_000)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
