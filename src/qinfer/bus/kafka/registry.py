"""Registry buckets: each the log of its changes in one partition, which everybody who uses it reads.

All readers apply the same rules to the same records in the same order, and so agree on which of two writers
was faster: a conditional change names the revision it is to replace, and is void where the entry has another
one. Whoever wrote it learns from the log itself how it went. A read first asks for the end of the log
and waits until it has come there, so that nobody reads the past.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from qinfer.bus.base import Watcher, WatchHandler
from qinfer.bus.kafka.connection import Connection, Partition
from qinfer.bus.kafka.names import KafkaNames
from qinfer.bus.kafka.sender import Sender
from qinfer.bus.kafka.tail import Tail
from qinfer.errors import BusUnavailable

_IF = "if"  # header: the revision to be replaced; 0 for none
_TOKEN = "token"  # noqa: S105 (header: by which a writer knows its record again)
_STANDS = "stands"  # header: the value is not new, but that of this revision
_RESTATEMENTS = 5
_MAX_REMOVED = 10_000
_PUT_TIMEOUT = 2.0  # whoever renews an entry every few seconds must not be held up for longer


@dataclass(slots=True)
class Entry:
    """An entry of a bucket; `stored_ms` is the broker's time of its last change."""

    value: bytes
    revision: int
    stored_ms: int


class Bucket:
    """A bucket as this process sees it."""

    def __init__(self, lifetime: float | None, capacity: int | None) -> None:
        self._lifetime_ms = None if lifetime is None else int(lifetime * 1000)
        self._capacity = capacity
        self._bytes = 0
        self._removed: dict[str, None] = {}  # keys, the latest removed last
        self._entries: dict[str, Entry] = {}  # in the order of their last changes
        self._verdicts: dict[bytes, asyncio.Future[bool]] = {}
        self._watchers: list[KafkaWatcher] = []

    def apply(self, record: Any) -> None:
        """The next record of the log."""
        key = record.key.decode()
        headers = dict(record.headers)
        stands, expected = headers.get(_STANDS), headers.get(_IF)
        if stands is not None:
            holds = self._stand(key, record, int(stands))
        else:
            holds = expected is None or self._revision(key, record.timestamp) == int(expected)
            if holds:
                self._change(key, record)
        verdict = self._verdicts.pop(headers.get(_TOKEN, b""), None)
        if verdict is not None and not verdict.done():
            verdict.set_result(holds)

    def _revision(self, key: str, at_ms: int) -> int:
        # Measured by the broker's clock alone: every reader comes to the same end.
        entry = self._entries.get(key)
        return entry.revision if entry is not None and self._lives(entry, at_ms) else 0

    def _change(self, key: str, record: Any) -> None:
        before = self._remove(key)
        if record.value is None:
            self._removed.pop(key, None)
            self._removed[key] = None
            if len(self._removed) > _MAX_REMOVED:
                del self._removed[next(iter(self._removed))]
            if before is not None:
                self._tell(key, None)
            return
        self._removed.pop(key, None)
        self._keep(key, Entry(record.value, record.offset + 1, record.timestamp))
        self._tell(key, record.value)

    def _stand(self, key: str, record: Any, revision: int) -> bool:
        """Somebody wrote again what stands; False when something else does.

        Compaction keeps the last record of a key, be it void. So who was too slow writes the entry again, and
        that is all that is left of it some day.
        """
        entry = self._entries.get(key)
        if entry is not None:
            return entry.revision == revision
        if revision and key not in self._removed and record.value is not None:
            self._keep(key, Entry(record.value, revision, record.timestamp))
            self._tell(key, record.value)
            return True
        return not revision

    def _keep(self, key: str, entry: Entry) -> None:
        self._entries[key] = entry
        self._bytes += len(entry.value)
        while self._capacity is not None and self._bytes > self._capacity and len(self._entries) > 1:
            self._remove(next(iter(self._entries)))

    def _remove(self, key: str) -> Entry | None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._bytes -= len(entry.value)
        return entry

    def _tell(self, key: str, value: bytes | None) -> None:
        for watcher in list(self._watchers):
            watcher.tell(key, value)

    def _lives(self, entry: Entry, now_ms: int) -> bool:
        return self._lifetime_ms is None or now_ms - entry.stored_ms <= self._lifetime_ms

    def find(self, key: str, now_ms: int) -> Entry | None:
        """The entry of a key."""
        entry = self._entries.get(key)
        return entry if entry is not None and self._lives(entry, now_ms) else None

    def living(self, now_ms: int) -> dict[str, Entry]:
        """All entries, those that have been forgotten taken out."""
        for key in [key for key, entry in self._entries.items() if not self._lives(entry, now_ms)]:
            self._remove(key)
        return dict(self._entries)

    def await_verdict(self) -> tuple[bytes, asyncio.Future[bool]]:
        """A token for a conditional change, and what will say whether it held."""
        token = uuid4().bytes
        self._verdicts[token] = verdict = asyncio.get_running_loop().create_future()
        return token, verdict

    def forget_verdict(self, token: bytes) -> None:
        """Nobody waits for it any more."""
        self._verdicts.pop(token, None)

    def attach(self, watcher: KafkaWatcher) -> None:
        """Tell a watcher of all changes from now on."""
        self._watchers.append(watcher)

    def detach(self, watcher: KafkaWatcher) -> None:
        """Tell it nothing more."""
        self._watchers.remove(watcher)


class Registry:
    """The buckets of one namespace, each read from when it is first used."""

    def __init__(self, connection: Connection, sender: Sender, tail: Tail, names: KafkaNames) -> None:
        self._connection = connection
        self._sender = sender
        self._tail = tail
        self._names = names
        self._buckets: dict[str, Bucket] = {}
        self._opening = asyncio.Lock()

    async def put(self, bucket: str, key: str, value: bytes) -> None:
        await self._connection.ensure([self._names.bucket(bucket)])
        await self._sender.store(self._log(bucket), value, key=key.encode(), timeout=_PUT_TIMEOUT)

    async def delete(self, bucket: str, key: str) -> None:
        await self._connection.ensure([self._names.bucket(bucket)])
        await self._sender.store(self._log(bucket), None, key=key.encode())

    async def get(self, bucket: str, key: str) -> tuple[bytes, int] | None:
        found = (await self.now(bucket)).find(key, self._connection.clock_ms())
        return None if found is None else (found.value, found.revision)

    async def entries(self, bucket: str) -> dict[str, Entry]:
        """All entries by key, in the order of their last changes."""
        return (await self.now(bucket)).living(self._connection.clock_ms())

    async def replace(self, bucket: str, key: str, value: bytes | None, revision: int) -> bool:
        """Write an entry, or remove it for None, unless somebody was faster; False then."""
        view = await self._open(bucket)
        held = await self._propose(view, bucket, key, value, (_IF, b"%d" % revision))
        if not held and self._names.bucket(bucket).settings["cleanup.policy"] != "delete":
            await self._restate(view, bucket, key)
        return held

    async def _propose(
        self, view: Bucket, bucket: str, key: str, value: bytes | None, condition: tuple[str, bytes]
    ) -> bool:
        token, verdict = view.await_verdict()
        headers = [condition, (_TOKEN, token)]
        try:
            stored = await self._sender.store(self._log(bucket), value, key=key.encode(), headers=headers)
            await self._tail.reach(self._log(bucket), stored.offset + 1)
            if not verdict.done():
                raise BusUnavailable(
                    f"entry {key!r}: what became of its change is not known", retry_after=1.0
                )
        finally:
            view.forget_verdict(token)
        return verdict.result()

    async def _restate(self, view: Bucket, bucket: str, key: str) -> None:
        for _ in range(_RESTATEMENTS):
            entry = view.find(key, self._connection.clock_ms())
            value, revision = (None, 0) if entry is None else (entry.value, entry.revision)
            if await self._propose(view, bucket, key, value, (_STANDS, b"%d" % revision)):
                return

    async def watch(self, bucket: str, handler: WatchHandler, key: str) -> KafkaWatcher:
        view = await self.now(bucket)
        watcher = KafkaWatcher(view, handler, key)
        for name, entry in view.living(self._connection.clock_ms()).items():
            watcher.tell(name, entry.value)
        return watcher

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
                    view = Bucket(self._names.lifetime(bucket), self._names.capacity(bucket))
                    log = self._log(bucket)
                    begin = (await self._connection.beginnings([log]))[log]
                    self._tail.follow(log, begin, view.apply)
                    self._buckets[bucket] = view
        return self._buckets[bucket]

    def _log(self, bucket: str) -> Partition:
        return self._names.bucket(bucket).name, 0


class KafkaWatcher(Watcher):
    """A handler of a bucket's changes, or of one entry's."""

    def __init__(self, view: Bucket, handler: WatchHandler, key: str) -> None:
        self._view: Bucket | None = view
        self._handler = handler
        self._key = key
        view.attach(self)

    def tell(self, key: str, value: bytes | None) -> None:
        if self._view is not None and self._key in ("", key):
            self._handler(key, value)

    async def close(self) -> None:
        view, self._view = self._view, None
        if view is not None:
            view.detach(self)
