"""A model's queue in memory, with the semantics of a JetStream work queue."""

from __future__ import annotations

import asyncio
import time
from collections import deque

from qinfer.bus.base import Consumer, Delivery, DeliveryHandler, QueueSpec
from qinfer.bus.table import Backlog
from qinfer.errors import QueueFull


class _Entry:
    __slots__ = ("attempt", "payload", "sequence", "stored_us", "version")

    def __init__(self, version: str, payload: bytes, stored_us: int, sequence: int) -> None:
        self.sequence = sequence
        self.version = version
        self.payload = payload
        self.stored_us = stored_us
        self.attempt = 0


class MemoryQueue:
    """Frames of one model, by wanted version, and the consumers that pull them in turn."""

    def __init__(self, spec: QueueSpec) -> None:
        self.spec = spec
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[str, deque[_Entry]] = {}
        self._consumers: dict[str, deque[MemoryConsumer]] = {}
        self._messages = 0
        self._unended: dict[str, int] = {}
        self._delivered: dict[str, int] = {}
        self._bytes = 0
        self._sequence = 0
        self._known: set[str] = set()

    def put_once(self, version: str, payload: bytes, message_id: str) -> bool:
        """Queue a frame unless one of that id was queued before; False then. Raises as `put`."""
        if message_id in self._known:
            return False
        self.put(version, payload)
        if message_id:
            self._known.add(message_id)
        return True

    def put(self, version: str, payload: bytes) -> None:
        """Queue a frame.

        Raises:
            QueueFull: the queue is at its limit of messages or bytes.
        """
        spec = self.spec
        if self._messages >= spec.max_messages:
            raise QueueFull(
                f"the model's queue is full: maximum messages ({spec.max_messages}) exceeded", retry_after=1.0
            )
        if 0 <= spec.max_bytes < self._bytes + len(payload):
            raise QueueFull(
                f"the model's queue is full: maximum bytes ({spec.max_bytes}) exceeded", retry_after=1.0
            )
        self._messages += 1
        self._unended[version] = self.count(version) + 1
        self._bytes += len(payload)
        self._sequence += 1
        self.add(_Entry(version, payload, self.clock_us(), self._sequence))

    def clock_us(self) -> int:
        """Unix microseconds."""
        return time.time_ns() // 1000

    def count(self, version: str) -> int:
        """Frames for a version that are not ended yet."""
        return self._unended.get(version, 0)

    def backlog(self, version: str) -> Backlog:
        """How far the consumers of a version are."""
        fresh = [entry for entry in self._waiting.get(version, ()) if not entry.attempt]
        return Backlog(len(fresh), self._delivered.get(version, 0))

    def add(self, entry: _Entry, *, front: bool = False) -> None:
        waiting = self._waiting.setdefault(entry.version, deque())
        if front:
            waiting.appendleft(entry)
        else:
            waiting.append(entry)
        self.dispatch(entry.version)

    def remove(self, entry: _Entry) -> None:
        self._messages -= 1
        self._unended[entry.version] -= 1
        self._bytes -= len(entry.payload)

    def attach(self, version: str, consumer: MemoryConsumer) -> None:
        self._consumers.setdefault(version, deque()).append(consumer)

    def detach(self, version: str, consumer: MemoryConsumer) -> None:
        self._consumers[version].remove(consumer)

    def dispatch(self, version: str) -> None:
        """Hand waiting frames to consumers with credit, in turn."""
        waiting = self._waiting.get(version)
        consumers = self._consumers.get(version)
        if not waiting or not consumers:
            return
        idle = 0
        while waiting and idle < len(consumers):
            consumer = consumers[0]
            consumers.rotate(-1)
            if consumer.credit <= 0:
                idle += 1
                continue
            idle = 0
            entry = waiting.popleft()
            entry.attempt += 1
            self._delivered[version] = self._delivered.get(version, 0) + 1
            consumer.take(MemoryDelivery(self, entry, len(waiting)))


class MemoryDelivery(Delivery):
    """A frame out at a worker."""

    __slots__ = ("_entry", "_queue", "_timer")

    def __init__(self, queue: MemoryQueue, entry: _Entry, pending: int) -> None:
        self.payload = entry.payload
        self.attempt = entry.attempt
        self.pending = pending
        self.stored_us = entry.stored_us
        self.sequence = entry.sequence
        self._queue = queue
        self._entry = entry
        self._timer: asyncio.TimerHandle | None = None
        self.in_progress()

    def ack(self) -> None:
        if self._end():
            self._queue.remove(self._entry)

    def term(self) -> None:
        self.ack()

    def nak(self, delay: float = 0.0) -> None:
        if self._end():
            if delay > 0:
                self._queue._loop.call_later(delay, self._give_back)  # noqa: SLF001 (same module)
            else:
                self._give_back()

    def in_progress(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._queue._loop.call_later(self._queue.spec.ack_wait, self._overdue)  # noqa: SLF001

    def _overdue(self) -> None:
        if self._end():
            self._give_back()

    def _give_back(self) -> None:
        self._queue.add(self._entry, front=True)

    def _end(self) -> bool:
        timer, self._timer = self._timer, None
        if timer is None:
            return False
        timer.cancel()
        return True


class MemoryConsumer(Consumer):
    """One worker's pull."""

    def __init__(self, queue: MemoryQueue, version: str, handler: DeliveryHandler) -> None:
        self._queue = queue
        self._version = version
        self._handler = handler
        self._loop = asyncio.get_running_loop()
        self._credit = 0
        self._closed = False
        queue.attach(version, self)

    @property
    def credit(self) -> int:
        return self._credit

    def grant(self, frames: int) -> None:
        if frames > 0 and not self._closed:
            self._credit += frames
            self._queue.dispatch(self._version)

    def take(self, delivery: MemoryDelivery) -> None:
        self._credit -= 1
        # Through the loop, as from a socket: a handler is never called from within a publish.
        self._loop.call_soon(self._deliver, delivery)

    def _deliver(self, delivery: MemoryDelivery) -> None:
        if self._closed:
            delivery.nak()
        else:
            self._handler(delivery)

    async def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._credit = 0
            self._queue.detach(self._version, self)
