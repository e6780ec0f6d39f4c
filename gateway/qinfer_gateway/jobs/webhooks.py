"""Tells receivers of the ends of jobs, at least once each.

What is to be told lies in a queue of its own, and how far it is in the job's record. A receiver that fails is
tried again for a day, with growing pauses; one that hangs, or whose network does, holds up nobody else.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Sequence

from qinfer import __version__
from qinfer.bus import Consumer, Delivery
from qinfer.errors import JobNotFound, QInferError, Unsupported
from qinfer.jobs import JobState, JobStore, transitions
from qinfer.jobs.lanes import BEAT, WEBHOOK_QUEUE
from qinfer.jobs.stored import StoredJob
from qinfer.lifecycle import cancelled
from qinfer_gateway.http.jsondata import encode_json
from qinfer_gateway.jobs.describe import job_object
from qinfer_gateway.jobs.guard import Guard
from qinfer_gateway.jobs.hosts import Hosts
from qinfer_gateway.jobs.posting import Outcome, Poster
from qinfer_gateway.jobs.results import small_result
from qinfer_gateway.jobs.signing import signed
from qinfer_gateway.jobs.stats import JobStats

logger = logging.getLogger(__name__)

PAUSES = (5.0, 30.0, 120.0, 600.0, 1800.0, 3600.0, 7200.0, 14400.0, 21600.0, 28800.0)
"""Seconds between two tries of a webhook; after the last of them it is tried once more, and then given up."""

_AT_ONCE = 64
_JITTER = 0.1  # of a pause
_TURN = (0.5, 3.0)  # seconds after which one is looked at again whose receiver is busy
_RETRY = 5.0
_HEADERS = {"content-type": "application/json", "user-agent": f"qinfer/{__version__}"}


class Webhooks:
    """Tells of the ends of jobs.

    Args:
        store: the jobs.
        secrets: that webhooks are signed with; without one there are none.
        guard: decides where they may go.
        poster: sends them.
        stats: told of them.
        pauses: see `PAUSES`.
    """

    def __init__(
        self,
        store: JobStore,
        *,
        secrets: Sequence[bytes],
        guard: Guard,
        poster: Poster,
        stats: JobStats,
        pauses: Sequence[float] = PAUSES,
    ) -> None:
        self._store = store
        self.secrets = secrets
        self._guard = guard
        self._poster = poster
        self._stats = stats
        self._pauses = pauses
        self._hosts = Hosts()
        self._consumer: Consumer | None = None
        self._tasks: dict[asyncio.Task[None], Delivery] = {}
        self._beating: asyncio.Task[None] | None = None

    def check(self, url: str) -> None:
        """Refuse the webhook of a job that could not be told; "" is none.

        Raises:
            Unsupported: this gateway has nothing to sign it with.
            Forbidden: it may not go there.
        """
        if not url:
            return
        if not self.secrets:
            raise Unsupported("webhooks are signed, and this gateway has no secret (--webhook-secret-file)")
        self._guard.check_url(url)

    async def start(self) -> None:
        """Begin. A gateway without a secret leaves webhooks to others.

        Raises:
            BusUnavailable: the broker does not answer.
        """
        if self._consumer is None and self.secrets:
            await self._poster.start()
            self._consumer = await self._store.bus.consume(WEBHOOK_QUEUE, "", self._take)
            self._consumer.grant(_AT_ONCE)
            self._beating = asyncio.create_task(self._beat(), name="webhook leases")

    async def close(self) -> None:
        """Stop. What is under way is left to others, and may come twice. Idempotent."""
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            await consumer.close()
        beating, self._beating = self._beating, None
        await cancelled(*self._tasks, *([beating] if beating is not None else []))
        await self._poster.close()

    async def _beat(self) -> None:
        """Tell the broker that what is under way here is not lost."""
        while True:
            await asyncio.sleep(BEAT)
            for delivery in self._tasks.values():
                delivery.in_progress()

    def _take(self, delivery: Delivery) -> None:
        task = asyncio.create_task(self._handle(delivery))
        self._tasks[task] = delivery
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        del self._tasks[task]
        if self._consumer is not None:
            self._consumer.grant(1)
        if not task.cancelled() and task.exception() is not None:
            logger.error("a webhook failed in a way that is not foreseen", exc_info=task.exception())

    async def _handle(self, delivery: Delivery) -> None:
        again: float | None = _RETRY
        try:
            job_id, _, host = delivery.payload.decode("ascii", "replace").partition(" ")
            again = await self._in_turn(host, lambda: self._tell(job_id))
        except asyncio.CancelledError:
            again = 0.0
            raise
        except QInferError as error:
            logger.info("a webhook waits: %s", error)
        finally:
            if again is None:
                delivery.ack()
            else:
                delivery.nak(again)

    async def _in_turn(
        self, host: str, tell: Callable[[], Awaitable[tuple[float | None, bool]]]
    ) -> float | None:
        """Tell when it is this webhook's turn; seconds until the next try, None when there is none."""
        pause = self._hosts.pause(host)
        if pause:
            return pause
        if not await self._hosts.enter(host):
            return random.uniform(*_TURN)
        well = True
        try:
            again, well = await tell()
            return again
        finally:
            self._hosts.leave(host, well=well)

    async def _tell(self, job_id: str) -> tuple[float | None, bool]:
        """Try once; seconds until the next try, None when there is none, and whether the receiver is well."""
        try:
            job, _ = await self._store.read(job_id)
            if not transitions.told_pending(job) or job.webhook is None:
                return None, True
            wait = (job.webhook.next_us - self._store.now_us()) / 1e6
            if wait > 0:
                return wait, True
            outcome = await self._send(job)
            return await self._note(job, outcome), outcome.well
        except JobNotFound:  # forgotten: who did that knows of its end
            return None, True

    async def _send(self, job: StoredJob) -> Outcome:
        body = await self._body(job)
        seconds = self._store.now_us() // 1_000_000
        headers = signed(self.secrets, f"{job.id}.{job.round}", seconds, body)
        return await self._poster.post(job.record.options.webhook, {**_HEADERS, **headers}, body)

    async def _body(self, job: StoredJob) -> bytes:
        told = encode_json(job_object(job.record))
        if job.record.state is JobState.SUCCEEDED and job.result is not None:
            result = await small_result(self._store, job)
            if result is not None:
                return b'%b,"result":%b}' % (told[:-1], result)
        return told

    async def _note(self, job: StoredJob, outcome: Outcome) -> float | None:
        """Write down what came of a try; seconds until the next."""
        tried = job.webhook.attempts if job.webhook is not None else 0
        if not outcome.problem:
            self._stats.webhooks["delivered"] += 1
            await self._store.change(job.id, lambda job: transitions.webhook_ended(job, ""))
            return None
        if outcome.final or tried >= len(self._pauses) or self._over(job):
            self._stats.webhooks["refused" if outcome.final else "given_up"] += 1
            logger.warning("the webhook of job %s is given up: %s", job.id, outcome.problem)
            await self._store.change(job.id, lambda job: transitions.webhook_ended(job, outcome.problem))
            return None
        self._stats.webhooks["failed"] += 1
        pause = max(self._pauses[tried], outcome.retry_after) * random.uniform(1.0, 1.0 + _JITTER)
        next_us = self._store.now_us() + int(pause * 1e6)
        logger.info("the webhook of job %s failed: %s", job.id, outcome.problem)
        await self._store.change(job.id, lambda job: transitions.webhook_tried(job, outcome.problem, next_us))
        return pause

    def _over(self, job: StoredJob) -> bool:
        first = job.webhook.first_us if job.webhook is not None else 0
        return self._store.now_us() > first + transitions.WEBHOOK_WINDOW * 1e6
