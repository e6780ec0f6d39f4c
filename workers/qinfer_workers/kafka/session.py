"""One membership of the consumer group: from joining to leaving, or to the first trouble.

    getmany ──▶ group ──▶ stages (several groups at a time) ──▶ lane of each partition ──▶ sink

A session that fails throws away all it holds. What it had not committed is read again by the next one, or by
whoever gets the partitions.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import CommitFailedError, IllegalStateError

from qinfer.lifecycle import cancelled
from qinfer_workers.kafka.clients import BATCH_BYTES, max_poll_interval, new_admin, new_consumer, new_producer
from qinfer_workers.kafka.contract import Limits, Pipeline
from qinfer_workers.kafka.group import Group, Part
from qinfer_workers.kafka.lane import Lane
from qinfer_workers.kafka.leftovers import Leftovers
from qinfer_workers.kafka.progress import committed
from qinfer_workers.kafka.sinks import PlainSink, Sink, TransactionalSink
from qinfer_workers.kafka.stages import Stages
from qinfer_workers.kafka.stats import PipelineStats, Progress
from qinfer_workers.kafka.topics import Destination

logger = logging.getLogger(__name__)

_GROUPS = 4  # scored at the same time: one decoded, one or two computed, one encoded
_IDLE_POLL = 0.5  # seconds a poll without anything in hand waits
_NOBODY = TopicPartition("", -1)
_POLL_SHARE = 10  # polls within the longest interval that is allowed


class Session:
    """Reads, has scored, writes, commits.

    Args:
        pipeline: what.
        output, dead: the topics that are written.
        stages: decodes, scores and encodes.
        stats: counters.
        leftovers: closes clients that take longer than they may, after this session has ended.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        output: Destination,
        dead: Destination | None,
        stages: Stages,
        stats: PipelineStats,
        *,
        leftovers: Leftovers,
    ) -> None:
        self._pipeline = pipeline
        self._output = output
        self._dead = dead
        self._stages = stages
        self._stats = stats
        self._leftovers = leftovers
        self._limits = pipeline.limits
        self._exactly_once = pipeline.delivery == "exactly-once"
        self._consumer: AIOKafkaConsumer = new_consumer(pipeline)
        self._admin = new_admin(pipeline.client)
        self._producers: dict[TopicPartition, AIOKafkaProducer] = {}
        self._shared: AIOKafkaProducer | None = None
        self._lanes: dict[TopicPartition, Lane] = {}
        self._groups: set[asyncio.Task[None]] = set()
        self._assigned = asyncio.Event()
        self._room = asyncio.Event()
        self._failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._commits = asyncio.Lock()
        self._uncommitted: dict[TopicPartition, int] = {}
        self.joined = False
        """Whether it has ever been given partitions, or been told that there are none for it."""
        self.progressed = False
        """Whether it has ever committed something."""

    async def run(self, stopping: asyncio.Event) -> None:
        """Work until `stopping`, then finish what is in flight and leave the group.

        Raises:
            KafkaError: the session cannot go on; another one may.
            QInferError: likewise, or for good.
        """
        self._stats.progress = self._progress
        tasks: list[asyncio.Future[Any]] = []
        try:
            if not self._exactly_once:
                self._shared = await self._producer("")
            await self._admin.start()
            await self._consumer.start()
            self._consumer.subscribe(list(self._pipeline.topics.sources), listener=_Listener(self))
            reading = asyncio.create_task(self._read(stopping), name="kafka read")
            tasks = [reading, asyncio.create_task(self._stay(), name="kafka stay")]
            await asyncio.wait({*tasks, self._failure}, return_when=asyncio.FIRST_COMPLETED)
            for done in (self._failure, *tasks):
                if done.done():
                    done.result()
            await self._drain(self._limits.drain_timeout)
        finally:
            await cancelled(*tasks)
            await self._close()

    # Reading

    async def _read(self, stopping: asyncio.Event) -> None:
        """Form groups until `stopping`, of partitions that have room."""
        window = self._pipeline.window
        most = self._limits.max_in_flight_bytes // _GROUPS
        loop = asyncio.get_running_loop()
        stop = asyncio.ensure_future(stopping.wait())
        try:
            while not stopping.is_set():
                group = Group()
                parts: list[tuple[Lane, Part]] = []
                closes = 0.0
                while len(group.records) < window.max_rows and not stopping.is_set():
                    wait = closes - loop.time() if parts else _IDLE_POLL
                    if wait <= 0:
                        break
                    got = await self._poll(stop, wait, window.max_rows - len(group.records))
                    if got and not parts:
                        closes = loop.time() + window.max_delay_ms / 1000
                    self._take(group, parts, got)
                    if parts and (not got or sum([part.size for _, part in parts]) >= most):
                        break
                if parts:
                    await self._dispatch(stop, group, parts)
        finally:
            await cancelled(stop)

    async def _poll(
        self, stop: asyncio.Future[Any], wait: float, count: int
    ) -> Mapping[TopicPartition, list[Any]]:
        """Up to `count` records of the partitions that have room for them."""
        if not self._assigned.is_set():
            await self._either(stop, self._assigned, _IDLE_POLL)
            return await self._ask(stop, [_NOBODY], 0.0, 1)  # trouble with joining is told here only
        rows, size = self._share()
        open_ones = {
            source: lane
            for source, lane in self._lanes.items()
            if lane.in_flight < rows and lane.in_flight_bytes < size
        }
        if not open_ones:
            self._room.clear()
            await self._either(stop, self._room, wait)
            return {}
        got = dict(await self._ask(stop, open_ones, wait, count))
        for source in [source for source in got if self._lanes.get(source) is not open_ones[source]]:
            # The poll has outlasted a rebalance. Nobody knows whether this was read before the place where
            # the new lane begins, or from there on: read from there, since it has not had anything yet.
            del got[source]
            if (lane := self._lanes.get(source)) is not None:
                with suppress(IllegalStateError):  # it is being taken away again
                    self._consumer.seek(source, lane.committed)
        return got

    async def _ask(
        self, stop: asyncio.Future[Any], sources: Collection[TopicPartition], wait: float, count: int
    ) -> Mapping[TopicPartition, list[Any]]:
        """Ask the consumer, which waits for the end of a rebalance whatever its timeout, or the end."""
        polling: asyncio.Task[Mapping[TopicPartition, list[Any]]] = asyncio.create_task(
            self._consumer.getmany(*sources, timeout_ms=math.ceil(wait * 1000), max_records=count)
        )
        try:
            await asyncio.wait({polling, stop}, return_when=asyncio.FIRST_COMPLETED)
            return polling.result() if polling.done() else {}
        finally:
            await cancelled(polling)

    def _share(self) -> tuple[int, int]:
        """Records, and bytes of them, that each partition may have in flight."""
        limits, partitions = self._limits, max(1, len(self._lanes))
        return max(1, limits.max_in_flight // partitions), max(1, limits.max_in_flight_bytes // partitions)

    def _take(
        self, group: Group, parts: list[tuple[Lane, Part]], got: Mapping[TopicPartition, list[Any]]
    ) -> None:
        for source, records in got.items():
            lane = self._lanes.get(source)
            if lane is None or not records:  # it is being assigned anew: its lane will begin where it has to
                continue
            start = len(group.records)
            group.records += records
            size = sum([len(record.value) for record in records if record.value is not None])
            parts.append((lane, Part(group, start, len(group.records), size)))

    async def _dispatch(
        self, stop: asyncio.Future[Any], group: Group, parts: Iterable[tuple[Lane, Part]]
    ) -> None:
        """Have a group scored, once there is room for it; its lanes wait for the outcomes in order."""
        while len(self._groups) >= _GROUPS and not stop.done():
            await asyncio.wait({stop, *self._groups}, return_when=asyncio.FIRST_COMPLETED)
        wanted = [(lane, part) for lane, part in parts if self._lanes.get(lane.source) is lane]
        if not wanted or len(self._groups) >= _GROUPS:  # its partitions have been taken away, or we stop
            return
        for lane, part in wanted:
            lane.add(part)
        self._stats.read += len(group.records)
        self._stats.groups.observe(len(group.records))
        task = asyncio.create_task(self._stages.run(group), name="kafka group")
        self._groups.add(task)
        task.add_done_callback(self._scored)

    def _scored(self, task: asyncio.Task[None]) -> None:
        self._groups.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fail(error)

    async def _stay(self) -> None:
        """Poll for nothing now and then, so that a slow model does not look like a member that hangs."""
        pause = max_poll_interval(self._pipeline.client) / _POLL_SHARE
        while True:
            await asyncio.sleep(pause)
            await self._consumer.getmany(_NOBODY, timeout_ms=0)

    @staticmethod
    async def _either(stop: asyncio.Future[Any], event: asyncio.Event, timeout: float) -> None:
        """Wait for an event, or the end."""
        waiting = asyncio.ensure_future(event.wait())
        try:
            await asyncio.wait({stop, waiting}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await cancelled(waiting)

    # Partitions come and go

    async def revoked(self) -> None:
        """Partitions are taken away: finish what is in flight, as far as it goes in time."""
        self._assigned.clear()
        await self._drain(self._limits.drain_timeout)

    async def assigned(self, sources: Collection[TopicPartition]) -> None:
        """Partitions are given.

        A producer is made first: with the partition's transactional id it ends whatever a former owner had
        begun, and locks that one out. Only then is it known how far that one got.
        """
        self._stats.rebalances += 1
        gone = [source for source in self._producers if source not in sources]
        await asyncio.gather(*(self._leftovers.close(self._producers.pop(source).stop()) for source in gone))
        # Committed before the partition's share is used up, so that reading goes on meanwhile.
        share = self._limits.max_in_flight // max(1, len(sources))
        limits = replace(self._limits, commit_rows=max(1, min(self._limits.commit_rows, share // 2)))
        lanes = await asyncio.gather(*(self._lane(source, limits) for source in sources))
        logger.info(
            "group %s: has %s",
            self._pipeline.group,
            ", ".join(f"{lane.topic}/{lane.partition}" for lane in sorted(lanes)) or "no partitions",
        )
        self.joined = True
        self._assigned.set()

    async def _lane(self, source: TopicPartition, limits: Limits) -> TopicPartition:
        sink = await self._sink(source)
        position = await committed(self._admin, self._pipeline.group, source)
        if position is None:
            find = (
                self._consumer.beginning_offsets
                if self._pipeline.start == "earliest"
                else self._consumer.end_offsets
            )
            position = (await find([source]))[source]
            if self._pipeline.start == "latest":
                # At once: what comes while nobody has the partition lies behind the end, not before it.
                await self._commit(source, position)
        # No await from here to the lane: what was read before is thrown away, what is read after is its own.
        self._consumer.seek(source, position)
        self._lanes[source] = Lane(
            source, position, sink, limits, on_progress=self._on_progress, on_failure=self._fail
        )
        return source

    async def _sink(self, source: TopicPartition) -> Sink:
        group = self._pipeline.group
        if not self._exactly_once:
            assert self._shared is not None
            return PlainSink(
                source,
                self._shared,
                self._output,
                self._dead,
                group=group,
                commit=self._commit,
                stats=self._stats,
            )
        producer = self._producers.get(source)
        if producer is None:
            # No topic has a colon in its name: no two pipelines come to the same id.
            producer = await self._producer(f"{group}:{source.topic}:{source.partition}")
            self._producers[source] = producer
        return TransactionalSink(source, producer, self._output, self._dead, group=group, stats=self._stats)

    async def _producer(self, transactional_id: str) -> AIOKafkaProducer:
        limits = [BATCH_BYTES, self._output.max_bytes]
        if self._dead is not None:
            limits.append(self._dead.max_bytes)
        producer = new_producer(self._pipeline, max_batch_size=min(limits), transactional_id=transactional_id)
        try:
            await producer.start()
        except BaseException:
            await self._leftovers.close(producer.stop())
            raise
        return producer

    async def _commit(self, source: TopicPartition, offset: int) -> None:
        """Commit a partition's progress, together with that of all others that wait for their turn."""
        self._uncommitted[source] = offset
        async with self._commits:
            if source not in self._uncommitted:
                return
            offsets, self._uncommitted = self._uncommitted, {}
            try:
                await self._consumer.commit(offsets)
            except (CommitFailedError, IllegalStateError) as error:
                # It belongs to somebody else now, who reads it again from the last commit.
                logger.warning("group %s: partitions are not ours any more: %s", self._pipeline.group, error)

    # The end

    async def _drain(self, timeout: float) -> None:
        lanes, self._lanes = self._lanes, {}
        done = await asyncio.gather(*(lane.drain(timeout) for lane in lanes.values()))
        unusable: list[AIOKafkaProducer] = []
        for lane, drained in zip(lanes.values(), done, strict=True):
            if not drained:
                logger.warning(
                    "%s/%d: %d records are left to whoever has it next",
                    lane.source.topic,
                    lane.source.partition,
                    lane.in_flight,
                )
                # In the middle of a transaction, perhaps: not to be used again.
                producer = self._producers.pop(lane.source, None)
                if producer is not None:
                    unusable.append(producer)
        await asyncio.gather(*(self._leftovers.close(producer.stop()) for producer in unusable))

    async def _close(self) -> None:
        await asyncio.gather(*(lane.close() for lane in self._lanes.values()))
        await cancelled(*self._groups)
        self._stats.progress = dict
        await self._leftovers.close(self._consumer.stop())  # leaves the group at once
        producers = [*self._producers.values(), *([self._shared] if self._shared is not None else [])]
        await asyncio.gather(*(self._leftovers.close(producer.stop()) for producer in producers))
        await self._leftovers.close(self._admin.close())

    def fail(self, error: BaseException) -> None:
        """End the session."""
        self._fail(error)

    def _fail(self, error: BaseException) -> None:
        if not self._failure.done():
            self._failure.set_exception(error)

    def _on_progress(self) -> None:
        self.progressed = True
        self._room.set()

    def _progress(self) -> Mapping[tuple[str, int], Progress]:
        progress = {}
        for source, lane in tuple(self._lanes.items()):
            end = None
            with suppress(IllegalStateError, AssertionError):  # it is being taken away
                end = self._consumer.highwater(source)
            progress[source.topic, source.partition] = Progress(lane.committed, end, lane.in_flight)
        return progress


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]
    """Tells the session about its partitions; aiokafka would only log what is raised here."""

    def __init__(self, session: Session) -> None:
        self._session = session

    async def on_partitions_revoked(self, revoked: Collection[TopicPartition]) -> None:
        del revoked  # eager: all of them
        try:
            await self._session.revoked()
        except Exception as error:  # noqa: BLE001 (ends the session)
            self._session.fail(error)

    async def on_partitions_assigned(self, assigned: Collection[TopicPartition]) -> None:
        try:
            await self._session.assigned(assigned)
        except Exception as error:  # noqa: BLE001 (ends the session)
            self._session.fail(error)
