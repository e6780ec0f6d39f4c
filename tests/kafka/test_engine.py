"""The engine over a real Kafka: what is written, in which order, with what beside it."""

from __future__ import annotations

from pathlib import Path

import pytest

from qinfer_workers.kafka.contract import Client, Delivery
from tests.kafka.support import POISON, doubled, new_pipeline, producer, read, row, running

DELIVERIES = pytest.mark.parametrize("delivery", ["at-least-once", "exactly-once"])


@DELIVERIES
async def test_every_record_is_scored_in_order(kafka: str, doubling: Path, delivery: Delivery) -> None:
    pipeline = await new_pipeline(kafka, doubling, delivery=delivery)
    source = pipeline.topics.sources[0]
    async with producer(kafka) as sender:
        for number in range(300):
            await sender.send(
                source,
                row(number),
                key=b"%d" % number,
                partition=number % 3,
                timestamp_ms=1_700_000_000_000 + number,
                headers=[("trace", b"%d" % number), ("trace", b"again")],
            )
        await sender.flush()
    async with running(pipeline):
        found = await read(kafka, pipeline.topics.output, 300)
    assert len(found) == 300
    for partition in range(3):
        numbers = [int(record.key) for record in found if record.partition == partition]
        assert numbers == list(range(partition, 300, 3))
    for record in found:
        number = int(record.key)
        assert record.value == doubled(row(number))
        assert record.timestamp == 1_700_000_000_000 + number
        assert list(record.headers) == [("trace", b"%d" % number), ("trace", b"again")]


@pytest.mark.parametrize("compression", ["gzip", "snappy", "lz4", "zstd"])
async def test_compressed_records(kafka: str, doubling: Path, compression: str) -> None:
    client = Client(bootstrap=kafka, session_timeout=3.0, producer={"compression_type": compression})
    pipeline = await new_pipeline(kafka, doubling, partitions=1, client=client)
    async with producer(kafka, compression) as sender:
        for number in range(50):
            await sender.send(pipeline.topics.sources[0], row(number), key=b"%d" % number)
        await sender.flush()
    async with running(pipeline):
        found = await read(kafka, pipeline.topics.output, 50)
    assert [record.value for record in found] == [doubled(row(number)) for number in range(50)]


@DELIVERIES
async def test_bad_records_go_to_the_dead_letters(kafka: str, doubling: Path, delivery: Delivery) -> None:
    pipeline = await new_pipeline(kafka, doubling, delivery=delivery, partitions=1)
    source = pipeline.topics.sources[0]
    values = {number: row(number) for number in range(40)}
    values[7] = row(7, first=POISON)
    values[13] = b"short"
    values[29] = row(29, first=POISON)
    async with producer(kafka) as sender:
        for number, value in values.items():
            await sender.send(source, value, key=b"%d" % number, timestamp_ms=number, headers=[("a", b"b")])
        await sender.flush()
    async with running(pipeline) as (_, stats):
        dead = await read(kafka, pipeline.topics.dead, 3)
        found = await read(kafka, pipeline.topics.output, 37)
    assert [int(record.key) for record in found] == [n for n in range(40) if n not in (7, 13, 29)]
    assert [int(record.key) for record in dead] == [7, 13, 29]
    for record in dead:
        number = int(record.key)
        headers = dict(record.headers)
        assert record.value == values[number]
        assert record.timestamp == number
        assert headers["a"] == b"b"
        assert headers["qinfer-topic"] == source.encode()
        assert headers["qinfer-partition"] == b"0"
        assert headers["qinfer-offset"] == b"%d" % number
        assert headers["qinfer-group"] == pipeline.group.encode()
        poisoned = number != 13
        assert headers["qinfer-reason"] == (b"model_failed" if poisoned else b"malformed")
        assert (b"poison" in headers["qinfer-message"]) is poisoned
        assert (int(headers["qinfer-attempts"]) > 1) is poisoned
    assert stats.buried == {"model_failed": 2, "malformed": 1}
