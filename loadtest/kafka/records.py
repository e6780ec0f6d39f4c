"""The records that are scored, and what has to come of them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from aiokafka import AIOKafkaProducer

from loadtest.mlp import Floats, example_rows, reference

_DIFFERENT = 500
"""Different inputs; records repeat them."""

_BATCH_BYTES = 256 * 1024
_AHEAD = 64  # batches on their way

_decode = msgspec.json.Decoder(dict[str, Any]).decode


@dataclass(frozen=True, slots=True)
class Records:
    """Numbered records, with the scores that are right for them.

    Attributes:
        values: the different values: JSON with the field "features", or the raw numbers.
        scores: FP32 [different, 16], by the same onnxruntime without any server.
    """

    values: tuple[bytes, ...]
    scores: Floats

    @classmethod
    def of(cls, model: Path, *, raw: bool = False) -> Records:
        """Records for the model of `loadtest.mlp` at this path; `right` is for those in JSON."""
        rows = example_rows(_DIFFERENT)
        if raw:
            values = tuple(row.tobytes() for row in rows)
        else:
            values = tuple(msgspec.json.encode({"features": row.round(4).tolist()}) for row in rows)
        return cls(values, reference(model, rows))

    def value(self, number: int) -> bytes:
        """The value of a record."""
        return self.values[number % len(self.values)]

    def right(self, number: int, value: bytes) -> bool:
        """Whether a value is the score of a record, up to what batches change in the last digits."""
        found = np.asarray(_decode(value)["score"], np.float32)
        expected = self.scores[number % len(self.values)]
        return found.shape == expected.shape and bool(np.allclose(found, expected, rtol=1e-3, atol=1e-4))


async def send(bootstrap: str, topic: str, records: Records, numbers: range, *, partitions: int) -> None:
    """Write records, each into the partition of its number, with the number as its key."""
    producer = AIOKafkaProducer(
        bootstrap_servers=bootstrap, max_batch_size=_BATCH_BYTES, enable_idempotence=True
    )
    await producer.start()
    try:
        sent: set[asyncio.Future[Any]] = set()
        for partition in range(partitions):
            for batch in _batches(producer, records, numbers, partition, partitions):
                sent.add(await producer.send_batch(batch, topic, partition=partition))
                if len(sent) >= _AHEAD:
                    done, sent = await asyncio.wait(sent, return_when=asyncio.FIRST_COMPLETED)
                    for future in done:
                        future.result()
        await asyncio.gather(*sent)
    finally:
        await producer.stop()


def _batches(
    producer: AIOKafkaProducer, records: Records, numbers: range, partition: int, partitions: int
) -> Iterator[Any]:
    batch = producer.create_batch()
    for number in range(_first(numbers.start, partition, partitions), numbers.stop, partitions):
        fields: dict[str, Any] = {
            "timestamp": None,
            "key": b"%d" % number,
            "value": records.value(number),
            "headers": [],
        }
        if batch.append(**fields) is None:
            yield batch
            batch = producer.create_batch()
            batch.append(**fields)
    if batch.record_count():
        yield batch


def _first(start: int, partition: int, partitions: int) -> int:
    """The first number from `start` on that belongs to a partition."""
    return start + (partition - start) % partitions
