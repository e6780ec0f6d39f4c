"""The bus within one process: see `qinfer.bus.base` for the contract."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from qinfer.bus.base import (
    AnswerHandler,
    Bus,
    Data,
    DeliveryHandler,
    Letter,
    QueueSpec,
    RefusedHandler,
    ReplyHandler,
    Watcher,
    WatchHandler,
    check_blob,
    check_payload,
)
from qinfer.bus.memory.queue import MemoryConsumer, MemoryQueue
from qinfer.bus.memory.table import MemoryTable, TableData
from qinfer.bus.table import Backlog
from qinfer.errors import BusUnavailable, NotFound, NoWorker, QInferError
from qinfer.naming import Names, check_reply

MAX_PAYLOAD = 64 * 1024 * 1024
"""Same as the largest a nats-server can be configured to."""


class _Broker:
    """What all connections with the same name and namespace share."""

    def __init__(self) -> None:
        self.queues: dict[str, MemoryQueue] = {}
        self.inboxes: dict[str, MemoryBus] = {}
        self.answers: dict[str, list[AnswerHandler]] = {}
        self.buckets: dict[str, dict[str, tuple[bytes, int]]] = {}
        self.revision = 0
        self.watchers: dict[str, list[MemoryWatcher]] = {}
        self.tables: dict[str, TableData] = {}
        self.blobs: dict[str, bytes] = {}
        self.letters: dict[int, tuple[str, bytes]] = {}
        self.buried = 0
        self.letter_ids: set[str] = set()
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

    async def enqueue(self, model: str, version: str, frame: bytes, *, message_id: str = "") -> bool:
        check_payload(frame, self.max_payload)
        queue = self._connection.queues.get(model)
        if queue is None:
            raise NoWorker("no queue exists for this model on the broker", retry_after=1.0)
        return queue.put_once(version, frame, message_id)

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

    async def queued(self, model: str, version: str) -> int:
        queue = self._connection.queues.get(model)
        if queue is None:
            raise BusUnavailable("no queue exists for this model on the broker")
        return queue.count(version)

    async def backlog(self, model: str, version: str) -> Backlog:
        queue = self._connection.queues.get(model)
        if queue is None:
            raise BusUnavailable("no queue exists for this model on the broker")
        return queue.backlog(version)

    def reply(self, reply_to: str, frame: bytes) -> None:
        check_payload(frame, self.max_payload)
        receiver = self._connection.inboxes.get(check_reply(reply_to))
        if receiver is not None:
            self._loop.call_soon(receiver._receive, frame)  # noqa: SLF001 (same class)

    def _receive(self, frame: bytes) -> None:
        if self._reply_handler is not None and self._broker is not None:
            self._reply_handler(frame)

    def cancel(self, model: str, notice: bytes) -> None:
        check_payload(notice, self.max_payload)
        self._notify(self.names.cancellations(model), "", notice)

    async def on_cancel(self, model: str, handler: ReplyHandler) -> Watcher:
        return await self.watch(self.names.cancellations(model), lambda _, notice: handler(notice or b""))

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
        broker = self._connection
        broker.revision += 1
        broker.buckets.setdefault(bucket, {})[key] = (value, broker.revision)
        self._notify(bucket, key, value)

    async def delete(self, bucket: str, key: str) -> None:
        if self._connection.buckets.get(bucket, {}).pop(key, None) is not None:
            self._notify(bucket, key, None)

    async def get(self, bucket: str, key: str) -> tuple[bytes, int] | None:
        return self._connection.buckets.get(bucket, {}).get(key)

    async def replace(self, bucket: str, key: str, value: bytes, revision: int) -> bool:
        entry = self._connection.buckets.get(bucket, {}).get(key)
        if (entry[1] if entry is not None else 0) != revision:
            return False
        await self.put(bucket, key, value)
        return True

    async def watch(self, bucket: str, handler: WatchHandler, key: str = "") -> Watcher:
        watcher = MemoryWatcher(self._connection.watchers.setdefault(bucket, []), handler, key)
        self._watching = [known for known in self._watching if not known.closed]
        self._watching.append(watcher)
        for name, (value, _) in list(self._connection.buckets.get(bucket, {}).items()):
            watcher.tell(name, value)
        return watcher

    def table(self, name: str, *, max_bytes: int = -1) -> MemoryTable:
        return MemoryTable(
            lambda: self._connection.tables.setdefault(name, TableData()),
            max_bytes=max_bytes,
            max_payload=self.max_payload,
            tell=lambda then: self._loop.call_soon(then),
        )

    async def put_blob(self, name: str, *parts: Data) -> None:
        self._connection.blobs[name] = b"".join(parts)

    async def get_blob(self, name: str, *, limit: int) -> Data:
        try:
            data = self._connection.blobs[name]
        except KeyError:
            raise NotFound(f"no data is stored under {name!r} (any more)") from None
        check_blob(name, len(data), limit)
        return data

    async def delete_blob(self, name: str) -> None:
        self._connection.blobs.pop(name, None)

    async def bury(self, model: str, letter: bytes, *, letter_id: str = "") -> None:
        check_payload(letter, self.max_payload)
        broker = self._connection
        if letter_id and letter_id in broker.letter_ids:
            return
        broker.letter_ids.add(letter_id)
        broker.buried += 1
        broker.letters[broker.buried] = (model, letter)

    async def letters(self, model: str = "", *, after: int = 0, limit: int = 100) -> list[Letter]:
        found = [
            Letter(sequence, data)
            for sequence, (name, data) in self._connection.letters.items()
            if sequence > after and model in ("", name)
        ]
        return found[:limit]

    async def forget_letter(self, sequence: int) -> bool:
        return self._connection.letters.pop(sequence, None) is not None

    def on_disconnect(self, handler: Callable[[], None]) -> None:
        """A connection within the process is never lost."""

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

    def __init__(self, watchers: list[MemoryWatcher], handler: WatchHandler, key: str) -> None:
        self._watchers = watchers
        self._handler = handler
        self._key = key
        self.closed = False
        watchers.append(self)

    def tell(self, key: str, value: bytes | None) -> None:
        if not self.closed and self._key in ("", key):
            self._handler(key, value)

    async def close(self) -> None:
        if not self.closed:
            self.closed = True
            self._watchers.remove(self)
