"""Jobs through a gateway."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from time import monotonic
from typing import Any

from qinfer.client.base import Result
from qinfer.client.http.session import Session
from qinfer.client.http.wire import infer_body, model_path, read_answer, read_error, read_json
from qinfer.client.transport import Question
from qinfer.errors import DeadlineExceeded, InternalError, JobNotFound, QInferError, Retry
from qinfer.headers import JSON_LENGTH
from qinfer.jobs import JobOptions, JobRecord, JobState, Progress
from qinfer.jobs.ids import is_id
from qinfer.jobs.options import check_options
from qinfer.message import Request, WireError

_QUICK = 10.0  # seconds for a question that waits for nothing
_LONG_POLL = 25.0  # seconds a server may think about one question; proxies cut longer ones off
_MICROSECOND = timedelta(microseconds=1)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class HttpJobs:
    """The jobs of one caller.

    Args:
        session: a started session.
    """

    def __init__(self, session: Session) -> None:
        self._session = session

    async def submit(
        self, question: Question, request: Request, job: JobOptions, headers: Mapping[str, str]
    ) -> JobRecord:
        """Have a request stored as a job."""
        body = infer_body(request, 0)
        reply = await self._session.call(
            "POST",
            f"{model_path(question.model, question.options.version)}/infer",
            deadline=question.deadline,
            body=body,
            headers={
                **headers,
                **_option_headers(job),
                JSON_LENGTH: str(len(body[0])),
                "Prefer": "respond-async",
            },
        )
        if reply.status != HTTPStatus.ACCEPTED:
            raise InternalError(
                f"the server answered with status {reply.status}; expected 202 and a job: does it run jobs?"
            )
        return _record(read_json(reply.raw))

    async def get(self, job_id: str, give_up: float) -> JobRecord:
        """A job at its end, or as it is then, of `time.monotonic`.

        Raises:
            JobNotFound: there is no such job.
        """
        while True:
            left = max(0.0, give_up - monotonic())
            poll = min(left, _LONG_POLL)
            query = f"?wait={poll:.3f}" if poll else ""
            reply = await self._session.call(
                "GET", f"{_path(job_id)}{query}", deadline=monotonic() + poll + _QUICK
            )
            record = _record(read_json(reply.raw))
            if record.ended_us or left <= _LONG_POLL:
                return record

    async def result(self, job_id: str, give_up: float) -> Result | QInferError:
        """A job's answer, or why it failed.

        Raises:
            DeadlineExceeded: it has not ended by then.
            QInferError: it is not known.
        """
        while True:
            left = max(0.0, give_up - monotonic())
            poll = min(left, _LONG_POLL)
            reply = await self._session.call(
                "GET",
                f"{_path(job_id)}/result?wait={poll:.3f}",
                deadline=monotonic() + poll + _QUICK,
                headers={"Accept": "application/octet-stream"},
                check=False,
            )
            if reply.status == HTTPStatus.OK:
                return read_answer(reply.raw, reply.headers.get(JSON_LENGTH))
            if reply.status != HTTPStatus.ACCEPTED:
                error = read_error(reply.status, reply.headers, reply.raw)
                if error.retry is Retry.NEVER or (await self.get(job_id, 0.0)).state is JobState.FAILED:
                    return error
                raise error  # of the server, not of the job
            if left <= _LONG_POLL:
                state = _record(read_json(reply.raw)).state.value
                raise DeadlineExceeded(f"job {job_id} is {state}; its result was not waited for longer")

    async def cancel(self, job_id: str) -> JobRecord:
        """Have a job not run, or stopped."""
        reply = await self._session.call("POST", f"{_path(job_id)}/cancel", deadline=monotonic() + _QUICK)
        return _record(read_json(reply.raw))


def _path(job_id: str) -> str:
    if not is_id(job_id):
        raise JobNotFound(f"there is no job {job_id[:40]!r}")
    return f"/v2/jobs/{job_id}"


def _option_headers(job: JobOptions) -> dict[str, str]:
    """Options that are not the server's defaults anyway.

    Raises:
        InvalidRequest: they cannot be met.
    """
    check_options(job)
    headers = {}
    for name, default in ((field, getattr(JobOptions(), field)) for field in JobOptions.__struct_fields__):
        value = getattr(job, name)
        if value != default:
            headers[f"x-qinfer-job-{name.replace('_', '-')}"] = _told(value)
    return headers


def _told(value: float | bool | str) -> str:
    """A value as headers have it: decimal numbers of a few digits, without exponents."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.6f}" if isinstance(value, float) else str(value)


def _record(job: Any) -> JobRecord:
    try:
        error, progress = job.get("error"), job.get("progress")
        return JobRecord(
            id=str(job["id"]),
            state=JobState(job["state"]),
            model=str(job["model_name"]),
            version=str(job.get("model_version") or ""),
            created_us=_microseconds(job.get("created_at")),
            started_us=_microseconds(job.get("started_at")),
            ended_us=_microseconds(job.get("ended_at")),
            attempts=int(job.get("attempts", 0)),
            priority=int(job.get("priority", 0)),
            error=None if error is None else WireError(str(error["reason"]), str(error["message"])),
            progress=None if progress is None else Progress(int(progress["done"]), int(progress["total"])),
            queue_position=job.get("queue_position"),
            webhook_state=str(job.get("webhook_state") or ""),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InternalError(f"the server's answer is no job: {error!r}") from None


def _microseconds(moment: str | None) -> int:
    """Unix time of an RFC 3339 moment; 0 for none."""
    return 0 if moment is None else (datetime.fromisoformat(moment) - _EPOCH) // _MICROSECOND
