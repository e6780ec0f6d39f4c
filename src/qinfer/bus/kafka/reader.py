"""Reads what lies at known places of the log."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from qinfer.bus.kafka.connection import Connection, Partition
from qinfer.errors import BusUnavailable

_SLOWEST = 1 << 20  # bytes a second that are read at least
_PATIENCE = 10.0
_POLL_MS = 500


class Reader:
    """One consumer that goes where it is asked to, for one who asks at a time."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._turn = asyncio.Lock()
        self._consumer: Any = None

    async def read(
        self, partition: Partition, first: int, last: int, take: Callable[[Any], None], *, size: int
    ) -> None:
        """Call `take` with the records from one offset to another, both included, that are still there.

        Args:
            size: about how many bytes they are.

        Raises:
            BusUnavailable: they do not come in time.
        """
        try:
            async with asyncio.timeout(_PATIENCE + size / _SLOWEST), self._turn:
                await self._read(partition, first, last, take)
        except TimeoutError:
            raise BusUnavailable("the broker does not deliver in time", retry_after=1.0) from None
        except self._connection.errors.KafkaError as error:
            raise self._connection.unavailable(error) from error

    async def _read(self, partition: Partition, first: int, last: int, take: Callable[[Any], None]) -> None:
        if self._consumer is None:
            consumer = self._connection.consumer(fetch_max_wait_ms=_POLL_MS // 5)
            await consumer.start()
            self._consumer = consumer
        where = self._connection.partition(partition)
        self._consumer.assign([where])
        self._consumer.seek(where, first)
        position = first
        while position <= last:
            for records in (await self._consumer.getmany(timeout_ms=_POLL_MS)).values():
                for record in records:
                    if position <= record.offset <= last:
                        take(record)
                position = records[-1].offset + 1
        self._consumer.assign([])

    async def close(self) -> None:
        """Idempotent."""
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            await consumer.stop()
