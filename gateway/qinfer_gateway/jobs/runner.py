"""Runs the jobs of a namespace, together with the runners of all other gateways.

Jobs come from queues of the broker, each with a lease that this process renews while it is alive. Where it
dies, they go to another gateway when the lease is over.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter

from qinfer.bus import Watcher
from qinfer.errors import QInferError
from qinfer.jobs import JobStore
from qinfer.jobs.lanes import BEAT, JOB_QUEUE, LaneNote, decode_note, lane_number
from qinfer.lifecycle import cancelled
from qinfer_gateway.jobs.attempt import Attempts
from qinfer_gateway.jobs.lane import ModelJobs, Shared
from qinfer_gateway.jobs.stats import JobStats
from qinfer_gateway.jobs.timers import Timers

logger = logging.getLogger(__name__)

_COUNT_BEATS = 3  # between two looks at how many jobs wait
_RETRY = 1.0


class JobRunner:
    """The jobs that this gateway works on.

    Args:
        store: the jobs.
        attempts: runs them.
        shared: what the lanes of all models share.
        stats: told of them.
    """

    def __init__(self, store: JobStore, attempts: Attempts, shared: Shared, stats: JobStats) -> None:
        self._store = store
        self._attempts = attempts
        self._shared = shared
        self._stats = stats
        self._timers = Timers(store, stats)
        self._models: dict[tuple[str, str], ModelJobs] = {}
        self._notes: set[tuple[str, str, int]] = set()
        self._new: asyncio.Queue[LaneNote] = asyncio.Queue(65536)
        self._watchers: list[Watcher] = []
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Begin to work.

        Raises:
            BusUnavailable: the broker does not answer.
        """
        await self._store.declare()
        await self._timers.start()
        if not self._watchers:
            self._watchers.append(await self._store.bus.on_cancel(JOB_QUEUE, self._cancelled))
            self._watchers.append(await self._store.table.watch("lane.*", self._noted))
        if not self._tasks:
            self._tasks = [
                asyncio.create_task(self._beat(), name="job leases"),
                asyncio.create_task(self._open(), name="job lanes"),
                asyncio.create_task(self._look(), name="waiting jobs"),
            ]

    async def close(self, timeout: float) -> None:
        """Take no more jobs, and give back those that have not ended after `timeout` seconds. Idempotent."""
        await asyncio.gather(*(watcher.close() for watcher in self._watchers))
        self._watchers.clear()
        tasks, self._tasks = self._tasks, []
        if not tasks:
            return
        beat, *others = tasks
        await cancelled(*others)
        await asyncio.gather(self._timers.close(), *(jobs.close(timeout) for jobs in self._models.values()))
        await cancelled(beat)
        self._models.clear()

    def _noted(self, _key: str, value: bytes | None) -> None:
        note = decode_note(value) if value is not None else None
        if note is None or (known := (note.model, note.version, note.lane)) in self._notes:
            return
        if self._new.full():
            logger.warning("there are more lanes of jobs than are looked at here")
            return
        self._notes.add(known)
        self._new.put_nowait(note)

    async def _open(self) -> None:
        """Pull from lanes as they are heard of."""
        while True:
            note = await self._new.get()
            key = (note.model, note.version)
            jobs = self._models.get(key)
            if jobs is None:
                jobs = self._models[key] = ModelJobs(note.model, note.version, self._shared)
            while True:
                try:
                    await jobs.add(note.lane)
                    break
                except QInferError as error:
                    logger.warning("jobs of model %r wait: %s", note.model, error)
                    await asyncio.sleep(_RETRY)

    def _cancelled(self, notice: bytes) -> None:
        job_id = notice.decode("ascii", "replace")
        if not self._attempts.cancel(job_id):
            for jobs in self._models.values():
                jobs.drop(job_id)

    async def _beat(self) -> None:
        """Renew the leases. Waits for nothing else: they would be over."""
        while True:
            await asyncio.sleep(BEAT)
            for jobs in self._models.values():
                jobs.alive()

    async def _look(self) -> None:
        """Look now and then how many jobs wait."""
        while True:
            await asyncio.sleep(_COUNT_BEATS * BEAT)
            await self._count()

    async def _count(self) -> None:
        waiting: Counter[str] = Counter()
        for (model, version), jobs in list(self._models.items()):
            for lane in jobs.lanes:
                try:
                    backlog = await self._store.bus.backlog(JOB_QUEUE, lane_number(model, version, lane))
                except QInferError:
                    return  # the next look may see more
                waiting[model] += backlog.waiting
        self._stats.waiting = dict(waiting)
