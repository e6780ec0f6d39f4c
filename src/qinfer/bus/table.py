"""The contract of tables: entries by key that live as long as their writers say."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from qinfer.bus.base import Watcher, WatchHandler


@dataclass(frozen=True, slots=True)
class Backlog:
    """How far the consumers of a queue are.

    Attributes:
        waiting: frames that were never delivered.
        delivered: deliveries so far, second ones of the same frame included. It only grows, unless the broker
            loses the queue.
    """

    waiting: int
    delivered: int


class Table(ABC):
    """Entries by key, each with a lifetime of its own, kept in file storage.

    A table is made with its first entry: who only reads leaves nothing behind. Keys are made of letters,
    digits, '_' and '-', with dots between the parts. An entry is at most as large as a message.
    """

    @abstractmethod
    async def get(self, key: str, *, settled: bool = False) -> tuple[bytes, int] | None:
        """An entry and its revision, a number that grows with each change; None without entry.

        Args:
            key: which.
            settled: the entry never changes once it is written, so any copy of it will do.

        Raises:
            BusUnavailable: the broker does not answer.
        """

    @abstractmethod
    async def write(self, key: str, value: bytes, *, lifetime: float, revision: int | None = None) -> int:
        """Write an entry.

        Args:
            key: which.
            value: what it says.
            lifetime: seconds after which it is gone, unless it is written again.
            revision: of the entry that was read, 0 when there was none; None to write in any case.

        Returns:
            Its revision; 0 when somebody was faster.

        Raises:
            BusUnavailable: it is not written, or nobody knows.
            PayloadTooLarge: it is above the bus's `max_payload`.
            QueueFull: the table has no room for it.
            Unsupported: the broker knows no lifetimes.
        """

    @abstractmethod
    async def remove(self, key: str) -> None:
        """Remove an entry, if it is there.

        Raises:
            BusUnavailable: nobody knows whether it is.
        """

    @abstractmethod
    async def keys(self, prefix: str) -> list[str]:
        """Keys of all entries whose first part is `prefix`, in no order. Some may be gone by now.

        Raises:
            BusUnavailable: the broker does not answer.
        """

    @abstractmethod
    async def watch(self, key: str, handler: WatchHandler) -> Watcher:
        """Call `handler(key, value)` for an entry, now and at each change; value None for a removal.

        An entry whose lifetime is over is gone without a word.

        Args:
            key: of one entry, or `PREFIX.*` for all keys of two parts that begin with that one.
            handler: may see the same entry twice.

        Returns once the handler has seen what is there.

        Raises:
            BusUnavailable: the broker does not answer.
        """

    @abstractmethod
    async def size(self) -> int:
        """Bytes that all entries take.

        Raises:
            BusUnavailable: the broker does not answer.
        """
