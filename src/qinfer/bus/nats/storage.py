"""What else lies at the broker: blobs, in a JetStream object store (ADR-20), and dead letters."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
from base64 import urlsafe_b64encode
from collections.abc import Awaitable, Callable, Sequence
from hashlib import sha256
from typing import TypeVar

import numpy as np
from nats.js import JetStreamContext
from nats.js.api import (
    DiscardPolicy,
    Header,
    ObjectInfo,
    ObjectMeta,
    ObjectMetaOptions,
    ObjectStoreConfig,
    RetentionPolicy,
    StorageType,
    StreamConfig,
)
from nats.js.errors import APIError, BucketNotFoundError, NoStreamResponseError, NotFoundError
from nats.js.object_store import ObjectStore

from qinfer.bus.base import BLOB_LIFETIME, Data, Letter, check_blob
from qinfer.bus.nats.connection import Connection
from qinfer.errors import BusUnavailable, NotFound
from qinfer.naming import Names

_CHUNK = 512 * 1024
_BLOBS_MAX_BYTES = 2 << 30
_LETTERS_MAX_BYTES = 64 << 20
_LETTERS_LIFETIME = 30 * 24 * 3600.0
_NO_MESSAGE = (10043, 10057)  # sequence not found, or nothing there to delete
_UNREPLICATED = (10074, 10005)  # not a cluster; too few servers in it

_COPIES = 3  # where the broker is a cluster

# Bytes a second that a blob is read with at least, and what is granted on top, before it counts as stuck.
_SLOWEST = 1 << 20
_PATIENCE = 10.0
_SEQUENCE = "Nats-Sequence"

_T = TypeVar("_T")


async def replicated(create: Callable[[int], Awaitable[_T]]) -> _T:
    """Create something at the broker in `_COPIES` copies, or in one where there are fewer servers."""
    try:
        return await create(_COPIES)
    except APIError as error:
        if error.err_code not in _UNREPLICATED:
            raise
        return await create(1)


class Blobs:
    """Data by name, created with the first."""

    def __init__(self, connection: Connection, jetstream: JetStreamContext, names: Names) -> None:
        self._connection = connection
        self._jetstream = jetstream
        self._bucket = names.tensors_bucket
        self._store: ObjectStore | None = None

    async def put(self, name: str, parts: Sequence[Data]) -> None:
        try:
            await self._put(name, parts)
        except NoStreamResponseError:  # the broker came back without it
            self._store = None
            await self._put(name, parts)

    async def _put(self, name: str, parts: Sequence[Data]) -> None:
        meta = ObjectMeta(name=name, options=ObjectMetaOptions(max_chunk_size=_CHUNK))
        await (await self._open()).put(name, _Parts(parts), meta)

    async def get(self, name: str, limit: int) -> Data:
        try:
            info = await (await self._open()).get_info(name)
            size = info.size or 0
            check_blob(name, size, limit)
            async with asyncio.timeout(_PATIENCE + size / _SLOWEST):
                return await self._read(info, size)
        except (NotFoundError, NoStreamResponseError):
            raise NotFound(f"no data is stored under {name!r} (any more)") from None

    async def _read(self, info: ObjectInfo, size: int) -> Data:
        """Read an object chunk by chunk, into memory of its size.

        The client library's own way is a consumer that is pushed all chunks at once: eight times slower, and
        all else on the connection waits behind them.
        """
        data = np.empty(size, np.uint8).data  # unlike a bytearray's, its pages are made as they are filled
        digest = sha256()
        offset = sequence = 0
        while offset < size:
            ask = {"seq": sequence + 1, "next_by_subj": f"$O.{self._bucket}.C.{info.nuid}"}
            message = await self._connection.client.request(
                f"$JS.API.DIRECT.GET.OBJ_{self._bucket}", json.dumps(ask).encode(), timeout=_PATIENCE
            )
            chunk, headers = message.data, message.headers or {}
            if _SEQUENCE not in headers:  # a status: removed meanwhile
                raise NotFound(f"the data stored under {info.name!r} are not complete (any more)")
            if offset + len(chunk) > size:
                raise BusUnavailable(f"more data are stored under {info.name!r} than its size says")
            sequence = int(headers[_SEQUENCE])
            data[offset : offset + len(chunk)] = chunk
            digest.update(chunk)
            offset += len(chunk)
        if info.digest != f"SHA-256={urlsafe_b64encode(digest.digest()).decode()}":
            raise BusUnavailable(f"the data stored under {info.name!r} do not fit their digest")
        return data

    async def delete(self, name: str) -> None:
        # Not the client library's way, which leaves a tombstone: names are never used again.
        with contextlib.suppress(NotFoundError, NoStreamResponseError):
            info = await (await self._open()).get_info(name)
            encoded = urlsafe_b64encode(name.encode()).decode()
            for subject in (f"$O.{self._bucket}.M.{encoded}", f"$O.{self._bucket}.C.{info.nuid}"):
                await self._jetstream.purge_stream(f"OBJ_{self._bucket}", subject=subject)

    async def _open(self) -> ObjectStore:
        if self._store is None:
            try:
                self._store = await self._jetstream.object_store(self._bucket)
            except BucketNotFoundError:
                self._store = await replicated(self._create)
        return self._store

    async def _create(self, replicas: int) -> ObjectStore:
        config = ObjectStoreConfig(
            bucket=self._bucket,
            ttl=BLOB_LIFETIME,
            max_bytes=_BLOBS_MAX_BYTES,
            storage=StorageType.FILE,
            replicas=replicas,
        )
        return await self._jetstream.create_object_store(self._bucket, config)

    def forget(self) -> None:
        """After a reconnect: the bucket may be gone, look it up again."""
        self._store = None


class _Parts(io.BufferedIOBase):
    """Reads several pieces of data as one, copying no more than is asked for. Runs in threads."""

    def __init__(self, parts: Sequence[Data]) -> None:
        self._left = [memoryview(part).cast("B") for part in reversed(parts) if len(part)]

    def readable(self) -> bool:
        return True

    def readinto(self, into: bytearray) -> int:  # type: ignore[override]
        filled = 0
        while self._left and filled < len(into):
            part = self._left.pop()
            count = min(len(part), len(into) - filled)
            into[filled : filled + count] = part[:count]
            filled += count
            if count < len(part):
                self._left.append(part[count:])
        return filled


class DeadLetters:
    """The dead-letter stream of a namespace. The oldest letters make room for new ones."""

    def __init__(self, jetstream: JetStreamContext, names: Names) -> None:
        self._jetstream = jetstream
        self._names = names

    async def bury(self, model: str, letter: bytes, letter_id: str) -> None:
        subject = self._names.dead_letters(model)
        headers = {str(Header.MSG_ID.value): letter_id} if letter_id else None
        try:
            await self._jetstream.publish(subject, letter, headers=headers)
        except NoStreamResponseError:
            await replicated(self._create)
            await self._jetstream.publish(subject, letter, headers=headers)

    async def letters(self, model: str, *, after: int, limit: int) -> list[Letter]:
        found: list[Letter] = []
        while len(found) < limit:
            try:
                message = await self._jetstream.get_msg(
                    self._names.dead_stream,
                    after + 1,
                    subject=self._names.dead_letters(model),
                    next=True,
                )
            except NotFoundError:
                break
            after = message.seq or 0
            found.append(Letter(after, message.data or b""))
        return found

    async def forget(self, sequence: int) -> bool:
        try:
            return await self._jetstream.delete_msg(self._names.dead_stream, sequence)
        except (NotFoundError, APIError) as error:
            if isinstance(error, NotFoundError) or error.err_code in _NO_MESSAGE:
                return False
            raise

    async def _create(self, replicas: int) -> None:
        config = StreamConfig(
            name=self._names.dead_stream,
            subjects=[self._names.dead_letters()],
            retention=RetentionPolicy.LIMITS,
            discard=DiscardPolicy.OLD,
            storage=StorageType.FILE,
            max_bytes=_LETTERS_MAX_BYTES,
            max_age=_LETTERS_LIFETIME,
            num_replicas=replicas,
        )
        await self._jetstream.add_stream(config)
