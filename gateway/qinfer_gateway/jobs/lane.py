"""The jobs of one model, or of one version of it: which of them is begun next, and when.

A gateway holds a few jobs of each lane. They are begun in the order of their lanes, and only so many that at
most two batches of them are with the model, so that no synchronous request waits behind more; while others'
requests wait for the model, only one at a time. Spare jobs are begun when nobody else wants anything of it.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeAlias

from qinfer.bus import Bus, Consumer, Delivery
from qinfer.errors import InternalError, QInferError
from qinfer.jobs.lanes import JOB_QUEUE, Lane, lane_number, read_entry
from qinfer.lifecycle import cancelled
from qinfer_gateway.admission import Flight
from qinfer_gateway.catalog import Catalog
from qinfer_gateway.jobs.attempt import Again

logger = logging.getLogger(__name__)

_BATCHES = 2  # of jobs at most with the model
_HELD = 8  # jobs of a lane that wait here, or are on their way
_LOOK = 0.1  # seconds between two looks at what others want of the model
_LONG_LOOK = 5.0
_RETRY = 5.0  # seconds before another gateway, or this one, tries after something went wrong here
_NO_FLIGHT = Flight()

WorkOn = Callable[[str, Callable[[], None]], Awaitable[Again | None]]


@dataclass(slots=True)
class Share:
    """What jobs have with one model: how many of them, and their rows."""

    jobs: int = 0
    rows: int = 0


Shares: TypeAlias = defaultdict[str, Share]
"""By model."""


def new_shares() -> Shares:
    """What jobs have with the models before there are any."""
    return defaultdict(Share)


@dataclass(frozen=True, slots=True)
class Held:
    """A job that waits here; they are begun in this order."""

    order: tuple[int, int]
    job_id: str
    rows: int
    delivery: Delivery

    @property
    def lane(self) -> int:
        return self.order[0]

    def __lt__(self, other: Held) -> bool:
        return self.order < other.order


@dataclass(frozen=True, slots=True)
class Shared:
    """What the lanes of all models share.

    Attributes:
        bus: where jobs come from.
        catalog: knows the models.
        flights: what is in flight by model; only read.
        work_on: takes a job as far as it goes.
        limit: jobs of one model that are worked on at once.
        shares: what jobs have with each model.
    """

    bus: Bus
    catalog: Catalog
    flights: Callable[[], dict[str, Flight]]
    work_on: WorkOn
    limit: int
    shares: Shares


class ModelJobs:
    """The lanes of one model.

    Args:
        model, version: whose; version "" for the newest.
        shared: see there.
    """

    def __init__(self, model: str, version: str, shared: Shared) -> None:
        self.model = model
        self.version = version
        self._shared = shared
        self._share = shared.shares[model]
        self._consumers: dict[int, Consumer] = {}
        self._held: list[Held] = []
        self._serial = 0
        self._tasks: dict[asyncio.Task[None], Delivery] = {}
        self._changed = asyncio.Event()
        self._pump: asyncio.Task[None] | None = None
        self._stopping = False

    @property
    def lanes(self) -> list[int]:
        """Those that are pulled from."""
        return list(self._consumers)

    async def add(self, lane: int) -> None:
        """Pull from a lane, too.

        Raises:
            BusUnavailable: the broker does not answer.
        """
        if lane in self._consumers or self._stopping:
            return
        number = lane_number(self.model, self.version, lane)
        consumer = await self._shared.bus.consume(JOB_QUEUE, number, lambda each: self._take(lane, each))
        self._consumers[lane] = consumer
        if self._pump is None:
            self._pump = asyncio.create_task(self._run(), name=f"jobs of {self.model}")
        self._changed.set()

    def alive(self) -> None:
        """Tell the broker that what is held here is not lost."""
        for held in self._held:
            held.delivery.in_progress()
        for delivery in self._tasks.values():
            delivery.in_progress()

    def look(self) -> None:
        """Something may have changed that decides what is begun."""
        self._changed.set()

    def drop(self, job_id: str) -> None:
        """A job was cancelled: where it waits here, it is done with at once."""
        for held in self._held:
            if held.job_id == job_id:
                self._held.remove(held)
                heapq.heapify(self._held)
                self._begin(held, Share())
                return

    async def close(self, timeout: float) -> None:
        """Pull no more, give back what waits, and what has not ended after `timeout` seconds."""
        self._stopping = True
        if self._pump is not None:
            await cancelled(self._pump)
        await asyncio.gather(*(consumer.close() for consumer in self._consumers.values()))
        for held in self._held:
            held.delivery.nak()
        self._held.clear()
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=timeout)
            await cancelled(*late)

    def _take(self, lane: int, delivery: Delivery) -> None:
        if self._stopping:
            delivery.nak()
            return
        self._serial += 1
        heapq.heappush(self._held, Held((lane, self._serial), *read_entry(delivery.payload), delivery))
        self._changed.set()

    async def _run(self) -> None:
        while True:
            self._changed.clear()
            try:
                await self._begin_some()
                self._pull()
            except Exception:
                logger.exception("which job of %s is next is looked at once more", self.model)
            try:
                async with asyncio.timeout(_LOOK if self._held else _LONG_LOOK):
                    await self._changed.wait()
            except TimeoutError:
                continue

    async def _begin_some(self) -> None:
        while self._held:
            job = self._held[0]
            if not await self._may_begin(job):
                return
            if self._held and self._held[0] is job:  # not dropped, or overtaken, meanwhile
                self._begin(heapq.heappop(self._held), self._share)

    def _pull(self) -> None:
        """Have a few of each lane here; of the spare one, one."""
        held = dict.fromkeys(self._consumers, 0)
        for each in self._held:
            held[each.lane] += 1
        for lane, consumer in self._consumers.items():
            wanted = 1 if lane == Lane.SPARE else min(_HELD, self._shared.limit)
            consumer.grant(wanted - held[lane] - consumer.credit)

    async def _may_begin(self, job: Held) -> bool:
        try:
            target = self._shared.catalog.find(self.model, self.version)
        except QInferError:  # nobody serves it at the moment
            return False
        if len(self._tasks) >= self._shared.limit:
            return False
        share, batch = self._share, target.max_rows
        flight = self._shared.flights().get(self.model, _NO_FLIGHT)
        waiting = flight.known_backlog - share.jobs
        if job.lane == Lane.SPARE:
            if flight.count > share.jobs or waiting > 0:
                return False
            return await self._unused() if not share.jobs else share.rows + job.rows <= batch
        if not share.jobs:
            return True
        return waiting <= 0 and share.rows + job.rows <= _BATCHES * batch

    async def _unused(self) -> bool:
        """Whether nobody, of other gateways either, wants anything of the model."""
        try:
            return not await self._shared.bus.queued(self.model, self.version)
        except QInferError:
            return False

    def _begin(self, job: Held, share: Share) -> None:
        share.jobs += 1
        share.rows += job.rows
        task = asyncio.create_task(self._work_on(job, share))
        self._tasks[task] = job.delivery
        task.add_done_callback(self._finished)

    async def _work_on(self, job: Held, share: Share) -> None:
        with_model = True

        def answered() -> None:
            nonlocal with_model
            if with_model:
                with_model = False
                share.jobs -= 1
                share.rows -= job.rows
                self._changed.set()

        again: Again | None = Again(_RETRY)
        try:
            again = await self._shared.work_on(job.job_id, answered)
        except asyncio.CancelledError:
            again = Again()
            raise
        except InternalError as error:
            logger.error("job %s: %s", job.job_id[:40], error)
        except QInferError as error:
            logger.info("job %s waits: %s", job.job_id[:40], error)
        finally:
            answered()
            if again is None:
                job.delivery.ack()
            else:
                job.delivery.nak(again.delay)

    def _finished(self, task: asyncio.Task[None]) -> None:
        del self._tasks[task]
        self._changed.set()
        if not task.cancelled() and task.exception() is not None:
            logger.error("a job failed in a way that is not foreseen", exc_info=task.exception())
