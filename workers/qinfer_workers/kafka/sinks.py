"""Where the outcomes of a partition go, and how its progress is kept.

Two sinks of one shape. `PlainSink` writes with a producer that all partitions share and commits offsets once
the brokers have confirmed the records: at least once. `TransactionalSink` has a producer of its own for each
source partition and puts records and offsets into one transaction: exactly once. `docs/kafka.md` says why the
transactional id is that of the partition and not of the process.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Protocol

from aiokafka import TopicPartition
from aiokafka.errors import KafkaError

from qinfer.errors import ModelFailed
from qinfer_workers.kafka.contract import BadRecord, Headers, Record
from qinfer_workers.kafka.group import Dead, Dropped, Part
from qinfer_workers.kafka.letters import TIMESTAMP, Letter, letter
from qinfer_workers.kafka.stats import PipelineStats
from qinfer_workers.kafka.topics import Destination

if TYPE_CHECKING:
    from aiokafka import AIOKafkaProducer

logger = logging.getLogger(__name__)

_OVERHEAD = 128  # bytes a batch has beside keys, values and headers; a record has at most 36
_RECORD_OVERHEAD = 36
_SMALL = 64 * 1024  # together with a key below any limit a topic can sensibly have
_ABORT_TIMEOUT = 5.0  # readers wait for the end of a transaction, and brokers abort it themselves in time
_HEADER_OVERHEAD = 10
_CLOCKS_MS = 60_000  # that brokers' clocks may be off


class Sink(Protocol):
    """Takes the outcomes of one source partition, in order."""

    async def write(self, part: Part) -> None:
        """Take outcomes; they may not be written yet."""

    async def flush(self) -> None:
        """Have what was taken sent."""

    async def commit(self, offset: int) -> None:
        """Return when all that was taken is written and the source's progress is `offset`, durably.

        Raises:
            KafkaError: it is not known to be.
        """

    async def abandon(self) -> None:
        """Take back what was not committed, as far as that can be done."""


class Writer:
    """Sends records to one partition in batches.

    Args:
        producer: a started producer.
        destination: the topic.
        partition: of it.
    """

    def __init__(self, producer: AIOKafkaProducer, destination: Destination, partition: int) -> None:
        self._producer = producer
        self._topic = destination.name
        self._partition = partition
        self._age = destination.max_age_ms
        self._lead = destination.max_lead_ms
        self._batch: Any = None
        self._sent: list[asyncio.Future[Any]] = []

    def times(self) -> tuple[int, int]:
        """The first and the last timestamp that the topic certainly takes, milliseconds."""
        now = int(time.time() * 1000)
        return (
            now - self._age + min(_CLOCKS_MS, self._age // 2),
            now + self._lead - min(_CLOCKS_MS, self._lead // 2),
        )

    async def append(self, record: Record | Letter, value: bytes | None, headers: Headers) -> None:
        """Add a record with the key of `record`, and its timestamp where the topic takes it."""
        first, last = self.times()
        if not first <= record.timestamp <= last:
            headers = (*headers, (TIMESTAMP, b"%d" % record.timestamp))
            record = Letter(int(time.time() * 1000), record.key, value, headers)
        if not self.add(record, value, headers):
            await self.flush()
            self.add(record, value, headers)

    def add(self, record: Record | Letter, value: bytes | None, headers: Headers) -> bool:
        """Add a record as `append` does; False if there is no room for it before a flush."""
        if self._batch is None:
            self._batch = self._producer.create_batch()
        added = self._batch.append(
            timestamp=record.timestamp, key=record.key, value=value, headers=list(headers)
        )
        return added is not None

    async def flush(self) -> None:
        """Send what was added."""
        batch, self._batch = self._batch, None
        if batch is not None:
            batch.close()
            sent = await self._producer.send_batch(batch, self._topic, partition=self._partition)
            self._sent.append(sent)

    async def settle(self) -> None:
        """Return when the brokers have confirmed all that was added.

        Raises:
            KafkaError: they have not.
        """
        await self.flush()
        sent, self._sent = self._sent, []
        if sent:
            await asyncio.wait(sent)
            for future in sent:
                future.result()


class _Writers:
    """The two topics of a pipeline, for one source partition."""

    def __init__(
        self,
        producer: AIOKafkaProducer,
        source: TopicPartition,
        output: Destination,
        dead: Destination | None,
        group: str,
        stats: PipelineStats,
    ) -> None:
        self._output = Writer(producer, output, output.partition(source.partition))
        self._dead = Writer(producer, dead, dead.partition(source.partition)) if dead else None
        self._limit = output.max_bytes
        self._dead_limit = dead.max_bytes if dead else 0
        self._group = group
        self._stats = stats

    async def write(self, part: Part) -> None:
        group, add = part.group, self._output.add
        first, last = self._output.times()
        written = 0
        for place in range(part.start, part.end):
            outcome = group.outcomes[place]
            record = group.records[place]
            headers = group.headers.get(place) or record.headers
            # Most records are small and have nothing to them: no call for each that can be saved.
            if (
                type(outcome) is bytes
                and not headers
                and len(outcome) < _SMALL
                and first <= record.timestamp <= last
                and add(record, outcome, ())
            ):
                written += 1
            elif isinstance(outcome, Dead):
                await self._bury(record, outcome)
            elif isinstance(outcome, Dropped):
                self._stats.dropped += 1
            else:
                size = _size(record, outcome or b"", headers)
                if size <= self._limit:
                    await self._output.append(record, outcome, headers)
                    written += 1
                else:
                    await self._bury(record, Dead(_too_large(size, self._limit), 1))
        self._stats.written += written

    async def _bury(self, record: Record, dead: Dead) -> None:
        where = f"{record.topic}/{record.partition} offset {record.offset}"
        logger.warning("record %s cannot be scored: %s: %s", where, dead.bad.reason, dead.bad.message)
        if self._dead is None:
            raise ModelFailed(
                f"record {where} cannot be scored, and the pipeline has no topic for dead letters: "
                f"{dead.bad.reason}: {dead.bad.message}"
            )
        found = letter(record, dead, self._group, self._fits)
        await self._dead.append(found, found.value, found.headers)
        self._stats.buried[dead.bad.reason] = self._stats.buried.get(dead.bad.reason, 0) + 1

    def _fits(self, found: Letter) -> bool:
        return _size(found, found.value or b"", found.headers) <= self._dead_limit

    async def flush(self) -> None:
        await self._output.flush()
        if self._dead is not None:
            await self._dead.flush()

    async def settle(self) -> None:
        await self._output.settle()
        if self._dead is not None:
            await self._dead.settle()


class PlainSink:
    """At least once: offsets are committed after the records are confirmed.

    Args:
        source: the partition that is read.
        producer: shared, idempotent, started.
        output, dead: topics.
        group: consumer group.
        commit: commits the progress of a partition.
        stats: counters.
    """

    def __init__(
        self,
        source: TopicPartition,
        producer: AIOKafkaProducer,
        output: Destination,
        dead: Destination | None,
        *,
        group: str,
        commit: Callable[[TopicPartition, int], Awaitable[None]],
        stats: PipelineStats,
    ) -> None:
        self._source = source
        self._commit = commit
        self._writers = _Writers(producer, source, output, dead, group, stats)

    async def write(self, part: Part) -> None:
        await self._writers.write(part)

    async def flush(self) -> None:
        await self._writers.flush()

    async def commit(self, offset: int) -> None:
        await self._writers.settle()
        await self._commit(self._source, offset)

    async def abandon(self) -> None:
        """Nothing can be taken back; what was sent will be sent again by whoever reads on."""


class TransactionalSink:
    """Exactly once: records and offsets are committed together or not at all.

    Args:
        source: the partition that is read.
        producer: its own, transactional, started.
        output, dead: topics.
        group: consumer group.
        stats: counters.
    """

    def __init__(
        self,
        source: TopicPartition,
        producer: AIOKafkaProducer,
        output: Destination,
        dead: Destination | None,
        *,
        group: str,
        stats: PipelineStats,
    ) -> None:
        self._source = source
        self._producer = producer
        self._group = group
        self._stats = stats
        self._open = False
        self._writers = _Writers(producer, source, output, dead, group, stats)

    async def write(self, part: Part) -> None:
        if not self._open:
            await self._producer.begin_transaction()
            self._open = True
        await self._writers.write(part)

    async def flush(self) -> None:
        await self._writers.flush()

    async def commit(self, offset: int) -> None:
        # Every batch is looked at: the transaction itself does not notice one that was refused.
        await self._writers.settle()
        await self._producer.send_offsets_to_transaction({self._source: offset}, self._group)
        await self._producer.commit_transaction()
        self._open = False
        self._stats.transactions["committed"] += 1

    async def abandon(self) -> None:
        if not self._open:
            return
        self._open = False
        self._stats.transactions["aborted"] += 1
        try:
            async with asyncio.timeout(_ABORT_TIMEOUT):
                await self._producer.abort_transaction()
        except (
            KafkaError,
            AssertionError,
            TimeoutError,
        ) as error:  # aiokafka asserts that its state allows it
            logger.info("transaction of %s is left to the brokers to abort: %r", self._source, error)


def _too_large(size: int, limit: int) -> BadRecord:
    return BadRecord(
        "too_large",
        f"its output makes a record of {size} bytes; expected at most {limit}, the topic's max.message.bytes",
    )


def _size(record: Record | Letter, value: bytes, headers: Headers) -> int:
    """At least the bytes of a batch that holds this record alone, uncompressed."""
    size = _OVERHEAD + _RECORD_OVERHEAD + len(record.key or b"") + len(value)
    for name, content in headers:
        size += _HEADER_OVERHEAD + 4 * len(name) + len(content or b"")
    return size
