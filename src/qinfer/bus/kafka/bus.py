"""The bus on Kafka: see `qinfer.bus.base` for the contract, and `docs/kafka-bus.md` for what differs.

A topic for each version of a model, one for all answers, in which a connection has a partition, one that
everybody listens to, and one for each registry bucket.
"""

from __future__ import annotations

import asyncio
import logging
import random
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any
from uuid import uuid4

from qinfer.bus.base import (
    AnswerHandler,
    Bus,
    Data,
    DeliveryHandler,
    Guarantees,
    Letter,
    QueueSpec,
    RefusedHandler,
    ReplyHandler,
    Watcher,
    WatchHandler,
    check_payload,
)
from qinfer.bus.kafka.connection import Connection, Partition
from qinfer.bus.kafka.consumer import KafkaConsumer
from qinfer.bus.kafka.names import RESERVED, KafkaNames
from qinfer.bus.kafka.options import KafkaOptions
from qinfer.bus.kafka.questions import Questions
from qinfer.bus.kafka.queues import Queues
from qinfer.bus.kafka.reader import Reader
from qinfer.bus.kafka.registry import Registry
from qinfer.bus.kafka.security import KafkaSecurity
from qinfer.bus.kafka.sender import Headers, Sender, Stored
from qinfer.bus.kafka.storage import Blobs, DeadLetters
from qinfer.bus.kafka.table import KafkaTable, Sweeper
from qinfer.bus.kafka.tail import Tail
from qinfer.bus.table import Backlog
from qinfer.errors import BusUnavailable, InvalidRequest, QInferError
from qinfer.lifecycle import cancelled
from qinfer.naming import Names, check_reply

logger = logging.getLogger(__name__)

_INBOX = re.compile(r"_INBOX\.kafka\.(\d{1,5})\.([0-9a-f]{32})")


class KafkaBus(Bus):
    """A connection to a Kafka cluster.

    Args:
        servers: "host:port" of some of the brokers.
        names: of the namespace.
        name: what brokers show this connection as.
        options: how topics are made.
        security: TLS and credentials.
    """

    guarantees = Guarantees(order=False, fair=False, backlog=False, silence=False)

    def __init__(
        self,
        servers: Sequence[str],
        *,
        names: Names,
        name: str,
        options: KafkaOptions,
        security: KafkaSecurity | None = None,
    ) -> None:
        self.names = names
        self.max_payload = options.max_payload
        self._options = options
        self._topics = KafkaNames(names, max_payload=options.max_payload)
        self._connection = Connection(
            servers,
            name=name,
            security=security or KafkaSecurity(),
            largest=options.max_payload + RESERVED,
            replicas=options.replicas,
        )
        self._replies = self._topics.replies(options.reply_partitions)
        self._token = uuid4().hex
        self._inbox: Partition = (self._replies.name, random.randrange(options.reply_partitions))
        self.reply_to = f"_INBOX.kafka.{self._inbox[1]}.{self._token}"
        self._reply_handler: ReplyHandler | None = None
        self._consumers: set[KafkaConsumer] = set()
        self._sweeping: asyncio.Task[None] | None = None
        self._started = False

    @property
    def connected(self) -> bool:
        return self._connection.connected

    async def start(self) -> None:
        await self._connection.start()
        self._started = True
        self._loop = asyncio.get_running_loop()
        names = self._topics
        control = names.control()
        self._control: Partition = (control.name, 0)
        self._sender = Sender(self._connection)
        self._tail = Tail(self._connection, self._nudge)
        self._reader = Reader(self._connection)
        self._registry = Registry(self._connection, self._sender, self._tail, self._reader, names)
        self._sweeper = Sweeper(self._connection, self._registry)
        self._queues = Queues(
            self._connection, self._sender, self._registry, names, partitions=self._options.partitions
        )
        self._blobs = Blobs(
            self._connection,
            self._sender,
            self._registry,
            self._reader,
            names,
            partitions=self._options.partitions,
        )
        self._letters = DeadLetters(self._registry, names)
        self._questions = Questions(
            self._sender, self._control, reply_to=self.reply_to, reply=self._send_reply
        )
        try:
            await self._listen([self._replies, control])
        except BaseException:
            await self.close()
            raise

    async def _listen(self, topics: Sequence[Any]) -> None:
        self._sender.start()
        await self._connection.ensure(topics)
        await self._tail.start()
        ends = await self._connection.ends([self._inbox, self._control])
        self._tail.follow(self._inbox, ends[self._inbox], self._receive)
        self._tail.follow(self._control, ends[self._control], self._questions.receive)

    async def close(self) -> None:
        if not self._started:
            return
        self._started = False
        for consumer in list(self._consumers):
            await consumer.abandon()
        await self._questions.close()
        await self._queues.close()
        await self._sender.close()
        if self._sweeping is not None:
            await cancelled(self._sweeping)
        await self._reader.close()
        await self._tail.close()
        await self._connection.close()

    # Requests

    def publish(self, model: str, version: str, frame: bytes, refused: RefusedHandler) -> None:
        check_payload(frame, self.max_payload)
        self._check()

        def placed(partition: Partition) -> None:
            try:
                self._sender.send(partition, frame, done=partial(_tell, refused))
            except QInferError as error:
                self._loop.call_soon(refused, error)

        self._queues.place(model, version, len(frame), placed, refused)

    async def enqueue(self, model: str, version: str, frame: bytes, *, message_id: str = "") -> bool:
        check_payload(frame, self.max_payload)
        self._check()
        return await self._queues.publish_once(model, version, frame, message_id)

    def on_reply(self, handler: ReplyHandler) -> None:
        self._reply_handler = handler

    async def declare(self, model: str, spec: QueueSpec) -> None:
        self._check()
        await self._queues.declare(model, spec)

    async def consume(self, model: str, version: str, handler: DeliveryHandler) -> KafkaConsumer:
        self._check()
        declared = await self._queues.find(model)
        consumer = KafkaConsumer(
            self._connection,
            self._sender,
            self._queues,
            topic=await self._queues.prepare(model, version, declared),
            version=version,
            ack_wait=declared.ack_wait,
            session=self._options.session_ms / 1000,
            handler=handler,
            closed=self._consumers.discard,
        )
        self._consumers.add(consumer)
        try:
            await consumer.start()
        except BaseException:
            await consumer.abandon()
            raise
        return consumer

    async def clock_us(self, model: str) -> int:  # noqa: ARG002 (all brokers have to show the same time)
        self._check()
        stored = await self._sender.store(self._control, None, key=b"clock")
        return stored.stored_ms * 1000

    async def queued(self, model: str, version: str) -> int:
        self._check()
        found = await self._queues.of_version(model, version)
        return sum(max(0, end - at.done_before - at.done) for at, end in found)

    async def backlog(self, model: str, version: str) -> Backlog:
        self._check()
        found = await self._queues.of_version(model, version)
        return Backlog(
            waiting=sum(max(0, end - at.highest) for at, end in found),
            delivered=sum(at.deliveries for at, _ in found),
        )

    def reply(self, reply_to: str, frame: bytes) -> None:
        check_payload(frame, self.max_payload)
        self._check()
        self._send_reply(reply_to, frame, ())

    def _send_reply(self, reply_to: str, frame: bytes, headers: Headers) -> None:
        match = _INBOX.fullmatch(check_reply(reply_to))
        if match is None or int(match[1]) >= self._replies.partitions:
            raise InvalidRequest(f"reply subject {reply_to[:80]!r} is not an inbox of this Kafka bus")
        partition = (self._replies.name, int(match[1]))
        self._sender.send(partition, frame, key=match[2].encode(), headers=headers)

    def _nudge(self) -> None:
        self._sender.send(self._inbox, None, key=b"")

    def _receive(self, record: Any) -> None:
        if record.key != self._token.encode():
            return  # somebody else's, in the same partition
        if record.headers and self._questions.answered(dict(record.headers), record.value):
            return
        if self._reply_handler is not None:
            self._reply_handler(record.value)

    # Cancellation

    def cancel(self, model: str, notice: bytes) -> None:
        check_payload(notice, self.max_payload)
        self._check()
        self._questions.cancel(model, notice)

    async def on_cancel(self, model: str, handler: ReplyHandler) -> Watcher:
        self._check()
        return self._questions.on_cancel(model, handler)

    # Questions

    async def ask(self, topic: str, question: bytes, *, answers: int, timeout: float) -> list[bytes]:
        self._check()
        return await self._questions.ask(topic, question, answers=answers, timeout=timeout)

    async def answer(self, topic: str, handler: AnswerHandler) -> None:
        self._check()
        self._questions.answer(topic, handler)

    # Registry

    async def put(self, bucket: str, key: str, value: bytes) -> None:
        self._check()
        await self._registry.put(bucket, key, value)

    async def delete(self, bucket: str, key: str) -> None:
        self._check()
        await self._registry.delete(bucket, key)

    async def get(self, bucket: str, key: str) -> tuple[bytes, int] | None:
        self._check()
        return await self._registry.get(bucket, key)

    async def replace(self, bucket: str, key: str, value: bytes, revision: int) -> bool:
        self._check()
        return bool(await self._registry.replace(bucket, key, value, revision))

    async def watch(self, bucket: str, handler: WatchHandler, key: str = "") -> Watcher:
        self._check()
        return await self._registry.watch(bucket, handler, key)

    def table(self, name: str, *, max_bytes: int = -1) -> KafkaTable:
        self._check()
        self._sweeper.tables.add(name)
        if self._sweeping is None:
            self._sweeping = asyncio.create_task(self._sweeper.work(), name="kafka tables")
        return KafkaTable(
            self._connection, self._registry, name, max_bytes=max_bytes, max_payload=self.max_payload
        )

    # Blobs and dead letters

    async def put_blob(self, name: str, *parts: Data) -> None:
        self._check()
        await self._blobs.put(name, parts)

    async def get_blob(self, name: str, *, limit: int) -> Data:
        self._check()
        return await self._blobs.get(name, limit)

    async def delete_blob(self, name: str) -> None:
        self._check()
        await self._blobs.delete(name)

    async def bury(self, model: str, letter: bytes, *, letter_id: str = "") -> None:
        check_payload(letter, self.max_payload)
        self._check()
        await self._letters.bury(model, letter, letter_id)

    async def letters(self, model: str = "", *, after: int = 0, limit: int = 100) -> list[Letter]:
        self._check()
        return await self._letters.letters(model, after=after, limit=limit)

    async def forget_letter(self, sequence: int) -> bool:
        self._check()
        return await self._letters.forget(sequence)

    def on_disconnect(self, handler: Callable[[], None]) -> None:
        self._connection.on_disconnect(handler)

    def on_reconnect(self, handler: Callable[[], None]) -> None:
        self._connection.on_reconnect(handler)

    def _check(self) -> None:
        if not self._started:
            raise BusUnavailable("the bus is closed")
        self._connection.check()


def _tell(refused: RefusedHandler, _: Stored | None, error: QInferError | None) -> None:
    if error is not None:
        refused(error)
