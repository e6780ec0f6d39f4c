"""A bucket as one process sees it: what the log of its changes comes to."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from qinfer.bus.base import Watcher, WatchHandler

IF = "if"
"""Header: the revision to be replaced; 0 for none."""

STANDS = "stands"
"""Header: the value is not new, but that of this revision."""

TOKEN = "token"  # noqa: S105 (no secret)
"""Header: by which a writer knows its record again."""

LIFE = "life"
"""Header: milliseconds after which the entry is gone, where entries live as long as their writers say."""

_MAX_REMOVED = 10_000


@dataclass(slots=True)
class Entry:
    """An entry of a bucket.

    Attributes:
        value: what it says; None where it is too large to be held.
        size: bytes of the value.
        revision: one more than the offset of the change that made it.
        offset: where its value lies.
        stored_ms: the broker's time of its last change.
        life_ms: how long it lives from then; None for ever.
    """

    value: bytes | None
    size: int
    revision: int
    offset: int
    stored_ms: int
    life_ms: int | None

    def lives(self, now_ms: int) -> bool:
        """Whether it is there yet at a time of the broker's clock."""
        return self.life_ms is None or now_ms - self.stored_ms <= self.life_ms


class Bucket:
    """The entries of a bucket, record by record of its log.

    Args:
        lifetime: seconds that entries live, where they do not say themselves; None for ever.
        capacity: bytes of values before the oldest make place for new ones; None for no bound.
        held: bytes of the largest value that is held here.
    """

    def __init__(self, lifetime: float | None, capacity: int | None, held: int) -> None:
        self._life_ms = None if lifetime is None else int(lifetime * 1000)
        self._capacity = capacity
        self._held = held
        self._removed: dict[str, None] = {}  # keys, the latest removed last
        self._entries: dict[str, Entry] = {}  # in the order of their last changes
        self._verdicts: dict[bytes, asyncio.Future[bool]] = {}
        self._watchers: list[KafkaWatcher] = []
        self.size = 0

    # The log

    def apply(self, record: Any) -> None:
        """The next record of the log."""
        key = record.key.decode()
        headers = dict(record.headers)
        stands, expected = headers.get(STANDS), headers.get(IF)
        if stands is not None:
            holds = self._stand(key, record, headers, int(stands))
        else:
            holds = expected is None or self._revision(key, record.timestamp) == int(expected)
            if holds:
                self._change(key, record, headers)
        verdict = self._verdicts.pop(headers.get(TOKEN, b""), None)
        if verdict is not None and not verdict.done():
            verdict.set_result(holds)

    def _revision(self, key: str, at_ms: int) -> int:
        # Measured by the broker's clock alone: every reader comes to the same end.
        entry = self._entries.get(key)
        return entry.revision if entry is not None and entry.lives(at_ms) else 0

    def _change(self, key: str, record: Any, headers: dict[str, bytes]) -> None:
        before = self._remove(key)
        self._removed.pop(key, None)
        if record.value is not None:
            self._keep(key, record, headers, record.offset + 1)
            return
        self._removed[key] = None
        if len(self._removed) > _MAX_REMOVED:
            del self._removed[next(iter(self._removed))]
        if before is not None:
            self._tell(key, None)

    def _stand(self, key: str, record: Any, headers: dict[str, bytes], revision: int) -> bool:
        """Somebody wrote again what stands; False when something else does.

        Compaction keeps the last record of a key, be it void. So who was too slow writes the entry again, and
        that is all that is left of it some day.
        """
        entry = self._entries.get(key)
        if entry is not None:
            return entry.revision == revision
        if revision and key not in self._removed and record.value is not None:
            self._keep(key, record, headers, revision)
            return True
        return not revision

    def _keep(self, key: str, record: Any, headers: dict[str, bytes], revision: int) -> None:
        value: bytes = record.value
        life = headers.get(LIFE)
        self._entries[key] = Entry(
            value if len(value) <= self._held else None,
            len(value),
            revision,
            record.offset,
            record.timestamp,
            self._life_ms if life is None else int(life),
        )
        self.size += len(value)
        self._make_room(record.timestamp)
        self._tell(key, value)

    def _make_room(self, now_ms: int) -> None:
        """Take out the oldest, where all live equally long, or there are too many."""
        while len(self._entries) > 1:
            oldest = next(iter(self._entries))
            over = self._capacity is not None and self.size > self._capacity
            if not over and (self._life_ms is None or self._entries[oldest].lives(now_ms)):
                break
            self._remove(oldest)

    def _remove(self, key: str) -> Entry | None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self.size -= entry.size
        return entry

    def _tell(self, key: str, value: bytes | None) -> None:
        for watcher in list(self._watchers):
            watcher.tell(key, value)

    # For those who use it

    def find(self, key: str, now_ms: int) -> Entry | None:
        """The entry of a key."""
        entry = self._entries.get(key)
        return entry if entry is not None and entry.lives(now_ms) else None

    def living(self, now_ms: int) -> dict[str, Entry]:
        """All entries by key, in the order of their last changes."""
        return {key: entry for key, entry in self._entries.items() if entry.lives(now_ms)}

    def dead(self, now_ms: int) -> list[str]:
        """Keys of entries whose lives are over and that are still in the log."""
        return [key for key, entry in self._entries.items() if not entry.lives(now_ms)]

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


class KafkaWatcher(Watcher):
    """A handler of those changes of a bucket whose keys it is interested in."""

    def __init__(self, view: Bucket, handler: WatchHandler, wanted: Callable[[str], bool]) -> None:
        self._view: Bucket | None = view
        self._handler = handler
        self._wanted = wanted
        view.attach(self)

    def wants(self, key: str) -> bool:
        """Whether an entry is watched."""
        return self._wanted(key)

    def tell(self, key: str, value: bytes | None) -> None:
        """An entry has changed."""
        if self._view is not None and self._wanted(key):
            self._handler(key, value)

    async def close(self) -> None:
        view, self._view = self._view, None
        if view is not None:
            view.detach(self)
