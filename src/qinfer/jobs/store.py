"""Jobs at the broker: submitting them, asking after them, and the steps that whoever runs them takes.

A job is stored before it is queued, and what is queued is only its id: a queue entry that comes twice, or
late, finds the job as it is. All changes are made by compare-and-set. `docs/jobs.md` says what survives what.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from time import time_ns

from qinfer.bus import Bus
from qinfer.errors import (
    BusUnavailable,
    InternalError,
    InvalidRequest,
    JobCancelled,
    JobNotFound,
    NotFound,
    QInferError,
)
from qinfer.jobs import transitions
from qinfer.jobs.data import JobData
from qinfer.jobs.ids import is_id
from qinfer.jobs.lanes import JOB_QUEUE, WEBHOOK_QUEUE, lane_number, queues, webhook_entry
from qinfer.jobs.listing import JobPage, Wanted, page
from qinfer.jobs.options import JobLimits
from qinfer.jobs.positions import Positions
from qinfer.jobs.record import JobRecord, JobState
from qinfer.jobs.stored import UNENDED_LIFETIME, Form, StoredJob, Work, decode_job, decode_work, encode
from qinfer.jobs.submission import Submission, Submitter
from qinfer.message import Response, ResponseFrame, decode_response_frame

logger = logging.getLogger(__name__)

Change = Callable[[StoredJob], StoredJob | None]

_ATTEMPTS = 50  # of compare-and-set; who loses that often meets nobody but itself
_LOOK = 10.0  # seconds after which a job that is waited for is looked at, whatever is heard of it
JOBS = "job"
"""First part of the keys of jobs in their table."""


@dataclass(frozen=True, slots=True)
class JobResult:
    """The answer to a job's request.

    Attributes:
        frame: it came in.
        response: the frame's only one; its tensors are views into one buffer.
        form: how it is to be told.
    """

    frame: ResponseFrame
    response: Response
    form: Form


class JobStore:
    """The jobs of a namespace.

    Methods with `owner` see only that owner's jobs, and for all others raise `JobNotFound`; None sees all.
    Each raises `BusUnavailable` where the broker does not answer.

    Args:
        bus: a started bus, which may be used for other things, too.
        limits: for new jobs; None where only gateways know them, as for clients.
        clock: Unix time in microseconds.

    Raises:
        Unsupported: the bus has no tables.
    """

    def __init__(
        self,
        bus: Bus,
        limits: JobLimits | None = None,
        *,
        clock: Callable[[], int] = lambda: time_ns() // 1000,
    ) -> None:
        self.bus = bus
        self.limits = limits or JobLimits()
        self.now_us = clock
        self.table = bus.table(bus.names.jobs_table)
        max_bytes = limits.max_bytes if limits else 0
        self.data = JobData(
            bus.table(bus.names.job_data_table, max_bytes=max_bytes or -1),
            max_bytes=max_bytes,
            max_payload=bus.max_payload,
        )
        self._positions = Positions(bus)
        self._submitter = Submitter(self, self._positions)

    async def declare(self) -> None:
        """Make the queues, or bring them to their limits; gateways do before the first job."""
        for name, spec in queues(self.limits.max_jobs).items():
            await self.bus.declare(name, spec)

    # For whoever has jobs run

    async def submit(self, submission: Submission) -> JobRecord:
        """Store a job and queue it; it survives everything from then on.

        Raises:
            InvalidRequest: its options cannot be met.
            KeyReused: its idempotency key is that of another request.
            QueueFull: there are too many jobs, or bytes of them.
            NoWorker: no gateway has run jobs in this namespace yet.
            PayloadTooLarge: its names are too long for a message.
        """
        return await self.shown(await self._submitter.submit(submission))

    async def get(self, job_id: str, *, owner: str | None = None) -> JobRecord:
        """How a job is doing.

        Raises:
            JobNotFound: there is no such job, or none any more.
        """
        return await self.shown((await self._own(job_id, owner))[0])

    async def shown(self, job: StoredJob) -> JobRecord:
        """A job's record with its place in the queue."""
        return await self._positions.placed(job)

    async def follow(self, job_id: str, *, owner: str | None = None) -> AsyncGenerator[JobRecord, None]:
        """A job now, and at each change until it has ended or is forgotten; not every change is seen.

        Raises:
            JobNotFound: there is no such job.
        """
        changed = asyncio.Event()
        changed.set()
        async with self._watched(job_id, changed):
            told: StoredJob | None = None
            while True:
                changed.clear()
                try:
                    job = (await self._own(job_id, owner))[0]
                except JobNotFound:
                    if told is None:
                        raise
                    return
                if job != told:
                    told = job
                    yield await self.shown(job)
                if job.ended:
                    return
                await _set_within(changed, _LOOK)

    async def wait(self, job_id: str, timeout: float, *, owner: str | None = None) -> JobRecord:
        """A job as soon as it has ended, or as it is after `timeout` seconds.

        Raises:
            JobNotFound: there is no such job, or none any more.
        """
        job = (await self._own(job_id, owner))[0]
        if job.ended or timeout <= 0:
            return await self.shown(job)
        loop = asyncio.get_running_loop()
        give_up = loop.time() + timeout
        changed = asyncio.Event()
        async with self._watched(job_id, changed):
            while True:
                changed.clear()
                job = (await self._own(job_id, owner))[0]
                left = give_up - loop.time()
                if job.ended or left <= 0:
                    return await self.shown(job)
                await _set_within(changed, min(left, _LOOK))

    async def result(self, job_id: str, *, owner: str | None = None) -> JobResult | None:
        """The answer to a job's request; None while it has not ended, and for one that is no request.

        Raises:
            JobNotFound: there is no such job, or its result is not kept any more.
            JobCancelled: it was cancelled.
            QInferError: why it failed.
        """
        job = (await self._own(job_id, owner))[0]
        record = job.record
        if record.state is JobState.CANCELLED:
            raise JobCancelled("the job was cancelled")
        if record.error is not None:
            raise record.error.exception()
        if job.result is None:
            return None
        try:
            frame = decode_response_frame(await self.data.get(job.result))
        except NotFound:
            raise JobNotFound(f"the result of job {job_id} is not kept any more") from None
        return JobResult(frame, frame.responses[0], job.form)

    async def cancel(self, job_id: str, *, owner: str | None = None) -> JobRecord:
        """Have a job not run, or stopped. One that has ended stays as it is.

        Raises:
            JobNotFound: there is no such job, or none any more.
        """
        await self._own(job_id, owner)
        job = await self.change(job_id, lambda job: transitions.cancelled(job, self.now_us()))
        if job.record.state is JobState.CANCELLED:
            await self.retain(job)
            try:
                self.bus.cancel(JOB_QUEUE, job_id.encode())
            except QInferError as error:
                # Whoever runs it finds out when it has an answer.
                logger.info("job %s runs on in vain: %s", job_id, error)
            await self.announce(job)
        return job.record

    async def retry(self, job_id: str, *, owner: str | None = None) -> JobRecord:
        """Have a job that failed or was cancelled run once more, from the start.

        Raises:
            JobNotFound: there is no such job, or none any more.
            InvalidRequest: it succeeded, or runs.
            QueueFull: there are too many jobs.
        """
        job = (await self._own(job_id, owner))[0]
        if not job.waits:  # else this was asked for before, and maybe it did not come to be queued
            if job.request is not None and job.ended:
                await self._renew(job)
            ticket = await self._positions.ticket(lane_number(job.record.model, job.record.version, job.lane))
            job = await self.change(job_id, lambda job: transitions.retried(job, ticket, self.now_us()))
        if not job.waits:
            raise InvalidRequest(
                f"job {job_id} is {job.record.state.value}; expected one that failed or was cancelled"
            )
        await self._submitter.enqueue(job)
        return await self.shown(job)

    async def forget(self, job_id: str, *, owner: str | None = None) -> None:
        """Cancel a job that has not ended, and remove all that is known of it.

        Raises:
            JobNotFound: there is no such job, or none any more.
        """
        await self.cancel(job_id, owner=owner)
        job = (await self._own(job_id, owner))[0]
        await self.table.remove(f"{JOBS}.{job_id}")
        if job.key:
            await self.data.table.remove(job.key)
        await self.data.remove(job.request)
        await self.data.remove(job.result)

    async def list(
        self,
        *,
        owner: str | None = None,
        state: JobState | None = None,
        model: str = "",
        limit: int = 100,
        after: str = "",
    ) -> JobPage:
        """Jobs, the newest first.

        Args:
            owner: only theirs; None for everybody's.
            state, model: only those; None and "" for all.
            limit: most jobs of the page.
            after: begin behind that id.
        """
        start = len(JOBS) + 1
        ids = [key[start:] for key in await self.table.keys(JOBS)]
        wanted = Wanted(owner=owner, state=state, model=model, after=after)
        return await page(ids, wanted, limit, read=self._listed, show=self.shown)

    # For whoever runs them

    async def read(self, job_id: str) -> tuple[StoredJob, int]:
        """A job and its revision.

        Raises:
            JobNotFound: there is no such job, or none any more.
            InternalError: what lies there is no job.
        """
        entry = await self.table.get(f"{JOBS}.{job_id}") if is_id(job_id) else None
        if entry is None:
            raise JobNotFound(f"there is no job {job_id[:40]!r}, or none any more")
        return decode_job(entry[0]), entry[1]

    async def change(self, job_id: str, change: Change) -> StoredJob:
        """Take a job to its next state.

        Args:
            job_id: which.
            change: makes it of the job as it is; None to leave that so. It may be called several times.

        Returns:
            The job as it is now.

        Raises:
            JobNotFound: there is no such job, or none any more.
        """
        for _ in range(_ATTEMPTS):
            job, revision = await self.read(job_id)
            changed = change(job)
            if changed is None or changed == job:
                return job
            if await self.write(changed, revision):
                return changed
        raise BusUnavailable(f"job {job_id} keeps changing", retry_after=1.0)

    async def write(self, job: StoredJob, revision: int) -> int:
        """Write a job; 0 when somebody was faster."""
        lifetime = transitions.lifetime(job, self.now_us())
        return await self.table.write(f"{JOBS}.{job.id}", encode(job), lifetime=lifetime, revision=revision)

    async def work(self, job: StoredJob) -> Work:
        """What a job is to do.

        Raises:
            JobNotFound: that is not kept any more.
            InternalError: it cannot be read.
        """
        if job.request is None:
            raise JobNotFound(f"the request of job {job.id} is not kept any more")
        try:
            return decode_work(await self.data.get(job.request))
        except NotFound:
            raise JobNotFound(f"the request of job {job.id} is not kept any more") from None

    async def retain(self, job: StoredJob) -> None:
        """Keep the request of a job without result for as long as the job, for a retry; best effort."""
        if job.request is not None:
            try:
                await self.data.renew(job.request, lifetime=transitions.lifetime(job, self.now_us()))
            except QInferError as error:
                logger.info("the request of job %s: %s", job.id, error)

    async def announce(self, job: StoredJob) -> None:
        """Queue the webhook of a job that has ended, if it has one that was not told yet."""
        if transitions.told_pending(job):
            message_id = f"{job.id}.{job.round}"
            entry = webhook_entry(job.id, job.record.options.webhook)
            await self.bus.enqueue(WEBHOOK_QUEUE, "", entry, message_id=message_id)

    async def _renew(self, job: StoredJob) -> None:
        """Have the request of a job live for as long as one that has not ended."""
        if job.request is None:
            return
        try:
            await self.data.renew(job.request, lifetime=UNENDED_LIFETIME)
        except NotFound:
            raise InvalidRequest(f"the request of job {job.id} is not kept any more") from None

    async def _own(self, job_id: str, owner: str | None) -> tuple[StoredJob, int]:
        job, revision = await self.read(job_id)
        if owner is not None and job.record.owner != owner:
            raise JobNotFound(f"there is no job {job_id[:40]!r}, or none any more")
        return job, revision

    async def _listed(self, job_id: str) -> StoredJob | None:
        try:
            return (await self.read(job_id))[0]
        except JobNotFound:
            return None
        except InternalError as error:  # one that nobody can read must not hide the others
            logger.warning("job %s is not listed: %s", job_id, error)
            return None

    @asynccontextmanager
    async def _watched(self, job_id: str, changed: asyncio.Event) -> AsyncIterator[None]:
        """Have an event set at each change of a job."""
        if not is_id(job_id):
            raise JobNotFound(f"there is no job {job_id[:40]!r}")
        watcher = await self.table.watch(f"{JOBS}.{job_id}", lambda _key, _value: changed.set())
        try:
            yield
        finally:
            await watcher.close()


async def _set_within(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return
