"""What this connection listens to: partitions that are read as they grow, by one consumer for all of them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from qinfer.bus.kafka.complaints import Complaints
from qinfer.bus.kafka.connection import ANSWER_TIMEOUT, Connection, Partition
from qinfer.errors import BusUnavailable
from qinfer.lifecycle import cancelled

logger = logging.getLogger(__name__)

_POLL_MS = 1000
_PAUSE = 0.2

RecordHandler = Callable[[Any], None]


class Tail:
    """Calls handlers with the records of the partitions it follows, each from where it was told to.

    Args:
        nudge: publishes something in a partition that is followed already. A broker answers one question of a
            connection at a time, and while nothing comes it keeps the last one open, for half a second.
    """

    def __init__(self, connection: Connection, nudge: Callable[[], None]) -> None:
        self._connection = connection
        self._nudge = nudge
        self._handlers: dict[Partition, RecordHandler] = {}
        self._positions: dict[Partition, int] = {}
        self._moved = asyncio.Event()  # replaced whenever something was read
        self._complaints = Complaints(logger, "cannot read from Kafka")
        self._consumer: Any = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to listen."""
        self._consumer = self._connection.consumer()
        await self._connection.ask(self._consumer.start())

    async def close(self) -> None:
        """Stop listening. Idempotent."""
        if self._task is not None:
            await cancelled(self._task)
            self._task = None
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            await consumer.stop()

    def follow(self, partition: Partition, offset: int, handler: RecordHandler) -> None:
        """Call `handler` with each record of a partition from an offset on."""
        self._handlers[partition] = handler
        self._positions[partition] = offset
        self._assign()
        if self._task is not None:
            self._nudge()
        else:
            self._task = asyncio.create_task(self._read(), name="kafka tail")

    async def reach(self, partition: Partition, offset: int) -> None:
        """Wait until everything before an offset has been handled.

        Raises:
            BusUnavailable: that takes too long.
        """
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT):
                while self._positions[partition] < offset:
                    await self._moved.wait()
        except TimeoutError:
            raise BusUnavailable("the broker does not deliver in time", retry_after=1.0) from None

    def _assign(self) -> None:
        partitions = {each: self._connection.partition(each) for each in self._positions}
        self._consumer.assign(list(partitions.values()))
        for each, offset in self._positions.items():
            self._consumer.seek(partitions[each], offset)

    async def _read(self) -> None:
        while True:
            try:
                batch = await self._consumer.getmany(timeout_ms=_POLL_MS)
            except self._connection.errors.KafkaError as error:
                self._complaints.tell(error)
                await asyncio.sleep(_PAUSE)
                continue
            for where, records in batch.items():
                self._handle((where.topic, where.partition), records)
            if batch:
                moved, self._moved = self._moved, asyncio.Event()
                moved.set()

    def _handle(self, partition: Partition, records: list[Any]) -> None:
        handler = self._handlers[partition]
        for record in records:
            if record.offset < self._positions[partition]:
                continue
            self._positions[partition] = record.offset + 1
            try:
                handler(record)
            except Exception:
                logger.exception("a record of %s could not be handled", partition[0])
