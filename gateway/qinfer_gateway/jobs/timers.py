"""A job that may wait for a certain time fails when it is over, whether anybody could begin it or not."""

from __future__ import annotations

import asyncio
import logging

from qinfer.bus import Consumer, Delivery
from qinfer.errors import JobNotFound, QInferError
from qinfer.jobs import JobState, JobStore, transitions
from qinfer.jobs.lanes import TIMER_QUEUE
from qinfer.lifecycle import cancelled
from qinfer_gateway.jobs.stats import JobStats

logger = logging.getLogger(__name__)

_AT_ONCE = 32
_LONGEST_NAP = 3600.0
_RETRY = 5.0


class Timers:
    """Ends what waits for too long.

    Args:
        store: the jobs.
        stats: told of them.
    """

    def __init__(self, store: JobStore, stats: JobStats) -> None:
        self._store = store
        self._stats = stats
        self._consumer: Consumer | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Begin.

        Raises:
            BusUnavailable: the broker does not answer.
        """
        if self._consumer is None:
            self._consumer = await self._store.bus.consume(TIMER_QUEUE, "", self._take)
            self._consumer.grant(_AT_ONCE)

    async def close(self) -> None:
        """Stop. What is under way is left to others. Idempotent."""
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            await consumer.close()
        await cancelled(*self._tasks)

    def _take(self, delivery: Delivery) -> None:
        task = asyncio.create_task(self._look(delivery))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _look(self, delivery: Delivery) -> None:
        nap: float | None = 0.0
        try:
            nap = await self._left(delivery.payload.decode("ascii", "replace"))
        except QInferError as error:
            nap = _RETRY
            logger.info("how long a job may wait is looked at later: %s", error)
        finally:
            if nap is None:
                delivery.ack()
            else:
                delivery.nak(nap)
            if self._consumer is not None:
                self._consumer.grant(1)

    async def _left(self, job_id: str) -> float | None:
        """Seconds after which the job is to be looked at again; None for never."""
        store = self._store
        try:
            job = await store.change(job_id, lambda job: transitions.overdue(job, store.now_us()))
        except JobNotFound:
            return None
        if job.waits:
            return min(max(0.0, (job.queue_ends_us() - store.now_us()) / 1e6), _LONGEST_NAP)
        if job.record.state is JobState.FAILED:
            if job.request is not None:
                await store.retain(job)
            self._stats.end(job.record.model, JobState.FAILED)
        await store.announce(job)
        return None
