"""Tables: buckets whose entries say themselves how long they live."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable

from qinfer.bus.base import WatchHandler
from qinfer.bus.kafka.bucket import LIFE, KafkaWatcher
from qinfer.bus.kafka.connection import Connection
from qinfer.bus.kafka.registry import Registry
from qinfer.bus.table import Table
from qinfer.errors import PayloadTooLarge, QInferError, QueueFull

logger = logging.getLogger(__name__)

_SWEEP = 60.0  # seconds between two looks for entries whose lives are over
_SWEPT = 256  # of them removed at a time


class KafkaTable(Table):
    """See `qinfer.bus.table`. Its size is known, and its limit kept, by whoever writes.

    Args:
        bucket: its name.
        max_bytes: of all values; -1 for no limit.
        max_payload: of one value.
    """

    def __init__(
        self, connection: Connection, registry: Registry, bucket: str, *, max_bytes: int, max_payload: int
    ) -> None:
        self._connection = connection
        self._registry = registry
        self._bucket = bucket
        self._max_bytes = max_bytes
        self._max_payload = max_payload

    async def get(self, key: str, *, settled: bool = False) -> tuple[bytes, int] | None:
        self._connection.check()
        if settled and (view := self._registry.glance(self._bucket)) is not None:
            found = await self._registry.look_up(view, self._bucket, key)
            if found is not None:
                return found
        return await self._registry.get(self._bucket, key)

    async def write(self, key: str, value: bytes, *, lifetime: float, revision: int | None = None) -> int:
        self._connection.check()
        if len(value) > self._max_payload:
            raise PayloadTooLarge(
                f"entry {key!r} of {len(value)} bytes is above the broker's max_payload of"
                f" {self._max_payload} bytes"
            )
        if self._max_bytes >= 0:
            size = await self.size()
            if size + len(value) > self._max_bytes:
                raise QueueFull(
                    f"table {self._bucket} is full: {size} bytes of at most {self._max_bytes}",
                    retry_after=1.0,
                )
        headers = [(LIFE, b"%d" % int(lifetime * 1000))]
        if revision is None:
            return await self._registry.put(self._bucket, key, value, headers=headers)
        return await self._registry.replace(self._bucket, key, value, revision, headers=headers)

    async def remove(self, key: str) -> None:
        self._connection.check()
        await self._registry.delete(self._bucket, key)

    async def keys(self, prefix: str) -> list[str]:
        self._connection.check()
        entries = await self._registry.entries(self._bucket)
        return [key for key in entries if key.split(".", 1)[0] == prefix]

    async def watch(self, key: str, handler: WatchHandler) -> KafkaWatcher:
        self._connection.check()
        view = await self._registry.now(self._bucket)
        watcher = KafkaWatcher(view, handler, _matches(key))
        await self._registry.show(view, self._bucket, watcher)
        return watcher

    async def size(self) -> int:
        self._connection.check()
        return sum(entry.size for entry in (await self._registry.entries(self._bucket)).values())


def _matches(pattern: str) -> Callable[[str], bool]:
    if not pattern.endswith(".*"):
        return lambda key: key == pattern
    stem = pattern[:-1]
    return lambda key: key.startswith(stem) and "." not in key[len(stem) :]


class Sweeper:
    """Removes entries of tables whose lives are over, so that their records do not stay for ever."""

    def __init__(self, connection: Connection, registry: Registry) -> None:
        self._connection = connection
        self._registry = registry
        self.tables: set[str] = set()

    async def work(self) -> None:
        """Sweep now and then, until cancelled."""
        while True:
            await asyncio.sleep(_SWEEP * random.uniform(0.5, 1.5))  # whoever is first spares the others
            for bucket in list(self.tables):
                try:
                    await self.sweep(bucket)
                except QInferError as error:
                    logger.info("table %s is swept later: %s", bucket, error)

    async def sweep(self, bucket: str) -> None:
        """Remove some dead entries of one table."""
        view = self._registry.glance(bucket)
        if view is None:
            return
        for key in view.dead(self._connection.clock_ms())[:_SWEPT]:
            await self._registry.replace(bucket, key, None, 0)  # void where it was written again meanwhile
