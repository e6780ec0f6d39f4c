"""A worker's pull on one queue: a member of the group that shares the queue's partitions.

A partition belongs to one member at a time, and its frames come to that one only: when it has credit, again
when it gives them back or says nothing for the ack wait. What other members get is decided by the group: it
finds a dead member by its silence, and what that had not done comes to whoever has the partition next.
A member hands partitions over when what it has out has ended, at the latest after some seconds.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Any
from zlib import crc32

from qinfer.bus.base import Consumer, DeliveryHandler
from qinfer.bus.kafka.commits import Commits
from qinfer.bus.kafka.complaints import Complaints
from qinfer.bus.kafka.connection import ANSWER_TIMEOUT, Connection, Partition
from qinfer.bus.kafka.member import Listener, member
from qinfer.bus.kafka.queues import MESSAGE_ID, Queues
from qinfer.bus.kafka.sender import Sender
from qinfer.bus.kafka.share import KafkaDelivery, Share
from qinfer.errors import QInferError
from qinfer.lifecycle import cancelled

logger = logging.getLogger(__name__)

_POLL_MS = 1000
_PAUSE = 0.2
_BUFFERED = 2048  # frames fetched and not handed out, above which no more are taken
_LEAST_LOOK, _MOST_LOOK = 0.02, 0.5  # seconds between two looks for frames that are overdue
_HAND_OVER = 5.0  # seconds that a rebalance may wait for what is out
_OFFSET_SHIFT = 24  # of a frame's number: 16 bits of the partition, 8 of the version


class KafkaConsumer(Consumer):
    """See the module.

    Args:
        queues: knows which frames of a name come first.
        topic: of the queue; the group has the same name.
        version: that the frames are for.
        ack_wait: seconds without a sign of life after which a frame is delivered again.
        session: seconds of silence after which a member counts as dead, if the ack wait is not longer.
        handler: gets the frames.
        closed: called when nothing is left to be done.
    """

    def __init__(
        self,
        connection: Connection,
        sender: Sender,
        queues: Queues,
        *,
        topic: str,
        version: str,
        ack_wait: float,
        session: float,
        handler: DeliveryHandler,
        closed: Callable[[KafkaConsumer], None],
    ) -> None:
        self._connection = connection
        self._queues = queues
        self._topic = topic
        self._tag = crc32(version.encode()) & 0xFF if version else 0
        self._ack_wait = ack_wait
        self._handler = handler
        self._closed_handler = closed
        self._loop = asyncio.get_running_loop()
        self._credit = 0
        self._closing = False
        self._halted = True  # no partition is ours
        self._shares: dict[Partition, Share] = {}
        self._dispatching: asyncio.Handle | None = None
        self._room = asyncio.Event()
        self._quiet = asyncio.Event()
        self._quiet.set()
        self._complaints = Complaints(logger, f"frames of {topic} have to wait")
        self._tasks: list[asyncio.Task[None]] = []
        self._leaving: asyncio.Task[None] | None = None
        self._member = member(connection, topic, max(ack_wait, session))
        self._commits = Commits(connection, sender, self._member, committed=self._wake)

    async def start(self) -> None:
        """Join the group, in the background: that takes until all its members have answered."""
        await self._connection.ask(self._member.start())
        self._member.subscribe([self._topic], listener=Listener(self._revoked, self._assigned))
        self._commits.start()
        self._tasks = [
            asyncio.create_task(self._fetch(), name=f"fetch {self._topic}"),
            asyncio.create_task(self._look(), name=f"overdue {self._topic}"),
        ]

    @property
    def credit(self) -> int:
        return self._credit

    def grant(self, frames: int) -> None:
        if frames > 0 and not self._closing:
            self._credit += frames
            self._wake()

    async def close(self) -> None:
        if self._closing:
            return
        self._closing = True
        self._credit = 0
        self._leaving = asyncio.create_task(self._leave(), name=f"leave {self._topic}")
        if self._quiet.is_set():
            await asyncio.wait([self._leaving], timeout=ANSWER_TIMEOUT)

    async def abandon(self) -> None:
        """Close, and leave the group now: what is out comes to others. Idempotent."""
        self._quiet.set()
        await self.close()
        if self._leaving is not None:
            await asyncio.wait([self._leaving], timeout=ANSWER_TIMEOUT)
            await cancelled(self._leaving)

    async def _leave(self) -> None:
        """Nothing of what is out may come to others while it is worked on."""
        await self._quiet.wait()
        await cancelled(*self._tasks)
        await self._commits.close(self._shares.values())
        self._halted = True
        try:
            await asyncio.wait_for(self._member.stop(), ANSWER_TIMEOUT)
        except (self._connection.errors.KafkaError, OSError, TimeoutError) as error:
            logger.warning("left %s without a word: %r", self._topic, error)
        self._closed_handler(self)

    # From the broker

    async def _fetch(self) -> None:
        while True:
            try:
                await self._fetch_once()
            except (self._connection.errors.KafkaError, QInferError) as error:
                self._complaints.tell(error)
                await asyncio.sleep(_PAUSE)

    async def _fetch_once(self) -> None:
        if sum(share.buffered for share in self._shares.values()) >= _BUFFERED:
            self._room.clear()
            await self._room.wait()
        batch = await self._member.getmany(timeout_ms=_POLL_MS)
        # Whose they are is settled before anything is awaited: a share that is made anew meanwhile begins
        # where it has to, and would take what lies before these records for frames that never were.
        found = [(self._shares.get((where.topic, where.partition)), batch[where]) for where in batch]
        for share, records in found:
            if share is None:
                continue  # taken away meanwhile
            doubles = await self._doubles(share, records)
            share.fetched(records)
            for offset in doubles:
                share.progress.skip(offset, offset + 1)
        if batch:
            self._wake()

    async def _doubles(self, share: Share, records: Iterable[Any]) -> list[int]:
        """Offsets of frames whose name another frame has already."""
        named = [
            (record.offset, value.decode(errors="replace"))
            for record in records
            if not share.progress.is_done(record.offset)
            for header, value in record.headers
            if header == MESSAGE_ID and value is not None
        ]
        while named:
            try:
                first = await asyncio.gather(
                    *(
                        self._queues.settle(self._topic, name, (share.partition[1], offset))
                        for offset, name in named
                    )
                )
            except QInferError as error:  # once fetched they are not fetched again
                self._complaints.tell(error)
                await asyncio.sleep(_PAUSE)
            else:
                return [offset for (offset, _), is_first in zip(named, first, strict=True) if not is_first]
        return []

    # To the holder

    def _wake(self) -> None:
        if self._dispatching is None:
            self._dispatching = self._loop.call_soon(self._dispatch)

    def _dispatch(self) -> None:
        """Hand out what there is credit for, the oldest first."""
        self._dispatching = None
        if self._halted or self._closing:
            return
        pending = self._pending()
        while self._credit > 0 and not self._closing:
            share = min(
                (share for share in self._shares.values() if share.is_free),
                key=lambda each: each.head().timestamp,  # type: ignore[union-attr]
                default=None,
            )
            if share is None:
                break
            record = share.take()
            if not share.progress.is_done(record.offset):
                pending = max(0, pending - 1)
                self._hand_out(share, record, pending)
        self._commits.reserve(
            share for share in self._shares.values() if share.buffered and not share.is_free
        )
        if sum(share.buffered for share in self._shares.values()) < _BUFFERED // 2:
            self._room.set()

    def _hand_out(self, share: Share, record: Any, pending: int) -> None:
        self._credit -= 1
        attempt = share.progress.handed_out(record.offset)
        delivery = KafkaDelivery(self, share, record, attempt, pending)
        share.out[record.offset] = delivery
        self._quiet.clear()
        self._commits.soon(share)
        self._handler(delivery)

    def _pending(self) -> int:
        pending = 0
        for share in self._shares.values():
            highwater = self._member.highwater(self._connection.partition(share.partition)) or 0
            pending += share.buffered + max(0, highwater - share.position)
        return pending

    def sequence(self, partition: int, offset: int) -> int:
        """A frame's number in its model's queue."""
        return offset << _OFFSET_SHIFT | partition << 8 | self._tag

    def overdue_at(self) -> float:
        """When a frame that gives a sign of life now is overdue."""
        return self._loop.time() + self._ack_wait

    # From the holder

    def end(self, share: Share, delivery: KafkaDelivery) -> None:
        """A frame is done."""
        if self._take_back(share, delivery):
            share.progress.end(delivery.record.offset)
            self._commits.soon(share)

    def give_back(self, share: Share, delivery: KafkaDelivery, delay: float) -> None:
        """A frame is to be delivered again."""
        if not self._take_back(share, delivery):
            return
        if delay > 0:
            self._loop.call_later(delay, self._return, share, delivery.record)
        else:
            self._return(share, delivery.record)

    def _return(self, share: Share, record: Any) -> None:
        share.returned(record)
        self._wake()

    def _take_back(self, share: Share, delivery: KafkaDelivery) -> bool:
        if share.lost or share.out.get(delivery.record.offset) is not delivery:
            return False  # ended before, overdue, or another worker's by now
        del share.out[delivery.record.offset]
        if not any(each.out for each in self._shares.values()):
            self._quiet.set()
        return True

    async def _look(self) -> None:
        """Give back what nobody has said anything about for too long."""
        pause = min(_MOST_LOOK, max(_LEAST_LOOK, self._ack_wait / 10))
        while True:
            await asyncio.sleep(pause)
            now = self._loop.time()
            for share in self._shares.values():
                for delivery in [each for each in share.out.values() if each.deadline <= now]:
                    delivery.nak()

    # Partitions come and go

    async def _revoked(self) -> None:
        """The group is shared out anew: end what is out, and say how far everything is."""
        self._halted = True
        try:
            await asyncio.wait_for(self._quiet.wait(), min(self._ack_wait, _HAND_OVER))
        except TimeoutError:
            out = sum(len(share.out) for share in self._shares.values())
            logger.warning("%s: %d frames that take long may run twice", self._topic, out)
        await self._commits.flush(self._shares.values())

    async def _assigned(self, partitions: set[Partition]) -> None:
        """These are ours now; those that nobody else had meanwhile go on as they were."""
        while True:
            try:
                async with self._commits.still:
                    states = await self._connection.committed(self._topic, partitions)
                    starts = await self._connection.beginnings(partitions)
                break
            except QInferError as error:
                self._complaints.tell(error)
                await asyncio.sleep(_PAUSE)
        before, self._shares = self._shares, {}
        for partition in partitions:
            share = before.pop(partition, None)
            if share is None or share.committed != states[partition]:
                if share is not None:
                    share.lost = True
                share = Share(partition, states[partition], starts[partition])
            self._shares[partition] = share
            self._member.seek(self._connection.partition(partition), share.position)
        for share in before.values():
            share.lost = True
        if not any(share.out for share in self._shares.values()):
            self._quiet.set()
        self._halted = False
        self._wake()
