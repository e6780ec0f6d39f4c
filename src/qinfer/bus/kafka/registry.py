"""Registry buckets: each the log of its changes in one partition, which everybody who uses it reads.

All readers apply the same rules to the same records in the same order, and so agree on which of two writers
was faster: a conditional change names the revision it is to replace, and is void where the entry has another
one. Whoever wrote it learns from the log itself how it went. A read first asks for the end of the log
and waits until it has come there, so that nobody reads the past.
"""

from __future__ import annotations

import asyncio
from typing import Any

from qinfer.bus.base import WatchHandler
from qinfer.bus.kafka.bucket import IF, LIFE, STANDS, TOKEN, Bucket, Entry, KafkaWatcher
from qinfer.bus.kafka.connection import Connection, Partition
from qinfer.bus.kafka.names import KafkaNames
from qinfer.bus.kafka.reader import Reader
from qinfer.bus.kafka.sender import Headers, Sender
from qinfer.bus.kafka.tail import Tail
from qinfer.errors import BusUnavailable

_RESTATEMENTS = 5
_PUT_TIMEOUT = 2.0  # whoever renews an entry every few seconds must not be held up for longer


class Registry:
    """The buckets of one namespace, each read from when it is first used."""

    def __init__(
        self, connection: Connection, sender: Sender, tail: Tail, reader: Reader, names: KafkaNames
    ) -> None:
        self._connection = connection
        self._sender = sender
        self._tail = tail
        self._reader = reader
        self._names = names
        self._buckets: dict[str, Bucket] = {}
        self._opening = asyncio.Lock()

    # Writing

    async def put(self, bucket: str, key: str, value: bytes, *, headers: Headers = ()) -> int:
        """Write an entry whatever was there; returns its revision."""
        await self._connection.ensure([self._names.bucket(bucket)])
        log = self._log(bucket)
        stored = await self._sender.store(log, value, key=key.encode(), headers=headers, timeout=_PUT_TIMEOUT)
        return stored.offset + 1

    async def delete(self, bucket: str, key: str) -> None:
        """Remove an entry, if it is there."""
        await self._connection.ensure([self._names.bucket(bucket)])
        await self._sender.store(self._log(bucket), None, key=key.encode())

    async def replace(
        self, bucket: str, key: str, value: bytes | None, revision: int, *, headers: Headers = ()
    ) -> int:
        """Write an entry, or remove it for None; returns its revision, or 0 when somebody was faster."""
        view = await self._open(bucket)
        held = await self._propose(view, bucket, key, value, [(IF, b"%d" % revision), *headers])
        if not held and self._names.bucket(bucket).settings["cleanup.policy"] != "delete":
            await self._restate(view, bucket, key)
        return held

    async def _propose(
        self, view: Bucket, bucket: str, key: str, value: bytes | None, headers: Headers
    ) -> int:
        token, verdict = view.await_verdict()
        told = [*headers, (TOKEN, token)]
        log = self._log(bucket)
        try:
            stored = await self._sender.store(log, value, key=key.encode(), headers=told)
            await self._tail.reach(log, stored.offset + 1)
            if not verdict.done():
                raise BusUnavailable(
                    f"entry {key!r}: what became of its change is not known", retry_after=1.0
                )
        finally:
            view.forget_verdict(token)
        return stored.offset + 1 if verdict.result() else 0

    async def _restate(self, view: Bucket, bucket: str, key: str) -> None:
        for _ in range(_RESTATEMENTS):
            entry = view.find(key, self._connection.clock_ms())
            headers: list[tuple[str, bytes]] = [(STANDS, b"%d" % (0 if entry is None else entry.revision))]
            value = None
            if entry is not None:
                value = await self.value(bucket, entry)
                if entry.life_ms is not None:
                    age = self._connection.clock_ms() - entry.stored_ms
                    headers.append((LIFE, b"%d" % max(0, entry.life_ms - age)))
            if await self._propose(view, bucket, key, value, headers):
                return

    # Reading

    async def get(self, bucket: str, key: str) -> tuple[bytes, int] | None:
        """An entry and its revision."""
        return await self.look_up(await self.now(bucket), bucket, key)

    async def look_up(self, view: Bucket, bucket: str, key: str) -> tuple[bytes, int] | None:
        """An entry as it is in a view."""
        found = view.find(key, self._connection.clock_ms())
        return None if found is None else (await self.value(bucket, found), found.revision)

    async def value(self, bucket: str, entry: Entry) -> bytes:
        """What an entry says."""
        if entry.value is not None:
            return entry.value
        records: list[Any] = []
        at = entry.offset
        await self._reader.read(self._log(bucket), at, at, records.append, size=entry.size)
        if not records or records[0].value is None:
            raise BusUnavailable("an entry was replaced while it was read", retry_after=0.1)
        value: bytes = records[0].value
        return value

    async def entries(self, bucket: str) -> dict[str, Entry]:
        """All entries by key, in the order of their last changes."""
        return (await self.now(bucket)).living(self._connection.clock_ms())

    async def watch(self, bucket: str, handler: WatchHandler, key: str) -> KafkaWatcher:
        """Tell a handler of a bucket, or of one entry."""
        view = await self.now(bucket)
        watcher = KafkaWatcher(view, handler, lambda name: key in ("", name))
        await self.show(view, bucket, watcher)
        return watcher

    async def show(self, view: Bucket, bucket: str, watcher: KafkaWatcher) -> None:
        """Tell a watcher what is there."""
        for name, entry in view.living(self._connection.clock_ms()).items():
            if watcher.wants(name):
                watcher.tell(name, await self.value(bucket, entry))

    async def now(self, bucket: str) -> Bucket:
        """A bucket with all that was written to it before this was called.

        Raises:
            BusUnavailable: the cluster does not answer in time.
        """
        view = await self._open(bucket)
        log = self._log(bucket)
        await self._tail.reach(log, (await self._connection.ends([log]))[log])
        return view

    def glance(self, bucket: str) -> Bucket | None:
        """A bucket as it was when news last came; None when it was never used."""
        return self._buckets.get(bucket)

    async def _open(self, bucket: str) -> Bucket:
        if bucket not in self._buckets:
            async with self._opening:
                if bucket not in self._buckets:
                    await self._connection.ensure([self._names.bucket(bucket)])
                    view = Bucket(
                        self._names.lifetime(bucket), self._names.capacity(bucket), self._names.held()
                    )
                    log = self._log(bucket)
                    begin = (await self._connection.beginnings([log]))[log]
                    self._tail.follow(log, begin, view.apply)
                    self._buckets[bucket] = view
        return self._buckets[bucket]

    def _log(self, bucket: str) -> Partition:
        return self._names.bucket(bucket).name, 0
