"""The bus on NATS: see `qinfer.bus.base` for the contract.

One wildcard subscription receives all that comes back to this connection: `<inbox>.r` replies,
`<inbox>.p.<n>` the broker's publish acknowledgements.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import partial

import nats.errors
from nats.aio.msg import Msg
from nats.js.api import (
    AckPolicy,
    ConsumerConfig,
    DiscardPolicy,
    Header,
    RetentionPolicy,
    StorageType,
    StreamConfig,
)
from nats.js.errors import APIError, NoStreamResponseError

from qinfer.bus.base import (
    AnswerHandler,
    Bus,
    Data,
    DeliveryHandler,
    Letter,
    QueueSpec,
    RefusedHandler,
    ReplyHandler,
    WatchHandler,
    check_payload,
)
from qinfer.bus.nats import questions
from qinfer.bus.nats.confirmations import NO_QUEUE, Confirmations, refusal
from qinfer.bus.nats.connection import Connection
from qinfer.bus.nats.consumer import NatsConsumer, state_of
from qinfer.bus.nats.registry import NatsListener, NatsWatcher, Registry
from qinfer.bus.nats.services import Services
from qinfer.bus.nats.storage import Blobs, DeadLetters
from qinfer.bus.nats.table import NatsTable, Tables
from qinfer.bus.nats.trouble import patiently, unavailable
from qinfer.bus.security import NatsSecurity
from qinfer.bus.services import Service
from qinfer.bus.table import Backlog
from qinfer.errors import BusUnavailable, NoWorker, QInferError
from qinfer.lifecycle import cancelled
from qinfer.naming import ANSWER_LIFETIME, Names, check_reply

logger = logging.getLogger(__name__)

_API_TIMEOUT = 5.0
_RETRY_WAIT = 0.5
_ERR_STREAM_EXISTS = 10058


class NatsBus(Bus):
    """A connection to a NATS server or cluster with JetStream."""

    def __init__(
        self, servers: Sequence[str], *, names: Names, name: str, security: NatsSecurity | None = None
    ) -> None:
        self.names = names
        self._connection = Connection(servers, name=name, security=security)
        self._reply_handler: ReplyHandler | None = None
        self._confirmations = Confirmations()
        self._subjects: dict[tuple[str, str], str] = {}
        self._queues: dict[str, QueueSpec] = {}
        self._consumers: dict[tuple[str, str], NatsConsumer] = {}
        self._watchers: list[NatsWatcher] = []
        self._restoring: asyncio.Task[None] | None = None
        self._closed = False

    @property
    def connected(self) -> bool:
        return self._connection.connected

    async def start(self) -> None:
        await self._connection.start()
        client = self._connection.client
        self.max_payload = client.max_payload
        self._inbox = client.new_inbox()
        self.reply_to = f"{self._inbox}.r"
        self._confirm_prefix = f"{self._inbox}.p."
        self._jetstream = client.jetstream(timeout=_API_TIMEOUT)
        self._registry = Registry(self._connection, self._jetstream, self.names)
        self._blobs = Blobs(self._connection, self._jetstream, self.names)
        self._services = Services(self._connection)
        self._letters = DeadLetters(self._jetstream, self.names)
        self._tables = Tables(self._connection, self._jetstream, max_payload=self.max_payload)
        self._connection.on_reconnect(self._reconnected)
        self._connection.on_look(self._look)
        await client.subscribe(
            f"{self._inbox}.>", cb=self._receive, pending_msgs_limit=0, pending_bytes_limit=0
        )

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._restoring is not None:
            await cancelled(self._restoring)
        await self._connection.close()

    # Requests

    def publish(self, model: str, version: str, frame: bytes, refused: RefusedHandler) -> None:
        check_payload(frame, self.max_payload)
        key = (model, version)
        subject = self._subjects.get(key)
        if subject is None:
            subject = self._subjects[key] = self.names.requests(model, version)
        number = self._confirmations.add(refused)
        try:
            self._connection.publish(subject, frame, f"{self._confirm_prefix}{number}")
        except QInferError:
            self._confirmations.withdraw(number)
            raise

    async def enqueue(self, model: str, version: str, frame: bytes, *, message_id: str = "") -> bool:
        check_payload(frame, self.max_payload)
        headers = {str(Header.MSG_ID.value): message_id} if message_id else None
        with self._translated():
            try:
                confirmed = await self._jetstream.publish(
                    self.names.requests(model, version), frame, headers=headers
                )
            except NoStreamResponseError:
                raise NoWorker(NO_QUEUE, retry_after=1.0) from None
            except APIError as error:
                raise refusal(error.err_code or 0, error.description or "") from error
        return not confirmed.duplicate

    def on_reply(self, handler: ReplyHandler) -> None:
        self._reply_handler = handler

    async def declare(self, model: str, spec: QueueSpec) -> None:
        self._queues[model] = spec
        await patiently(partial(self._declare, model, spec))

    async def _declare(self, model: str, spec: QueueSpec) -> None:
        config = StreamConfig(
            name=self.names.stream(model),
            subjects=[self.names.stream_subjects(model)],
            retention=RetentionPolicy.WORK_QUEUE,
            discard=DiscardPolicy.NEW,
            max_msgs=spec.max_messages,
            max_bytes=spec.max_bytes,
            storage=StorageType.MEMORY if spec.storage == "memory" else StorageType.FILE,
            num_replicas=spec.replicas,
            duplicate_window=ANSWER_LIFETIME,  # costs nothing for frames without an id
        )
        try:
            await self._jetstream.add_stream(config)
        except APIError as error:
            if error.err_code != _ERR_STREAM_EXISTS:
                raise
            await self._update_stream(config)

    async def _update_stream(self, config: StreamConfig) -> None:
        """Bring an existing stream to its configuration; what cannot be changed in place is kept."""
        info = await self._jetstream.stream_info(str(config.name))
        if info.config.storage != config.storage:
            logger.warning("queue %s stays in %s storage: it exists", config.name, info.config.storage)
            config = config.evolve(storage=info.config.storage)
        await self._jetstream.update_stream(config)

    async def consume(self, model: str, version: str, handler: DeliveryHandler) -> NatsConsumer:
        await patiently(partial(self._add_consumer, model, version))
        consumer = NatsConsumer(
            self._connection,
            stream=self.names.stream(model),
            consumer=self.names.consumer(version),
            inbox=self._connection.client.new_inbox(),
            handler=handler,
            missing=self._mend,
        )
        await consumer.start()
        self._consumers[model, version] = consumer
        return consumer

    async def _add_consumer(self, model: str, version: str) -> None:
        config = ConsumerConfig(
            durable_name=self.names.consumer(version),
            filter_subject=self.names.requests(model, version),
            ack_policy=AckPolicy.EXPLICIT,
            ack_wait=self._queues[model].ack_wait,
            max_ack_pending=-1,  # what is out at workers is bounded by their credit
            max_waiting=4096,
        )
        await self._jetstream.add_consumer(self.names.stream(model), config)

    async def clock_us(self, model: str) -> int:
        # The leader of the stream answers, and it is the one that stores the frames.
        subject = f"$JS.API.STREAM.INFO.{self.names.stream(model)}"
        try:
            answer = await self._connection.client.request(subject, timeout=_API_TIMEOUT)
            return round(datetime.fromisoformat(json.loads(answer.data)["ts"]).timestamp() * 1e6)
        except (nats.errors.Error, OSError) as error:
            raise unavailable(error) from error
        except (ValueError, KeyError, TypeError) as error:
            raise BusUnavailable("the broker does not tell its time; expected nats-server 2.10") from error

    async def queued(self, model: str, version: str) -> int:
        with self._translated():
            state = await state_of(self._jetstream, self.names.stream(model), self.names.consumer(version))
        return state.waiting + state.unended

    async def backlog(self, model: str, version: str) -> Backlog:
        with self._translated():
            state = await state_of(self._jetstream, self.names.stream(model), self.names.consumer(version))
        return Backlog(state.waiting, state.delivered)

    def reply(self, reply_to: str, frame: bytes) -> None:
        check_payload(frame, self.max_payload)
        self._connection.publish(check_reply(reply_to), frame)
        if not self._connection.settled:
            raise BusUnavailable("sent right after a reconnect, before whoever asked was surely back")

    async def _receive(self, message: Msg) -> None:
        subject = message.subject
        if subject == self.reply_to:
            if self._reply_handler is not None:
                self._reply_handler(message.data)
        elif subject.startswith(self._confirm_prefix):
            self._confirmations.receive(int(subject[len(self._confirm_prefix) :]), message)

    # Cancellation

    def cancel(self, model: str, notice: bytes) -> None:
        check_payload(notice, self.max_payload)
        self._connection.publish(self.names.cancellations(model), notice)

    async def on_cancel(self, model: str, handler: ReplyHandler) -> NatsListener:
        async def receive(message: Msg) -> None:
            handler(message.data)

        with self._translated():
            client = self._connection.client
            return NatsListener(await client.subscribe(self.names.cancellations(model), cb=receive))

    # Questions

    async def ask(self, topic: str, question: bytes, *, answers: int, timeout: float) -> list[bytes]:
        if answers <= 0:
            return []
        return await questions.ask(
            self._connection, self.names.control(topic), question, answers=answers, timeout=timeout
        )

    async def answer(self, topic: str, handler: AnswerHandler) -> None:
        async def receive(message: Msg) -> None:
            self._connection.publish(message.reply, await handler(message.data))

        await self._connection.client.subscribe(self.names.control(topic), cb=receive)
        await self._connection.client.flush()  # whoever asks from now on is heard

    async def advertise(self, services: Sequence[Service]) -> None:
        await self._services.replace(services)

    # Registry

    async def put(self, bucket: str, key: str, value: bytes) -> None:
        with self._translated():
            await self._registry.put(bucket, key, value)

    async def delete(self, bucket: str, key: str) -> None:
        with self._translated():
            await self._registry.delete(bucket, key)

    async def get(self, bucket: str, key: str) -> tuple[bytes, int] | None:
        with self._translated():
            return await self._registry.get(bucket, key)

    async def replace(self, bucket: str, key: str, value: bytes, revision: int) -> bool:
        with self._translated():
            return await self._registry.replace(bucket, key, value, revision)

    async def watch(self, bucket: str, handler: WatchHandler, key: str = "") -> NatsWatcher:
        with self._translated():
            watcher = await self._registry.watch(bucket, handler, key)
        self._watchers = [known for known in self._watchers if not known.closed]
        self._watchers.append(watcher)
        return watcher

    # Tables, blobs and dead letters

    def table(self, name: str, *, max_bytes: int = -1) -> NatsTable:
        return self._tables.open(name, max_bytes)

    async def put_blob(self, name: str, *parts: Data) -> None:
        with self._translated():
            try:
                await self._blobs.put(name, parts)
            except APIError as error:
                what = "the store of large tensors"
                raise refusal(error.err_code or 0, error.description or "", what=what) from error

    async def get_blob(self, name: str, *, limit: int) -> Data:
        with self._translated():
            return await self._blobs.get(name, limit)

    async def delete_blob(self, name: str) -> None:
        with self._translated():
            await self._blobs.delete(name)

    async def bury(self, model: str, letter: bytes, *, letter_id: str = "") -> None:
        check_payload(letter, self.max_payload)
        with self._translated():
            await self._letters.bury(model, letter, letter_id)

    async def letters(self, model: str = "", *, after: int = 0, limit: int = 100) -> list[Letter]:
        with self._translated():
            return await self._letters.letters(model, after=after, limit=limit)

    async def forget_letter(self, sequence: int) -> bool:
        with self._translated():
            return await self._letters.forget(sequence)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Errors of the client library as ours; and no waiting for a connection that is down."""
        if not self._connection.connected:
            raise BusUnavailable("the connection to the broker is down", retry_after=1.0)
        try:
            yield
        except (nats.errors.Error, OSError, TimeoutError) as error:
            raise unavailable(error) from error

    # Reconnect

    def on_disconnect(self, handler: Callable[[], None]) -> None:
        self._connection.on_disconnect(handler)

    def on_reconnect(self, handler: Callable[[], None]) -> None:
        self._connection.on_reconnect(handler)

    def _look(self) -> None:
        self._confirmations.look()
        for consumer in self._consumers.values():
            consumer.look()

    def _reconnected(self) -> None:
        self._confirmations.reconnected()
        if self._restoring is not None:
            self._restoring.cancel()
        self._restoring = asyncio.create_task(self._restore())

    def _mend(self) -> None:
        """Something of ours is not at the broker any more, though the connection was never lost."""
        if self._restoring is None or self._restoring.done():
            logger.warning("a queue of this worker is gone from the broker; making it anew")
            self._restoring = asyncio.create_task(self._restore())

    async def _restore(self) -> None:
        """Go on after an outage. What is still there need not wait for what has to be made anew."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._pull_again())
            group.create_task(self._remake())

    async def _pull_again(self) -> None:
        await self._connection.settle()
        self._confirmations.give_up_doubtful()
        for consumer in self._consumers.values():
            consumer.reset()

    async def _remake(self) -> None:
        """Make anew what the broker may have forgotten; try until it can."""
        self._registry.forget()
        self._blobs.forget()
        self._tables.forget()
        while not self._closed:
            try:
                await self._remake_once()
                return
            except (QInferError, nats.errors.Error, OSError) as error:
                logger.warning("the broker is there but not ready: %s", error)
                await asyncio.sleep(_RETRY_WAIT)

    async def _remake_once(self) -> None:
        for model, spec in list(self._queues.items()):
            await self._declare(model, spec)
        for (model, version), consumer in list(self._consumers.items()):
            if not consumer.closed:
                await self._add_consumer(model, version)
        for watcher in list(self._watchers):
            if not watcher.closed:
                await watcher.refresh()
        await self._tables.refresh()
