"""Registry buckets: JetStream key-value (ADR-8), watched on core NATS.

A watch is a plain subscription to the bucket's subjects plus a snapshot, taken at the start and after each
reconnect. Entries may be seen twice, never missed for longer than an outage; no ordered consumer has to be
kept alive.
"""

from __future__ import annotations

import asyncio
import contextlib
from functools import partial

from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.js import JetStreamContext
from nats.js.api import DiscardPolicy, KeyValueConfig, StorageType
from nats.js.errors import APIError, KeyWrongLastSequenceError, NoStreamResponseError, NotFoundError
from nats.js.kv import KeyValue

from qinfer.bus.base import Watcher, WatchHandler
from qinfer.bus.nats.connection import Connection
from qinfer.bus.nats.storage import replicated
from qinfer.naming import Names

_OPERATION = "KV-Operation"
_PUT_TIMEOUT = 2.0  # whoever renews an entry every few seconds must not be held up for longer


class Registry:
    """Key-value buckets of one namespace, created on first use."""

    def __init__(self, connection: Connection, jetstream: JetStreamContext, names: Names) -> None:
        self._names = names
        self._connection = connection
        self._jetstream = jetstream
        self._buckets: dict[str, KeyValue] = {}

    async def put(self, bucket: str, key: str, value: bytes) -> None:
        if bucket not in self._buckets:
            # To look the bucket up takes long when a member of a cluster died. Those who watch hear of the
            # entry all the same, and do not take whoever renews it for dead (`WORKER_LIFETIME`).
            self._connection.publish(f"$KV.{bucket}.{key}", value)
        async with asyncio.timeout(_PUT_TIMEOUT):
            try:
                await (await self._bucket(bucket)).put(key, value)
            except NoStreamResponseError:
                # A broker that came back without its storage: make the bucket anew.
                self._buckets.pop(bucket, None)
                await (await self._bucket(bucket)).put(key, value)

    async def replace(self, bucket: str, key: str, value: bytes, revision: int) -> bool:
        try:
            await (await self._bucket(bucket)).update(key, value, last=revision)
        except KeyWrongLastSequenceError:
            return False
        return True

    async def delete(self, bucket: str, key: str) -> None:
        with contextlib.suppress(NotFoundError, NoStreamResponseError):
            await (await self._bucket(bucket)).delete(key)

    async def get(self, bucket: str, key: str) -> tuple[bytes, int] | None:
        try:
            entry = await (await self._bucket(bucket)).get(key)
        except NotFoundError:  # nothing under the key, or it was deleted
            return None
        return entry.value or b"", entry.revision or 0

    async def watch(self, bucket: str, handler: WatchHandler, key: str) -> NatsWatcher:
        watcher = NatsWatcher(self, bucket, handler, key)
        await watcher.start(self._connection)
        return watcher

    async def snapshot(self, bucket: str, key: str) -> list[tuple[str, bytes]]:
        """All entries of a bucket, or the one of `key`."""
        if key:
            entry = await self.get(bucket, key)
            return [] if entry is None else [(key, entry[0])]
        await self._bucket(bucket)
        stream, prefix = f"KV_{bucket}", f"$KV.{bucket}."
        info = await self._jetstream.stream_info(stream, subjects_filter=f"{prefix}>")
        entries = await asyncio.gather(
            *(self._last(stream, subject) for subject in info.state.subjects or {})
        )
        return [(subject[len(prefix) :], value) for subject, value in entries if value is not None]

    async def _last(self, stream: str, subject: str) -> tuple[str, bytes | None]:
        try:
            message = await self._jetstream.get_last_msg(stream, subject)
        except NotFoundError:
            return subject, None
        removed = message.headers and _OPERATION in message.headers
        return subject, None if removed else (message.data or b"")

    async def _bucket(self, name: str) -> KeyValue:
        bucket = self._buckets.get(name)
        if bucket is None:
            try:
                bucket = await self._jetstream.key_value(name)
            except NotFoundError:
                try:
                    bucket = await replicated(partial(self._create, name))
                except APIError:  # another process was faster
                    bucket = await self._jetstream.key_value(name)
            self._buckets[name] = bucket
        return bucket

    async def _create(self, name: str, replicas: int) -> KeyValue:
        capacity = self._names.capacity(name)
        config = KeyValueConfig(
            bucket=name,
            max_bytes=capacity,
            history=1,
            storage=StorageType.FILE,
            ttl=self._names.lifetime(name),
            replicas=replicas,
        )
        bucket = await self._jetstream.create_key_value(config)
        if capacity is not None:  # by itself it would refuse what is new
            info = await self._jetstream.stream_info(f"KV_{name}")
            await self._jetstream.update_stream(info.config.evolve(discard=DiscardPolicy.OLD))
        return bucket

    def forget(self) -> None:
        """After a reconnect: the buckets may be gone, look them up again."""
        self._buckets.clear()


class NatsWatcher(Watcher):
    """A subscription to a bucket's subjects, or to one key's."""

    def __init__(self, registry: Registry, bucket: str, handler: WatchHandler, key: str) -> None:
        self._registry = registry
        self._bucket = bucket
        self._handler = handler
        self._key = key
        self._subscription: Subscription | None = None

    @property
    def closed(self) -> bool:
        return self._subscription is None

    async def start(self, connection: Connection) -> None:
        subject = f"$KV.{self._bucket}.{self._key or '>'}"
        self._subscription = await connection.client.subscribe(subject, cb=self._receive)
        await connection.client.flush()  # subscribed for sure before the snapshot is taken
        await self.refresh()

    async def refresh(self) -> None:
        for key, value in await self._registry.snapshot(self._bucket, self._key):
            self._handler(key, value)

    async def close(self) -> None:
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            await subscription.unsubscribe()

    async def _receive(self, message: Msg) -> None:
        key = message.subject.split(".", 2)[2]
        removed = message.headers is not None and _OPERATION in message.headers
        self._handler(key, None if removed else message.data)


class NatsListener(Watcher):
    """A plain subscription."""

    def __init__(self, subscription: Subscription) -> None:
        self._subscription: Subscription | None = subscription

    async def close(self) -> None:
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            await subscription.unsubscribe()
