"""What else a topic may hold, and what else may be wrong."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from aiokafka import AIOKafkaProducer

from qinfer.errors import ModelFailed, ModelNotFound, QInferError, SetupError, Unavailable
from qinfer_workers.kafka.contract import (
    Client,
    Decoded,
    Delivery,
    Limits,
    ModelUse,
    Record,
    Scored,
    Topics,
)
from qinfer_workers.kafka.engine import Engine
from qinfer_workers.kafka.stats import PipelineStats
from tests.helpers import kafka as kafka_cluster
from tests.helpers.kafka import create_topics, topic_name
from tests.helpers.waiting import PATIENCE, eventually
from tests.kafka.support import (
    MODEL,
    RawCodec,
    TestPipeline,
    doubled,
    new_pipeline,
    new_scorer,
    producer,
    read,
    row,
    running,
)

EITHER = pytest.mark.parametrize("delivery", ["at-least-once", "exactly-once"])


async def refused(pipeline: TestPipeline) -> QInferError:
    """The error that a pipeline ends with."""
    engine = Engine(pipeline, new_scorer(pipeline), PipelineStats())
    with pytest.raises(QInferError) as caught:
        await asyncio.wait_for(engine.run(asyncio.Event()), PATIENCE)
    return caught.value


@EITHER
async def test_tombstones_pass(kafka: str, doubling: Path, delivery: Delivery) -> None:
    pipeline = await new_pipeline(kafka, doubling, partitions=1, delivery=delivery)
    async with producer(kafka) as sender:
        for number in range(4):
            value = None if number % 2 else row(number)
            await sender.send(pipeline.topics.sources[0], value, key=b"%d" % number, headers=[("h", b"v")])
        await sender.flush()
    async with running(pipeline):
        found = await read(kafka, pipeline.topics.output, 4)
    assert [record.value for record in found] == [doubled(row(0)), None, doubled(row(2)), None]
    assert all(list(record.headers) == [("h", b"v")] for record in found)


async def test_tombstones_are_dropped_where_asked(kafka: str, doubling: Path) -> None:
    pipeline = await new_pipeline(kafka, doubling, partitions=1, tombstones="drop", delivery="exactly-once")
    async with producer(kafka) as sender:
        for number in range(6):
            value = row(number) if number == 2 else None
            await sender.send(pipeline.topics.sources[0], value, key=b"%d" % number)
        await sender.flush()
    async with running(pipeline) as (_, stats):
        await eventually(lambda: stats.dropped == 5)
        await eventually(lambda: [p.committed for p in stats.progress().values()] == [6])
        found = await read(kafka, pipeline.topics.output, 1)
    assert [record.key for record in found] == [b"2"]


async def test_records_without_key_or_headers(kafka: str, doubling: Path) -> None:
    pipeline = await new_pipeline(kafka, doubling, partitions=1)
    async with producer(kafka) as sender:
        await sender.send_and_wait(pipeline.topics.sources[0], row(1))
        await sender.send_and_wait(pipeline.topics.sources[0], row(2), headers=[("empty", b"")])
    async with running(pipeline) as (_, stats):
        await eventually(lambda: stats.written == 2)
    found = await read(kafka, pipeline.topics.output, 0, settled=True)
    assert [(record.key, record.value) for record in found] == [
        (None, doubled(row(1))),
        (None, doubled(row(2))),
    ]


@EITHER
async def test_timestamps_that_the_topics_refuse(kafka: str, doubling: Path, delivery: Delivery) -> None:
    """A producer's clock is a day ahead, and the source takes it: nothing is lost, nothing stands still."""
    stem = topic_name()
    topics = Topics(sources=[f"{stem}-in"], output=f"{stem}-out", dead=f"{stem}-dead")
    await create_topics(kafka, topics.sources[0], settings={"message.timestamp.after.max.ms": str(1 << 62)})
    await create_topics(kafka, topics.output)
    await create_topics(kafka, topics.dead)
    pipeline = await new_pipeline(kafka, doubling, topics=topics, delivery=delivery)
    now = int(time.time() * 1000)
    tomorrow = now + 86_400_000
    async with producer(kafka) as sender:
        for number, (value, stamp) in enumerate(
            ((row(1), tomorrow), (row(2), now), (b"bad", tomorrow), (row(3), tomorrow))
        ):
            await sender.send_and_wait(topics.sources[0], value, key=b"%d" % number, timestamp_ms=stamp)
    async with running(pipeline):
        found = await read(kafka, topics.output, 3)
        (dead,) = await read(kafka, topics.dead, 1)
    assert [record.value for record in found] == [doubled(row(1)), doubled(row(2)), doubled(row(3))]
    original = ("qinfer-timestamp", b"%d" % tomorrow)
    assert [list(record.headers) for record in found] == [[original], [], [original]]
    assert original in dead.headers
    assert found[1].timestamp == now
    assert all(now <= record.timestamp < tomorrow for record in (*found, dead))


@EITHER
async def test_huge_records(kafka: str, doubling: Path, delivery: Delivery) -> None:
    """Larger than may be decoded, than the dead letters' topic takes, than the output's topic takes."""
    stem = topic_name()
    topics = Topics(sources=[f"{stem}-in"], output=f"{stem}-out", dead=f"{stem}-dead")
    large = {"max.message.bytes": str(4 << 20)}
    await create_topics(kafka, topics.sources[0], settings=large)
    await create_topics(kafka, topics.output, settings={"max.message.bytes": "100000"})
    await create_topics(kafka, topics.dead)
    client = Client(bootstrap=kafka, session_timeout=3.0, consumer={"max_partition_fetch_bytes": 200_000})
    pipeline = await new_pipeline(
        kafka,
        doubling,
        topics=topics,
        client=client,
        delivery=delivery,
        limits=Limits(max_record_bytes=1 << 20, commit_interval_ms=20.0),
        make_codec=Swelling,
    )
    sizes = {b"1": 500_000, b"2": 1_500_000, b"3": 90_000}
    sender = AIOKafkaProducer(bootstrap_servers=kafka, max_request_size=4 << 20)
    await sender.start()
    for key, size in sizes.items():
        await sender.send_and_wait(topics.sources[0], bytes(size), key=key)
    long_key, long_header = bytes(1_200_000), [("long", bytes(1_100_000))]
    await sender.send_and_wait(topics.sources[0], row(5), key=long_key, headers=[("short", b"")])
    await sender.send_and_wait(topics.sources[0], row(6), key=b"6", headers=long_header)
    await sender.send_and_wait(topics.sources[0], row(4), key=b"4")
    await sender.stop()
    async with running(pipeline):
        dead = {record.key: record for record in await read(kafka, topics.dead, 4)}
        found = await read(kafka, topics.output, 2)
    assert [record.key for record in found] == [b"3", b"4"]
    assert set(dead) == {b"1", b"2", None, b"6"}
    assert all(dict(record.headers)["qinfer-reason"] == b"too_large" for record in dead.values())
    assert len(dead[b"1"].value) == 500_000
    assert b"max.message.bytes" in dict(dead[b"1"].headers)["qinfer-message"]
    assert dead[b"2"].value == b""
    assert dict(dead[b"2"].headers)["qinfer-omitted-bytes"] == b"1500000"
    assert dict(dead[b"6"].headers)["qinfer-omitted-bytes"] == b"%d" % (16 + 4 + 1_100_000)
    assert dict(dead[None].headers)["qinfer-omitted-bytes"] == b"%d" % (16 + 5 + 1_200_000)
    assert dict(dead[None].headers)["qinfer-offset"] == b"3"


class Swelling(RawCodec):
    """Takes anything for a row, and gives as many bytes as came in."""

    def decode(self, records: Sequence[Record]) -> Decoded:
        return super().decode([_AsRow(record) for record in records])  # type: ignore[misc]

    def encode(
        self, records: Sequence[Record], decoded: Decoded, scored: Scored, places: Sequence[int]
    ) -> Sequence[bytes]:
        return [bytes(len(records[place].value or b"")) for place in places]


class _AsRow:
    def __init__(self, record: Record) -> None:
        self.value = row(len(record.value or b""))


@pytest.mark.parametrize("missing", ["sources", "output", "dead"])
async def test_a_topic_that_is_not_there_is_named(kafka: str, doubling: Path, missing: str) -> None:
    stem = topic_name()
    names = {"sources": f"{stem}-in", "output": f"{stem}-out", "dead": f"{stem}-dead"}
    await create_topics(kafka, *(name for which, name in names.items() if which != missing))
    topics = Topics(sources=[names["sources"]], output=names["output"], dead=names["dead"])
    error = await refused(await new_pipeline(kafka, doubling, topics=topics))
    assert isinstance(error, SetupError)
    assert names[missing] in error.message
    assert ("to be read" if missing == "sources" else "create_topics") in error.message


async def test_topics_are_created_where_that_is_asked_for(kafka: str, doubling: Path) -> None:
    stem = topic_name()
    topics = Topics(sources=[f"{stem}-in"], output=f"{stem}-out", dead=f"{stem}-dead", create=2)
    await create_topics(kafka, topics.sources[0], partitions=3)
    pipeline = await new_pipeline(kafka, doubling, topics=topics)
    async with producer(kafka) as sender:
        for number in range(30):
            await sender.send(topics.sources[0], row(number), key=b"%d" % number, partition=number % 3)
        await sender.flush()
    async with running(pipeline):
        found = await read(kafka, topics.output, 30)
    # Partition N goes to N modulo two, whole, so that its order stays.
    for record in found:
        assert record.partition == int(record.key) % 3 % 2


async def test_an_unknown_model_is_named(kafka: str, doubling: Path) -> None:
    pipeline = await new_pipeline(kafka, doubling, models=[ModelUse(label="x", name="nobody")])
    error = await refused(pipeline)
    assert isinstance(error, ModelNotFound)
    assert "nobody" in error.message


async def test_an_unknown_version_is_named(kafka: str, doubling: Path) -> None:
    pipeline = await new_pipeline(kafka, doubling, models=[ModelUse(label="x", name=MODEL, version="7")])
    error = await refused(pipeline)
    assert "no version '7'; expected one of 1" in error.message


@EITHER
async def test_without_a_topic_for_dead_letters_the_first_one_stops_it(
    kafka: str, doubling: Path, delivery: Delivery
) -> None:
    stem = topic_name()
    topics = Topics(sources=[f"{stem}-in"], output=f"{stem}-out", dead="")
    await create_topics(kafka, topics.sources[0], topics.output)
    pipeline = await new_pipeline(kafka, doubling, topics=topics, delivery=delivery)
    async with producer(kafka) as sender:
        await sender.send_and_wait(topics.sources[0], b"short", key=b"1")
    error = await refused(pipeline)
    assert isinstance(error, ModelFailed)
    assert f"{topics.sources[0]}/0 offset 0" in error.message


async def test_brokers_that_are_not_there(doubling: Path) -> None:
    topics = Topics(sources=["a"], output="b", dead="c")
    pipeline = TestPipeline(
        topics=topics, client=Client(bootstrap="127.0.0.1:1"), repositories=[doubling], group="g"
    )
    error = await refused(pipeline)
    assert isinstance(error, Unavailable)
    assert "127.0.0.1:1" in error.message


class Slow(RawCodec):
    """Something it needs is away at first."""

    asked = 0

    async def prepare(self, records: Sequence[Record]) -> None:
        type(self).asked += 1
        if type(self).asked < 3:
            raise Unavailable("the registry is away")


async def test_records_wait_for_what_the_codec_needs(kafka: str, doubling: Path) -> None:
    Slow.asked = 0
    pipeline = await new_pipeline(kafka, doubling, partitions=1, make_codec=Slow)
    async with producer(kafka) as sender:
        await sender.send_and_wait(pipeline.topics.sources[0], row(1), key=b"1")
    async with running(pipeline) as (_, stats):
        found = await read(kafka, pipeline.topics.output, 1)
    assert found[0].value == doubled(row(1))
    assert stats.buried == {}


async def test_sasl_over_tls(own_kafka: kafka_cluster.KafkaCluster, doubling: Path) -> None:
    secret = {"sasl_plain_username": kafka_cluster.USER, "sasl_plain_password": kafka_cluster.PASSWORD}
    client = Client(
        bootstrap=own_kafka.secure_bootstrap,
        options={"security_protocol": "SASL_SSL", "sasl_mechanism": "PLAIN", **secret},
        ca_file=str(own_kafka.authority),
        session_timeout=3.0,
    )
    pipeline = await new_pipeline(own_kafka.bootstrap, doubling, partitions=1, client=client)
    async with producer(own_kafka.bootstrap) as sender:
        await sender.send_and_wait(pipeline.topics.sources[0], row(1), key=b"1")
    async with running(pipeline):
        await read(own_kafka.bootstrap, pipeline.topics.output, 1)


@pytest.mark.parametrize("wrong", ["password", "authority"])
async def test_a_wrong_secret_is_not_shown(
    own_kafka: kafka_cluster.KafkaCluster, doubling: Path, wrong: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    password = "wrong-" + kafka_cluster.PASSWORD if wrong == "password" else kafka_cluster.PASSWORD
    client = Client(
        bootstrap=own_kafka.secure_bootstrap,
        options={
            "security_protocol": "SASL_SSL",
            "sasl_mechanism": "PLAIN",
            "sasl_plain_username": kafka_cluster.USER,
            "sasl_plain_password": password,
        },
        ca_file=str(own_kafka.authority) if wrong == "password" else "",
    )
    topics = Topics(sources=["a"], output="b", dead="c")
    pipeline = TestPipeline(topics=topics, client=client, repositories=[doubling], group="g")
    error = await refused(pipeline)
    assert kafka_cluster.PASSWORD not in str(error)
    assert kafka_cluster.PASSWORD not in caplog.text
    assert kafka_cluster.PASSWORD not in repr(client)
