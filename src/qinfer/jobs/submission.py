"""From a request to a job that is stored and queued."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from hashlib import sha256
from time import monotonic
from typing import TYPE_CHECKING

import msgspec

from qinfer.errors import BusUnavailable, InternalError, JobNotFound, KeyReused, QInferError, QueueFull
from qinfer.jobs.ids import new_id
from qinfer.jobs.lanes import JOB_QUEUE, TIMER_QUEUE, LaneNote, encode_note, lane_number, lane_of, queue_entry
from qinfer.jobs.options import check_options
from qinfer.jobs.positions import Positions
from qinfer.jobs.record import JobOptions, JobRecord, JobState
from qinfer.jobs.stored import DAY, UNENDED_LIFETIME, DataRef, Form, InferWork, StoredJob, Work, encode
from qinfer.jobs.transitions import PENDING

if TYPE_CHECKING:
    from qinfer.jobs.store import JobStore

logger = logging.getLogger(__name__)

_OFF_LOOP_BYTES = 256 * 1024
_ATTEMPTS = 10  # of those who submit under the same key at the same time
_NOTE_LIFETIME = 2 * UNENDED_LIFETIME
_KEY_LIFETIME = 2 * UNENDED_LIFETIME
_sorted = msgspec.msgpack.Encoder(order="sorted").encode


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """A job that somebody wants.

    Attributes:
        model, version: what it asks; version "" for the newest.
        work: what it is to do. The request's correlation number, deadline and idempotency are not looked at.
        owner: who alone may see it; "" where nobody is told apart.
        options: how it is run.
        form: how its result is to be told.
        priority: as for requests; 0 for the model's default.
        default_priority: of the model; 0 where it has none, or nobody knows.
        idempotency_key: two submissions of an owner with the same key, for the same model and version, are
            one job; "" for none.
    """

    model: str
    work: Work
    version: str = ""
    owner: str = ""
    options: JobOptions = field(default_factory=JobOptions)
    form: Form = field(default_factory=Form)
    priority: int = 0
    default_priority: int = 0
    idempotency_key: str = ""


class _KeyEntry(msgspec.Struct, frozen=True):
    """What is known of an idempotency key."""

    id: str
    fingerprint: str


_keys = msgspec.msgpack.Decoder(_KeyEntry)


class Submitter:
    """Stores jobs and queues them.

    Args:
        store: where they lie.
        positions: gives them tickets.
    """

    def __init__(self, store: JobStore, positions: Positions) -> None:
        self._store = store
        self._positions = positions
        self._noted: dict[str, float] = {}
        store.bus.on_reconnect(self._noted.clear)

    async def submit(self, submission: Submission) -> StoredJob:
        """See `JobStore.submit`."""
        check_options(submission.options)
        payload = await _encoded(submission.work)
        if submission.idempotency_key:
            return await self._once(submission, payload)
        job_id = new_id(submission.owner, submission.model, self._store.now_us())
        return await self._new(job_id, submission, payload, key="")

    async def enqueue(self, job: StoredJob) -> None:
        """Queue a job that waits; one that is queued already is not queued twice, or not for long.

        Raises:
            BusUnavailable, NoWorker, QueueFull: it is not queued, or nobody knows.
        """
        number = lane_number(job.record.model, job.record.version, job.lane)
        await self._note(number, job)
        message_id = f"{job.id}.{job.round}"
        bus = self._store.bus
        if job.record.options.max_queue_time:
            await bus.enqueue(TIMER_QUEUE, "", job.id.encode(), message_id=message_id)
        try:
            await bus.enqueue(JOB_QUEUE, number, queue_entry(job.id, job.rows), message_id=message_id)
        except QueueFull as error:
            limit = self._store.limits.max_jobs
            raise QueueFull(
                f"{limit} jobs wait or run, as many as may (--max-jobs)", retry_after=10.0
            ) from error

    async def _new(self, job_id: str, submission: Submission, payload: bytes, *, key: str) -> StoredJob:
        store = self._store
        await store.data.admit(len(payload))
        ref = store.data.place(job_id, "in", len(payload))
        job = await self._made(job_id, submission, ref, key)
        await store.data.put(ref, payload, lifetime=UNENDED_LIFETIME)
        if not await store.write(job, 0):  # somebody with the same key was faster
            await store.data.remove(ref)
            job = (await store.read(job_id))[0]
        try:
            await self.enqueue(job)
        except QInferError:
            if not key:
                await self._withdraw(job)
            raise
        return job

    async def _made(self, job_id: str, submission: Submission, request: DataRef, key: str) -> StoredJob:
        options = submission.options
        lane = lane_of(submission.priority, submission.default_priority, spare=options.spare)
        now_us = self._store.now_us()
        record = JobRecord(
            id=job_id,
            state=JobState.QUEUED,
            model=submission.model,
            version=submission.version,
            owner=submission.owner,
            created_us=now_us,
            priority=submission.priority,
            options=options,
            webhook_state=PENDING if options.webhook else "",
        )
        return StoredJob(
            record=record,
            request=request,
            form=submission.form,
            rows=submission.work.rows if isinstance(submission.work, InferWork) else 1,
            lane=lane,
            ticket=await self._positions.ticket(lane_number(submission.model, submission.version, lane)),
            queued_us=now_us,
            key=key,
            keep=options.keep or self._store.limits.keep,
        )

    async def _once(self, submission: Submission, payload: bytes) -> StoredJob:
        """The job of a key: a new one, or the one that was submitted with it before."""
        told = [submission.owner, submission.model, submission.version, submission.idempotency_key]
        name = f"key.{sha256(_sorted(told)).hexdigest()}"
        fingerprint = _fingerprint(submission)
        table = self._store.data.table
        for _ in range(_ATTEMPTS):
            entry = await table.get(name)
            if entry is None:
                job_id = new_id(submission.owner, submission.model, self._store.now_us())
                value = encode(_KeyEntry(job_id, fingerprint))
                if not await table.write(name, value, lifetime=_KEY_LIFETIME, revision=0):
                    continue
                return await self._new(job_id, submission, payload, key=name)
            known = _read_key(entry[0])
            if known.fingerprint != fingerprint:
                raise KeyReused(
                    "this idempotency key is that of another job; expected the same request and options, or "
                    "a new key"
                )
            try:
                job = (await self._store.read(known.id))[0]
            except JobNotFound:  # whoever submitted it died before it was stored, or it ended long ago
                return await self._new(known.id, submission, payload, key=name)
            if job.waits:  # whoever submitted it may have died before it was queued
                await self.enqueue(job)
            return job
        raise BusUnavailable("the job under the idempotency key keeps changing", retry_after=1.0)

    async def _note(self, number: str, job: StoredJob) -> None:
        """Leave a note of a lane, for gateways to see."""
        now = monotonic()
        if now - self._noted.get(number, float("-inf")) < DAY:
            return
        note = encode_note(LaneNote(job.record.model, job.record.version, job.lane))
        await self._store.table.write(f"lane.{number}", note, lifetime=_NOTE_LIFETIME)
        self._noted[number] = now

    async def _withdraw(self, job: StoredJob) -> None:
        """Nobody will hear of this job: where it is queued all the same, nothing is found of it."""
        try:
            await self._store.forget(job.id)
        except QInferError as error:
            logger.info("job %s was not accepted, and is not removed: %s", job.id, error)


async def _encoded(work: Work) -> bytes:
    if (
        isinstance(work, InferWork)
        and sum([len(each.data) for each in work.request.inputs]) > _OFF_LOOP_BYTES
    ):
        return await asyncio.to_thread(encode, work)
    return encode(work)


def _fingerprint(submission: Submission) -> str:
    """A hash of what a submission asks for, 64 hexadecimal digits."""
    options = msgspec.to_builtins(submission.options)
    work = submission.work
    if not isinstance(work, InferWork):
        return sha256(_sorted([work.spec, options])).hexdigest()
    request = work.request
    inputs = [[tensor.name, tensor.datatype, tensor.shape, len(tensor.data)] for tensor in request.inputs]
    asked = [inputs, request.outputs, request.parameters, submission.priority, options]
    digest = sha256(_sorted(asked))
    for tensor in request.inputs:
        digest.update(tensor.data)
    return digest.hexdigest()


def _read_key(data: bytes) -> _KeyEntry:
    try:
        return _keys.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InternalError(f"what is known of the idempotency key cannot be read: {error}") from None
