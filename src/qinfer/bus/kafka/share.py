"""One partition of a queue while it is this worker's: its frames, fetched, out, given back or done."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from qinfer.bus.base import Delivery
from qinfer.bus.kafka.connection import Partition
from qinfer.bus.kafka.progress import Progress, State

if TYPE_CHECKING:
    from qinfer.bus.kafka.consumer import KafkaConsumer


class Share:
    """What this worker has of one partition.

    Attributes:
        progress: what is done.
        position: the offset to be fetched next.
        committed: what was committed last, by whoever had the partition.
        out: frames at their holder, by offset.
        deleted: records before this offset have been deleted.
    """

    def __init__(self, partition: Partition, committed: State, start: int) -> None:
        self.partition = partition
        self.committed = committed
        self.progress = Progress(committed, start=start)
        self.position = self.progress.done
        self.out: dict[int, KafkaDelivery] = {}
        self.deleted = start
        self.lost = False
        self._fetched: deque[Any] = deque()
        self._returned: deque[Any] = deque()

    @property
    def buffered(self) -> int:
        """Frames that are here and wait for credit."""
        return len(self._fetched) + len(self._returned)

    def fetched(self, records: list[Any]) -> None:
        """Records came in."""
        for record in records:
            if record.offset < self.position:
                continue
            self.progress.skip(self.position, record.offset)
            self.position = record.offset + 1
            if record.value is None:  # nothing of ours
                self.progress.end(record.offset)
            elif not self.progress.is_done(record.offset):
                self._fetched.append(record)

    def returned(self, record: Any) -> None:
        """A frame that was out is to be delivered again."""
        self._returned.append(record)

    def head(self) -> Any | None:
        """The record that is next in turn."""
        if self._returned:
            return self._returned[0]
        return self._fetched[0] if self._fetched else None

    @property
    def is_free(self) -> bool:
        """Whether the record next in turn may be handed out: the border behind it is committed."""
        head = self.head()
        return head is not None and head.offset < self.progress.reserved

    def take(self) -> Any:
        """Remove the record that is next in turn."""
        return self._returned.popleft() if self._returned else self._fetched.popleft()


class KafkaDelivery(Delivery):
    """A record out at its holder."""

    __slots__ = ("_consumer", "_share", "deadline", "record")

    def __init__(
        self, consumer: KafkaConsumer, share: Share, record: Any, attempt: int, pending: int
    ) -> None:
        self.payload = record.value
        self.sequence = consumer.sequence(record.partition, record.offset)
        self.attempt = attempt
        self.pending = pending
        self.stored_us = record.timestamp * 1000
        self.record = record
        self.deadline = 0.0
        self._share = share
        self._consumer = consumer
        self.in_progress()

    def ack(self) -> None:
        self._consumer.end(self._share, self)

    def term(self) -> None:
        self._consumer.end(self._share, self)

    def nak(self, delay: float = 0.0) -> None:
        self._consumer.give_back(self._share, self, delay)

    def in_progress(self) -> None:
        self.deadline = self._consumer.overdue_at()
