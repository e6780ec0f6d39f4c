"""The bus within one process: see `qinfer.bus.base` for the contract."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from qinfer.bus.base import (
    AnswerHandler,
    Bus,
    DeliveryHandler,
    QueueSpec,
    RefusedHandler,
    ReplyHandler,
    Watcher,
    WatchHandler,
    check_payload,
)
from qinfer.bus.memory.queue import MemoryConsumer, MemoryQueue
from qinfer.errors import BusUnavailable, NoWorker, QInferError
from qinfer.naming import Names, check_reply

MAX_PAYLOAD = 64 * 1024 * 1024
"""Same as the largest a nats-server can be configured to."""


class _Broker:
    """What all connections with the same name and namespace share."""

    def __init__(self) -> None:
        self.queues: dict[str, MemoryQueue] = {}
        self.inboxes: dict[str, MemoryBus] = {}
        self.answers: dict[str, list[AnswerHandler]] = {}
        self.buckets: dict[str, dict[str, bytes]] = {}
        self.watchers: dict[str, list[MemoryWatcher]] = {}
        self.connections = 0


_brokers: dict[tuple[str, str], _Broker] = {}


class MemoryBus(Bus):
    """A connection to the in-process broker `name`, which lives as long as it has connections."""

    _serial = 0

    def __init__(self, name: str, *, names: Names) -> None:
        self.names = names
        self.max_payload = MAX_PAYLOAD
        self._key = (name, names.namespace)
        self._broker: _Broker | None = None
        self._reply_handler: ReplyHandler | None = None
        self._answering: list[tuple[str, AnswerHandler]] = []
        self._watching: list[MemoryWatcher] = []
        self._tasks: set[asyncio.Task[bytes]] = set()
        MemoryBus._serial += 1
        self.reply_to = f"_INBOX.memory{MemoryBus._serial}.r"

    @property
    def connected(self) -> bool:
        return self._broker is not None

    async def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._broker = _brokers.setdefault(self._key, _Broker())
        self._broker.connections += 1
        self._broker.inboxes[self.reply_to] = self

    async def close(self) -> None:
        broker, self._broker = self._broker, None
        if broker is None:
            return
        del broker.inboxes[self.reply_to]
        for topic, handler in self._answering:
            broker.answers[topic].remove(handler)
        for watcher in self._watching:
            await watcher.close()
        for task in self._tasks:
            task.cancel()
        broker.connections -= 1
        if not broker.connections:
            _brokers.pop(self._key, None)

    def publish(self, model: str, version: str, frame: bytes, refused: RefusedHandler) -> None:
        check_payload(frame, self.max_payload)
        queue = self._connection.queues.get(model)
        try:
            if queue is None:
                raise NoWorker("no queue exists for this model on the broker", retry_after=1.0)
            queue.put(version, frame)
        except QInferError as error:
            self._loop.call_soon(refused, error)

    def on_reply(self, handler: ReplyHandler) -> None:
        self._reply_handler = handler

    async def declare(self, model: str, spec: QueueSpec) -> None:
        queue = self._connection.queues.get(model)
        if queue is None:
            self._connection.queues[model] = MemoryQueue(spec)
        else:
            queue.spec = spec

    async def consume(self, model: str, version: str, handler: DeliveryHandler) -> MemoryConsumer:
        return MemoryConsumer(self._connection.queues[model], version, handler)

    async def clock_us(self, model: str) -> int:
        return self._connection.queues[model].clock_us()

    def reply(self, reply_to: str, frame: bytes) -> None:
        check_payload(frame, self.max_payload)
        receiver = self._connection.inboxes.get(check_reply(reply_to))
        if receiver is not None:
            self._loop.call_soon(receiver._receive, frame)  # noqa: SLF001 (same class)

    def _receive(self, frame: bytes) -> None:
        if self._reply_handler is not None and self._broker is not None:
            self._reply_handler(frame)

    async def ask(self, topic: str, question: bytes, *, answers: int, timeout: float) -> list[bytes]:
        handlers = self._connection.answers.get(topic, [])[:answers]
        if not handlers:
            return []
        tasks = {asyncio.ensure_future(handler(question)) for handler in handlers}
        self._tasks |= tasks
        done, late = await asyncio.wait(tasks, timeout=timeout)
        self._tasks -= tasks
        for task in late:
            task.cancel()
        return [task.result() for task in done]

    async def answer(self, topic: str, handler: AnswerHandler) -> None:
        self._connection.answers.setdefault(topic, []).append(handler)
        self._answering.append((topic, handler))

    async def put(self, bucket: str, key: str, value: bytes) -> None:
        self._connection.buckets.setdefault(bucket, {})[key] = value
        self._notify(bucket, key, value)

    async def delete(self, bucket: str, key: str) -> None:
        if self._connection.buckets.get(bucket, {}).pop(key, None) is not None:
            self._notify(bucket, key, None)

    async def watch(self, bucket: str, handler: WatchHandler) -> Watcher:
        watcher = MemoryWatcher(self._connection.watchers.setdefault(bucket, []), handler)
        self._watching.append(watcher)
        for key, value in list(self._connection.buckets.get(bucket, {}).items()):
            handler(key, value)
        return watcher

    def on_reconnect(self, handler: Callable[[], None]) -> None:
        """A connection within the process is never lost."""

    @property
    def _connection(self) -> _Broker:
        if self._broker is None:
            raise BusUnavailable("the bus is closed")
        return self._broker

    def _notify(self, bucket: str, key: str, value: bytes | None) -> None:
        for watcher in self._connection.watchers.get(bucket, []):
            self._loop.call_soon(watcher.tell, key, value)


class MemoryWatcher(Watcher):
    """A handler in a bucket's list of watchers."""

    def __init__(self, watchers: list[MemoryWatcher], handler: WatchHandler) -> None:
        self._watchers = watchers
        self._handler = handler
        self._closed = False
        watchers.append(self)

    def tell(self, key: str, value: bytes | None) -> None:
        if not self._closed:
            self._handler(key, value)

    async def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._watchers.remove(self)
