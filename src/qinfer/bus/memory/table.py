"""Tables in memory, shared by all connections of a broker."""

from __future__ import annotations

import time
from collections.abc import Callable

from qinfer.bus.base import Watcher, WatchHandler, check_payload
from qinfer.bus.table import Table
from qinfer.errors import QueueFull


class TableData:
    """Entries of one table, with their revisions and when they are gone, of the monotonic clock."""

    def __init__(self) -> None:
        self.entries: dict[str, tuple[bytes, int, float]] = {}
        self.watchers: list[TableWatcher] = []
        self.revision = 0

    def live(self, key: str) -> tuple[bytes, int] | None:
        entry = self.entries.get(key)
        if entry is None or entry[2] <= time.monotonic():
            self.entries.pop(key, None)
            return None
        return entry[0], entry[1]

    def size(self) -> int:
        return sum([len(key) + len(value) for key, (value, *_) in self.entries.items()])


class MemoryTable(Table):
    """One connection's view of a table.

    Args:
        data: finds what all connections share; raises `BusUnavailable` once the bus is closed.
        max_bytes: what it may take; -1 for no limit.
        max_payload: of an entry.
        tell: calls a function soon.
    """

    def __init__(
        self,
        data: Callable[[], TableData],
        *,
        max_bytes: int,
        max_payload: int,
        tell: Callable[[Callable[[], None]], object],
    ) -> None:
        self._data = data
        self._max_bytes = max_bytes
        self._max_payload = max_payload
        self._tell = tell

    async def get(self, key: str, *, settled: bool = False) -> tuple[bytes, int] | None:  # noqa: ARG002
        return self._data().live(key)

    async def write(self, key: str, value: bytes, *, lifetime: float, revision: int | None = None) -> int:
        check_payload(value, self._max_payload)
        data = self._data()
        known = data.live(key)
        if revision is not None and revision != (known[1] if known else 0):
            return 0
        more = len(value) - (len(known[0]) if known else -len(key))
        if 0 <= self._max_bytes < data.size() + more:
            raise QueueFull(f"the table is full: maximum bytes ({self._max_bytes}) exceeded", retry_after=1.0)
        data.revision += 1
        data.entries[key] = (value, data.revision, time.monotonic() + lifetime)
        self._notify(data, key, value)
        return data.revision

    async def remove(self, key: str) -> None:
        data = self._data()
        if data.entries.pop(key, None) is not None:
            self._notify(data, key, None)

    async def keys(self, prefix: str) -> list[str]:
        data = self._data()
        chosen = [key for key in data.entries if key.startswith(f"{prefix}.")]
        return [key for key in chosen if data.live(key) is not None]

    async def watch(self, key: str, handler: WatchHandler) -> Watcher:
        data = self._data()
        watcher = TableWatcher(data.watchers, key, handler)
        for name in list(data.entries):
            if (entry := data.live(name)) is not None:
                watcher.tell(name, entry[0])
        return watcher

    async def size(self) -> int:
        return self._data().size()

    def _notify(self, data: TableData, key: str, value: bytes | None) -> None:
        for watcher in data.watchers:
            self._tell(lambda watcher=watcher: watcher.tell(key, value))  # type: ignore[misc]


class TableWatcher(Watcher):
    """A handler in a table's list of watchers."""

    def __init__(self, watchers: list[TableWatcher], key: str, handler: WatchHandler) -> None:
        self._watchers = watchers
        self._key = key
        self._handler = handler
        watchers.append(self)

    def tell(self, key: str, value: bytes | None) -> None:
        prefix, _, rest = self._key.rpartition(".")
        if self in self._watchers and (key == self._key or (rest == "*" and key.startswith(f"{prefix}."))):
            self._handler(key, value)

    async def close(self) -> None:
        if self in self._watchers:
            self._watchers.remove(self)
