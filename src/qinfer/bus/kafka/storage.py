"""What else lies at the broker: blobs, in chunks with an index of where they are, and dead letters."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator, Sequence
from hashlib import sha256
from typing import Any
from uuid import uuid4

import msgspec
import numpy as np

from qinfer.bus.base import Data, Letter, check_blob
from qinfer.bus.kafka.connection import Connection, Partition
from qinfer.bus.kafka.names import KafkaNames
from qinfer.bus.kafka.reader import Reader
from qinfer.bus.kafka.registry import Registry
from qinfer.bus.kafka.sender import Sender
from qinfer.errors import NotFound
from qinfer.naming import escape

_CHUNK = 512 * 1024
_AT_ONCE = 8  # chunks on their way


class Place(msgspec.Struct, frozen=True):
    """Where a blob lies.

    Attributes:
        partition: of the topic.
        first, last: offsets of its first and last chunk; others' may lie between.
        size: bytes in all.
        digest: SHA-256 of them.
    """

    partition: int
    first: int
    last: int
    size: int
    digest: bytes


_decode_place = msgspec.msgpack.Decoder(Place).decode


class Blobs:
    """Data by name. What is removed is not found any more, and takes its room until it would be forgotten."""

    def __init__(
        self,
        connection: Connection,
        sender: Sender,
        registry: Registry,
        reader: Reader,
        names: KafkaNames,
        *,
        partitions: int,
    ) -> None:
        self._connection = connection
        self._sender = sender
        self._registry = registry
        self._names = names
        self._topic = names.blobs(partitions)
        self._reader = reader

    async def put(self, name: str, parts: Sequence[Data]) -> None:
        await self._connection.ensure([self._topic])
        where: Partition = (self._topic.name, random.randrange(self._topic.partitions))
        key = name.encode()
        digest = sha256()
        offsets: list[int] = []
        size = 0
        sending: list[bytes] = []
        for chunk in _chunks(parts):
            digest.update(chunk)
            size += len(chunk)
            sending.append(chunk)
            if len(sending) == _AT_ONCE:
                offsets += await self._send(where, key, sending)
                sending = []
        offsets += await self._send(where, key, sending)
        first, last = (offsets[0], offsets[-1]) if offsets else (0, -1)
        place = Place(where[1], first, last, size, digest.digest())
        await self._registry.put(self._names.blobs_bucket, name, msgspec.msgpack.encode(place))

    async def _send(self, where: Partition, key: bytes, chunks: Sequence[bytes]) -> list[int]:
        stored = await asyncio.gather(*(self._sender.store(where, chunk, key=key) for chunk in chunks))
        return [each.offset for each in stored]

    async def get(self, name: str, limit: int) -> Data:
        found = await self._registry.get(self._names.blobs_bucket, name)
        if found is None:
            raise NotFound(f"no data is stored under {name!r} (any more)")
        place = _decode_place(found[0])
        check_blob(name, place.size, limit)
        data = np.empty(place.size, np.uint8).data
        key, filled = name.encode(), 0
        where: Partition = (self._topic.name, place.partition)

        def take(record: Any) -> None:
            nonlocal filled
            if record.key == key and filled + len(record.value) <= place.size:
                data[filled : filled + len(record.value)] = record.value
                filled += len(record.value)

        await self._reader.read(where, place.first, place.last, take, size=place.size)
        if filled < place.size or sha256(data).digest() != place.digest:
            raise NotFound(f"the data stored under {name!r} are not complete (any more)")
        return data

    async def delete(self, name: str) -> None:
        await self._registry.delete(self._names.blobs_bucket, name)


def _chunks(parts: Sequence[Data]) -> Iterator[bytes]:
    """The parts as one, cut; no more than a chunk of them is copied at a time."""
    pending = bytearray()
    for part in parts:
        view = memoryview(part).cast("B")
        for start in range(0, len(view), _CHUNK):
            pending += view[start : start + _CHUNK]
            if len(pending) >= _CHUNK:
                yield bytes(pending[:_CHUNK])
                del pending[:_CHUNK]
    if pending:
        yield bytes(pending)


class DeadLetters:
    """Dead letters: a bucket whose revisions are their numbers. The oldest make room for new ones."""

    def __init__(self, registry: Registry, names: KafkaNames) -> None:
        self._registry = registry
        self._bucket = names.letters_bucket

    async def bury(self, model: str, letter: bytes, letter_id: str) -> None:
        key = f"{escape(model)}/{letter_id or uuid4().hex}"
        await self._registry.replace(self._bucket, key, letter, 0)  # void where it lies there already

    async def letters(self, model: str, *, after: int, limit: int) -> list[Letter]:
        prefix = f"{escape(model)}/" if model else ""
        entries = await self._registry.entries(self._bucket)
        wanted = sorted(
            (entry for key, entry in entries.items() if entry.revision > after and key.startswith(prefix)),
            key=lambda entry: entry.revision,
        )
        return [
            Letter(entry.revision, await self._registry.value(self._bucket, entry))
            for entry in wanted[:limit]
        ]

    async def forget(self, sequence: int) -> bool:
        for key, entry in (await self._registry.entries(self._bucket)).items():
            if entry.revision == sequence:
                return bool(await self._registry.replace(self._bucket, key, None, sequence))
        return False
