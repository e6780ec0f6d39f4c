"""One delivery of a job: what is done with it, from its record to its end.

Each step can be the last one before this process dies. Whoever gets the job's id then finds it as it is, and
goes on: a job that runs is run on, and finds the answer of before under the name that its attempts share; one
that has ended only has its webhook queued, once more perhaps.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Protocol

from qinfer.claims import Claims
from qinfer.errors import (
    Cancelled,
    InternalError,
    JobNotFound,
    ModelNotFound,
    QInferError,
    QueueFull,
    RateLimited,
    Retry,
    Unavailable,
    Unsupported,
)
from qinfer.jobs import BatchWork, InferWork, JobState, JobStore, transitions
from qinfer.jobs.stored import StoredJob
from qinfer.message import Request, ResponseFrame, encode
from qinfer_gateway.catalog import Catalog, Target
from qinfer_gateway.dispatcher import Dispatcher
from qinfer_gateway.jobs.call import JobCall
from qinfer_gateway.jobs.stats import JobStats

logger = logging.getLogger(__name__)

_OFF_LOOP_BYTES = 256 * 1024
_NOT_TRIED = (QueueFull, RateLimited, Unavailable, ModelNotFound)
"""Errors after which it is as if there had been no attempt: there was no room for it, or nobody to ask."""

_PAUSE = 1.0  # seconds before the second attempt; doubled each time
_LONGEST_PAUSE = 30.0
_MARGIN = 60.0  # seconds for which a result outlives its job's record


class BatchRunner(Protocol):
    """Takes in and runs jobs that are a file of inputs."""

    async def accept(self, target: Target, spec: dict[str, Any], *, tenant: str, repeated: bool) -> BatchWork:
        """Check what somebody wants.

        Args:
            target: the model.
            spec: what was asked for.
            tenant: whom the requests are accounted to.
            repeated: it may be a job already, by its idempotency key, and its files may be gone.

        Raises:
            QInferError: it cannot be done.
        """

    async def run(self, job: StoredJob, work: BatchWork) -> None:
        """Run a job to its end.

        Raises:
            QInferError: why that failed; what its `retry` says decides whether it is run again.
        """


@dataclass(frozen=True, slots=True)
class Again:
    """A job that is not done with.

    Attributes:
        delay: seconds after which somebody is to look at it.
    """

    delay: float = 0.0


class Attempts:
    """Does what is to be done with jobs.

    Args:
        store: the jobs.
        catalog, dispatcher: where they run.
        claims: bounds the bytes that are held.
        stats: told of them.
        batches: runs batch jobs; None where there are none.
    """

    def __init__(
        self,
        store: JobStore,
        catalog: Catalog,
        dispatcher: Dispatcher,
        claims: Claims,
        stats: JobStats,
        batches: BatchRunner | None = None,
    ) -> None:
        self._store = store
        self._catalog = catalog
        self._dispatcher = dispatcher
        self._claims = claims
        self._stats = stats
        self._batches = batches
        self._calls: dict[str, JobCall] = {}
        self._running: dict[str, asyncio.Task[None]] = {}

    async def work_on(self, job_id: str, answered: Callable[[], None]) -> Again | None:
        """Take a job as far as it goes now.

        Args:
            job_id: which.
            answered: called when the model is not needed any more.

        Returns:
            None when nothing is left to be done; else it has to be looked at again.

        Raises:
            QInferError: the broker is away, or something else is wrong that has nothing to do with the job.
        """
        store = self._store
        try:
            own = True

            def begin(job: StoredJob) -> StoredJob | None:
                nonlocal own
                own = job.record.state is not JobState.RUNNING
                now_us = store.now_us()
                return transitions.overdue(job, now_us) or transitions.begun(job, now_us)

            job = await store.change(job_id, begin)
            if not job.ended:
                self._stats.attempts[job.record.model] += 1
                self._stats.running[job.record.model] += 1
                try:
                    ended = await self._run(job, answered, own=own)
                finally:
                    self._stats.running[job.record.model] -= 1
                if isinstance(ended, Again):
                    return ended
                job = ended
            elif job.record.state is JobState.FAILED and transitions.told_pending(job):
                await store.retain(job)
            await store.announce(job)
        except JobNotFound:  # forgotten, or never accepted
            return None
        return None

    def cancel(self, job_id: str) -> bool:
        """A job was cancelled; False when it does not run here."""
        call = self._calls.get(job_id)
        if call is not None:
            self._dispatcher.abandon(call, private=True)
            call.failed(Cancelled("the job was cancelled"))
        task = self._running.get(job_id)
        if task is not None:
            task.cancel()
        return call is not None or task is not None

    async def _run(self, job: StoredJob, answered: Callable[[], None], *, own: bool) -> StoredJob | Again:
        """Make an attempt, or go on with one that was begun by somebody else, unless it is `own`."""
        size = job.request.size if job.request is not None else 0
        held = 0
        try:
            await self._claims.room(size)
            held = size
            work = await self._store.work(job)
            if isinstance(work, BatchWork):
                answered()  # what it asks of the model it counts by itself
                await self._run_batch(job, work)
                return await self._succeed(job, None)
            frame = await self._ask(job, work)
            answered()
            return await self._succeed(job, frame)
        except QInferError as error:
            return await self._failed(job, error, own=own)
        except Exception:
            logger.exception("an attempt of job %s failed in a way that is not foreseen", job.id)
            return await self._failed(job, InternalError("the gateway failed to run the job"), own=own)
        finally:
            self._claims.release(held)

    async def _run_batch(self, job: StoredJob, work: BatchWork) -> None:
        if self._batches is None:
            raise Unsupported("batch jobs are not run here")
        task = self._running[job.id] = asyncio.create_task(self._batches.run(job, work))
        try:
            await task
        except asyncio.CancelledError:
            current = asyncio.current_task()
            if current is not None and current.cancelling():
                raise
            raise Cancelled("the job was cancelled") from None
        finally:
            self._running.pop(job.id, None)
            task.cancel()

    async def _ask(self, job: StoredJob, work: InferWork) -> ResponseFrame:
        record = job.record
        target = self._catalog.find(record.model, record.version)
        request = work.request
        _prepare(request, job)
        call = JobCall()
        self._dispatcher.submit(
            call, target, request, timeout=record.options.timeout or self._store.limits.timeout
        )
        self._calls[job.id] = call
        try:
            return await call.answer
        finally:
            self._calls.pop(job.id, None)
            self._dispatcher.abandon(call)

    async def _succeed(self, job: StoredJob, frame: ResponseFrame | None) -> StoredJob:
        store = self._store
        ref = None
        if frame is not None:
            data = await _encoded(frame)
            ref = store.data.place(job.id, "out", len(data))
            await store.data.put(ref, data, lifetime=job.keep + _MARGIN)
        try:
            ended = await store.change(job.id, lambda job: transitions.succeeded(job, ref, store.now_us()))
        except JobNotFound:  # forgotten meanwhile
            await store.data.remove(ref)
            raise
        if ended.result != ref:  # somebody else was faster, or did not want it any more
            await store.data.remove(ref)
        else:
            self._stats.end(job.record.model, JobState.SUCCEEDED)
            await store.data.remove(job.request)
        return ended

    async def _failed(self, job: StoredJob, error: QInferError, *, own: bool) -> StoredJob | Again:
        """An attempt failed: the job waits for the next, or has failed."""
        store = self._store
        attempts = job.record.attempts
        if isinstance(error, _NOT_TRIED):
            delay = max(error.retry_after or 0.0, _PAUSE)
            # What another began counts: it may have asked the model, or be at it still.
            left = await store.change(job.id, lambda job: transitions.put_back(job, counts=not own))
        elif error.retry is not Retry.NEVER and attempts < job.record.options.max_attempts:
            delay = min(_PAUSE * 2.0 ** (attempts - 1), _LONGEST_PAUSE)
            logger.info("attempt %d of job %s failed: %s", attempts, job.id, error)
            left = await store.change(job.id, lambda job: transitions.put_back(job, counts=True))
        else:
            if isinstance(error, JobNotFound):
                error = InternalError(error.message)
            return await self._give_up(job, error)
        return left if left.ended else Again(min(delay, _LONGEST_PAUSE))

    async def _give_up(self, job: StoredJob, error: QInferError) -> StoredJob:
        store = self._store
        failed = await store.change(job.id, lambda job: transitions.failed(job, error, store.now_us()))
        if failed.record.state is JobState.FAILED:
            self._stats.end(job.record.model, JobState.FAILED)
            await store.retain(failed)
        return failed


def _prepare(request: Request, job: StoredJob) -> None:
    """All attempts of a job, whoever makes them, share one execution and its answer; a retry does not."""
    request.idempotency = sha256(f"job {job.id} {job.round}".encode()).hexdigest()
    request.claim, request.claim_bytes, request.attempt, request.window = "", 0, 0, 0


async def _encoded(frame: ResponseFrame) -> bytes:
    if sum([len(tensor.data) for tensor in frame.responses[0].outputs]) > _OFF_LOOP_BYTES:
        return await asyncio.to_thread(encode, frame)
    return encode(frame)
