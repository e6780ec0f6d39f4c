"""Queues as those see them who put frames in: where they lie, how full they are, which frame is known.

A broker of Kafka takes whatever it is sent. So whoever publishes keeps the limits: it samples how far the
consumers are, counts what it sent since, and asks again before it refuses anything.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from zlib import crc32

import msgspec

from qinfer.bus.base import QueueSpec, Watcher
from qinfer.bus.kafka.connection import Connection, Partition
from qinfer.bus.kafka.names import KafkaNames
from qinfer.bus.kafka.progress import Extent, extent
from qinfer.bus.kafka.registry import Registry
from qinfer.bus.kafka.sender import Sender, Stored
from qinfer.errors import BusUnavailable, InternalError, NoWorker, QInferError, QueueFull
from qinfer.lifecycle import cancelled
from qinfer.naming import escape

logger = logging.getLogger(__name__)

MESSAGE_ID = "id"
"""Header: the name of which there is one frame only."""

_SAMPLE_AGE = 0.25  # seconds after which a busy queue's sample is renewed
_SHARE = 0.5  # of the limit, from which on samples are renewed at once
_AVERAGE = 0.1
_WAITING_BYTES = 32 * 1024 * 1024  # of frames for which it is not known yet whether there is room

Placed = Callable[[Partition], None]
Refused = Callable[[QInferError], None]


class Declared(msgspec.Struct, frozen=True):
    """A queue as its bucket knows it: see `QueueSpec`; `partitions` of each of its topics."""

    ack_wait: float
    max_messages: int
    max_bytes: int
    replicas: int
    partitions: int


_decode = msgspec.msgpack.Decoder(Declared).decode


@dataclass(slots=True)
class _Waiting:
    """A frame that is not placed yet."""

    size: int
    message_id: str
    placed: Placed
    refused: Refused


class _Line:
    """Frames that are not placed yet, in order; `size` are their bytes."""

    def __init__(self) -> None:
        self.size = 0
        self._frames: deque[_Waiting] = deque()

    def __len__(self) -> int:
        return len(self._frames)

    @property
    def head(self) -> _Waiting:
        return self._frames[0]

    def add(self, frame: _Waiting) -> None:
        self._frames.append(frame)
        self.size += frame.size

    def take(self) -> _Waiting:
        frame = self._frames.popleft()
        self.size -= frame.size
        return frame


class Outlet:
    """Where the frames for one version of one model go.

    Attributes:
        topic: of the frames; the group has the same name.
    """

    def __init__(self, topic: str, declared: Declared) -> None:
        self.topic = topic
        self.declared = declared
        self.sampled_at = float("-inf")
        self.waiting = _Line()
        self.mean_size = 0.0
        self._load = [0] * declared.partitions
        self._recent = [0] * declared.partitions  # placed since the sample that is being taken was begun
        self._next = 0

    @property
    def partitions(self) -> list[Partition]:
        return [(self.topic, number) for number in range(self.declared.partitions)]

    @property
    def queued(self) -> int:
        """Frames in the queue, as far as is known here."""
        return sum(self._load)

    def sampling(self) -> None:
        """A sample is about to be taken."""
        self._recent = [0] * len(self._recent)

    def sampled(self, queued: list[int], now: float) -> None:
        """What was queued in each partition, with all that was placed before the sample was begun."""
        self._load = [count + more for count, more in zip(queued, self._recent, strict=True)]
        self.sampled_at = now

    def full(self, size: int) -> str:
        """Which limit one more frame of this size would pass; "" for none."""
        spec = self.declared
        if self.queued >= spec.max_messages:
            return f"maximum messages ({spec.max_messages}) exceeded"
        mean = self.mean_size or size
        if 0 <= spec.max_bytes < self.queued * mean + size:
            return f"maximum bytes ({spec.max_bytes}) exceeded"
        return ""

    def near(self, size: int) -> bool:
        """Whether the queue may soon be full."""
        spec = self.declared
        bytes_queued = (self.queued + 1) * max(self.mean_size, size)
        return self.queued >= _SHARE * spec.max_messages or 0 <= _SHARE * spec.max_bytes < bytes_queued

    def take(self, size: int, message_id: str) -> Partition:
        """The partition for one more frame: the one with the least in it, or the one of its id."""
        self.mean_size += (size - self.mean_size) * (_AVERAGE if self.mean_size else 1.0)
        count = len(self._load)
        if message_id:
            number = crc32(message_id.encode()) % count
        else:
            turn = self._next
            number = min(range(count), key=lambda each: (self._load[each], (each - turn) % count))
            self._next = (number + 1) % count
        self._load[number] += 1
        self._recent[number] += 1
        return self.topic, number


class Queues:
    """All queues of a namespace, for those who publish and for those who declare them."""

    def __init__(
        self,
        connection: Connection,
        sender: Sender,
        registry: Registry,
        names: KafkaNames,
        *,
        partitions: int,
    ) -> None:
        self._connection = connection
        self._sender = sender
        self._registry = registry
        self._names = names
        self._partitions = partitions
        self._loop = asyncio.get_running_loop()
        self._watcher: Watcher | None = None
        self._outlets: dict[tuple[str, str], Outlet] = {}
        self._unknown: dict[tuple[str, str], _Line] = {}
        self._tasks: dict[tuple[str, str], asyncio.Task[None]] = {}

    async def close(self) -> None:
        """Stop. Idempotent."""
        await cancelled(*self._tasks.values())

    # For those who declare

    async def declare(self, model: str, spec: QueueSpec) -> Declared:
        """Make a queue, or bring it to `spec`; how many partitions it has stays."""
        bucket, key = self._names.queues_bucket, escape(model)
        before = await self._find(model)
        partitions = self._partitions if before is None else before.partitions
        declared = Declared(spec.ack_wait, spec.max_messages, spec.max_bytes, spec.replicas, partitions)
        await self.prepare(model, "", declared)
        if declared != before:
            await self._registry.put(bucket, key, msgspec.msgpack.encode(declared))
        return declared

    async def prepare(self, model: str, version: str, declared: Declared) -> str:
        """See that the topic for a version is there; returns its name."""
        name = self._names.queue(model, version)
        replicas = declared.replicas if declared.replicas > 1 else 0
        topic = self._names.queue_topic(name, partitions=declared.partitions, replicas=replicas)
        await self._connection.ensure([topic])
        return name

    async def find(self, model: str) -> Declared:
        """How a queue was declared.

        Raises:
            NoWorker: it was not.
        """
        declared = await self._find(model)
        if declared is None:
            raise NoWorker("no queue exists for this model on the broker", retry_after=1.0)
        return declared

    async def _find(self, model: str) -> Declared | None:
        if self._watcher is None:
            self._watcher = await self._registry.watch(self._names.queues_bucket, self._changed, "")
        found = await self._registry.get(self._names.queues_bucket, escape(model))
        return None if found is None else _decode(found[0])

    # For those who publish

    def place(
        self, model: str, version: str, size: int, placed: Placed, refused: Refused, *, message_id: str = ""
    ) -> None:
        """Find room for a frame of `size` bytes; a handler is called with it, now or later, in order."""
        key = (model, version)
        outlet = self._outlets.get(key)
        if outlet is not None and not outlet.waiting and not outlet.full(size):
            if outlet.near(size) or self._loop.time() - outlet.sampled_at > _SAMPLE_AGE:
                self._look(key)
            placed(outlet.take(size, message_id))
            return
        waiting = self._unknown.setdefault(key, _Line()) if outlet is None else outlet.waiting
        if waiting.size + size > _WAITING_BYTES:
            error = BusUnavailable("the broker says too slowly how full the queue is", retry_after=1.0)
            self._loop.call_soon(refused, error)
        else:
            waiting.add(_Waiting(size, message_id, placed, refused))
        self._look(key)

    def _changed(self, key: str, value: bytes | None) -> None:
        """A queue was declared anew."""
        for (model, _), outlet in self._outlets.items():
            if value is not None and escape(model) == key:
                outlet.declared = _decode(value)

    def _look(self, key: tuple[str, str]) -> None:
        if key not in self._tasks:
            task = asyncio.create_task(self._attend(*key), name=f"queue {key[0]}")
            self._tasks[key] = task
            task.add_done_callback(partial(self._looked, key))

    async def _attend(self, model: str, version: str) -> None:
        """Renew what is known of a queue, and place what waits for that."""
        key = (model, version)
        try:
            outlet = self._outlets.get(key) or await self._open(model, version)
            while True:
                await self._sample(outlet)
                while outlet.waiting and not outlet.full(outlet.waiting.head.size):
                    frame = outlet.waiting.take()
                    frame.placed(outlet.take(frame.size, frame.message_id))
                while outlet.waiting and (limit := outlet.full(outlet.waiting.head.size)):
                    error = QueueFull(f"the model's queue is full: {limit}", retry_after=1.0)
                    outlet.waiting.take().refused(error)
                if not outlet.waiting:
                    return
        except QInferError as error:
            self._refuse(key, error)

    def _looked(self, key: tuple[str, str], task: asyncio.Task[None]) -> None:
        self._tasks.pop(key, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("queue %s cannot be looked at", key[0], exc_info=error)
            self._refuse(key, InternalError(f"model {key[0]!r}: its queue cannot be looked at: {error}"))
        outlet = self._outlets.get(key)
        if not task.cancelled() and (self._unknown.get(key) if outlet is None else outlet.waiting):
            self._look(key)  # came while the task was about to end

    def _refuse(self, key: tuple[str, str], error: QInferError) -> None:
        outlet = self._outlets.get(key)
        waiting = self._unknown.pop(key, _Line()) if outlet is None else outlet.waiting
        while waiting:
            waiting.take().refused(error)

    async def _open(self, model: str, version: str) -> Outlet:
        declared = await self.find(model)
        outlet = Outlet(await self.prepare(model, version, declared), declared)
        outlet.waiting = self._unknown.pop((model, version), _Line())
        self._outlets[model, version] = outlet
        return outlet

    async def _sample(self, outlet: Outlet) -> None:
        before = self._loop.time()
        outlet.sampling()
        await self._sender.flush()
        found = await self.extents(outlet.topic, outlet.partitions)
        outlet.sampled([max(0, end - at.done_before - at.done) for at, end in found], before)

    async def extents(self, group: str, partitions: list[Partition]) -> list[tuple[Extent, int]]:
        """How far each partition is, and the offset of its next frame."""
        states, ends = await asyncio.gather(
            self._connection.committed(group, partitions), self._connection.ends(partitions)
        )
        fresh = [each for each in partitions if states[each][0] < 0]
        starts = await self._connection.beginnings(fresh)
        return [(extent(states[each], start=starts.get(each, 0)), ends[each]) for each in partitions]

    async def of_version(self, model: str, version: str) -> list[tuple[Extent, int]]:
        """The same for what is published for a version.

        Raises:
            BusUnavailable: nobody ever consumed them, or the cluster does not answer.
        """
        try:
            declared = await self.find(model)
        except NoWorker as error:
            raise BusUnavailable(str(error), retry_after=1.0) from error
        topic = await self.prepare(model, version, declared)
        return await self.extents(topic, [(topic, number) for number in range(declared.partitions)])

    # Frames with a name

    async def settle(self, topic: str, message_id: str, place: tuple[int, int]) -> bool:
        """Whether the frame at a partition and offset is the one of its name.

        Whoever comes first settles it, who published the frame or who is to work it off: the frame is stored
        before its name, so that a crash between the two loses nothing.
        """
        bucket = self._names.ids_bucket
        key = f"{topic}/{message_id}"
        mine = msgspec.msgpack.encode(place)
        known = await self._registry.get(bucket, key)
        if known is None:
            if await self._registry.replace(bucket, key, mine, 0):
                return True
            known = await self._registry.get(bucket, key)
        return known is not None and known[0] == mine

    async def is_known(self, topic: str, message_id: str) -> bool:
        """Whether there has been a frame of this name."""
        return await self._registry.get(self._names.ids_bucket, f"{topic}/{message_id}") is not None

    async def publish_once(self, model: str, version: str, frame: bytes, message_id: str) -> bool:
        """Queue a frame and wait until it is stored; False when there was one of its name before."""
        topic = self._names.queue(model, version)
        if message_id and await self.is_known(topic, message_id):
            return False
        place: asyncio.Future[Partition] = self._loop.create_future()

        def refused(error: QInferError) -> None:
            if not place.done():
                place.set_exception(error)

        def placed(partition: Partition) -> None:
            if not place.done():
                place.set_result(partition)

        self.place(model, version, len(frame), placed, refused, message_id=message_id)
        partition = await place
        headers = [(MESSAGE_ID, message_id.encode())] if message_id else []
        stored: Stored = await self._sender.store(partition, frame, headers=headers)
        return not message_id or await self.settle(topic, message_id, (partition[1], stored.offset))
