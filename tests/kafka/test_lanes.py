"""What is written when: order, commits, transactions that end, and where a partition is begun."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, RecordsToDelete
from aiokafka.errors import GroupCoordinatorNotAvailableError, KafkaError
from aiokafka.structs import OffsetAndMetadata

from qinfer.errors import BusUnavailable, ModelFailed
from qinfer_workers.kafka.clients import new_consumer
from qinfer_workers.kafka.contract import (
    BadRecord,
    Client,
    Decoded,
    Delivery,
    Limits,
    Record,
    Scored,
    Topics,
    Window,
)
from qinfer_workers.kafka.engine import Engine
from qinfer_workers.kafka.group import Group, Part
from qinfer_workers.kafka.progress import committed
from qinfer_workers.kafka.sinks import PlainSink
from qinfer_workers.kafka.stats import PipelineStats
from qinfer_workers.kafka.topics import Destination
from tests.helpers.kafka import create_topics, topic_name
from tests.helpers.waiting import PATIENCE, eventually
from tests.kafka.support import RawCodec, new_pipeline, new_scorer, producer, read, row, running

A_WHILE = 0.2
"""Seconds in which something that must not happen would."""

EITHER = pytest.mark.parametrize("delivery", ["at-least-once", "exactly-once"])


async def send(bootstrap: str, topic: str, numbers: range) -> None:
    async with producer(bootstrap) as sender:
        for number in numbers:
            await sender.send(topic, row(number), key=b"%d" % number, partition=0)
        await sender.flush()


async def ends(bootstrap: str, topic: str) -> tuple[int, int]:
    """Where those stand who read what is committed, and those who read anything."""
    found = []
    for isolation in ("read_committed", "read_uncommitted"):
        consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap, isolation_level=isolation)
        await consumer.start()
        source = TopicPartition(topic, 0)
        found.append((await consumer.end_offsets([source]))[source])
        await consumer.stop()
    return found[0], found[1]


class Overtaken(RawCodec):
    """The first group is not ready before it may be."""

    may = threading.Event()

    def encode(
        self, records: Sequence[Record], decoded: Decoded, scored: Scored, places: Sequence[int]
    ) -> Sequence[bytes | BadRecord]:
        if records[0].offset == 0:
            assert self.may.wait(PATIENCE)
        return super().encode(records, decoded, scored, places)


@EITHER
async def test_a_group_that_is_ready_early_waits_for_its_turn(
    kafka: str, doubling: Path, delivery: Delivery
) -> None:
    Overtaken.may.clear()
    pipeline = await new_pipeline(
        kafka,
        doubling,
        partitions=1,
        delivery=delivery,
        make_codec=Overtaken,
        window=Window(max_rows=8, max_delay_ms=0.0),
    )
    await send(kafka, pipeline.topics.sources[0], range(40))
    async with running(pipeline) as (_, stats):
        await eventually(lambda: stats.stages["encode"].count)
        began = asyncio.get_running_loop().time()
        await eventually(lambda: asyncio.get_running_loop().time() - began > A_WHILE)
        Overtaken.may.set()
        found = await read(kafka, pipeline.topics.output, 40)
    assert [int(record.key) for record in found] == list(range(40))


async def test_progress_is_committed_when_the_results_are_stored(kafka: str) -> None:
    topic = topic_name()
    await create_topics(kafka, topic)
    source = TopicPartition("source", 0)
    stored: list[int] = []

    async def commit(_: TopicPartition, offset: int) -> None:
        stored.append((await ends(kafka, topic))[1])
        assert offset == 7

    async with producer(kafka) as sender:
        await send(kafka, topic, range(1))
        (record,) = await read(kafka, topic, 1)
        sink = PlainSink(
            source,
            sender,
            Destination(topic, 1, 1 << 20),
            None,
            group="g",
            commit=commit,
            stats=PipelineStats(),
        )
        group = Group([record] * 3, outcomes=[b"1", b"2", b"3"])
        await sink.write(Part(group, 0, 3))
        await sink.commit(7)
    assert stored == [1 + 3]


async def test_a_scorer_that_gives_up_leaves_no_transaction_open(kafka: str, doubling: Path) -> None:
    stem = topic_name()
    topics = Topics(sources=[f"{stem}-in"], output=f"{stem}-out", dead="")
    await create_topics(kafka, topics.sources[0], topics.output)
    pipeline = await new_pipeline(
        kafka,
        doubling,
        topics=topics,
        delivery="exactly-once",
        limits=Limits(commit_interval_ms=30_000.0),
    )
    stats = PipelineStats()
    task = asyncio.create_task(Engine(pipeline, new_scorer(pipeline), stats).run(asyncio.Event()))
    await send(kafka, topics.sources[0], range(10))
    await eventually(lambda: stats.written == 10)
    await read(kafka, topics.output, 10, isolation="read_uncommitted")
    assert (await ends(kafka, topics.output))[0] == 0
    async with producer(kafka) as sender:
        await sender.send_and_wait(topics.sources[0], b"short")
    with pytest.raises(ModelFailed):
        await asyncio.wait_for(task, PATIENCE)
    assert stats.transactions["aborted"] == 1
    committed, anything = await ends(kafka, topics.output)
    assert committed == anything >= 10, "readers wait for the end of a transaction"


class _Late:
    """A consumer whose first poll that brings something ends when it is told to."""

    def __init__(self, consumer: AIOKafkaConsumer, brought: asyncio.Event, released: asyncio.Event) -> None:
        self._consumer = consumer
        self._brought = brought
        self._released = released

    async def getmany(self, *sources: TopicPartition, **options: Any) -> Mapping[TopicPartition, Any]:
        found: Mapping[TopicPartition, Any] = await self._consumer.getmany(*sources, **options)
        if found and not self._brought.is_set():
            self._brought.set()
            await self._released.wait()
        return found

    def __getattr__(self, name: str) -> Any:
        return getattr(self._consumer, name)


async def test_a_poll_that_outlasts_a_rebalance_brings_nothing_twice(
    kafka: str, doubling: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = Client(bootstrap=kafka, session_timeout=3.0, options={"metadata_max_age_ms": 200})
    pipeline = await new_pipeline(kafka, doubling, partitions=1, delivery="exactly-once", client=client)
    source = pipeline.topics.sources[0]
    brought, released = asyncio.Event(), asyncio.Event()
    monkeypatch.setattr(
        "qinfer_workers.kafka.session.new_consumer",
        lambda given: _Late(new_consumer(given), brought, released),
    )
    async with running(pipeline) as (_, stats):
        await send(kafka, source, range(10))
        await asyncio.wait_for(brought.wait(), PATIENCE)
        admin = AIOKafkaAdminClient(bootstrap_servers=kafka)
        await admin.start()
        await admin.create_partitions({source: NewPartitions(2)})  # causes a rebalance
        await admin.close()
        await eventually(lambda: len(stats.progress()) == 2)
        released.set()
        await send(kafka, source, range(10, 20))
        await read(kafka, pipeline.topics.output, 20)
    found = await read(kafka, pipeline.topics.output, 0, settled=True)
    assert [int(record.key) for record in found] == list(range(20))


async def test_a_group_takes_no_more_bytes_than_may_be_in_flight(kafka: str, doubling: Path) -> None:
    rows = 6
    pipeline = await new_pipeline(
        kafka,
        doubling,
        partitions=1,
        client=Client(bootstrap=kafka, session_timeout=3.0, consumer={"max_partition_fetch_bytes": 1}),
        window=Window(max_rows=1000, max_delay_ms=10_000.0),
        limits=Limits(commit_interval_ms=10.0, max_in_flight_bytes=4 * rows * len(row(0))),
    )
    async with producer(kafka) as sender:
        for number in range(60):  # each in a batch of its own, of which a poll brings one
            await sender.send_and_wait(pipeline.topics.sources[0], row(number), key=b"%d" % number)
    async with running(pipeline) as (_, stats):
        await read(kafka, pipeline.topics.output, 60)
    assert stats.groups.count == 60 // rows


class _Moving:
    """Stands for a group's coordinator, of which the first answers are errors."""

    def __init__(self, *answers: Mapping[TopicPartition, OffsetAndMetadata] | KafkaError) -> None:
        self._answers = list(answers)

    async def list_consumer_group_offsets(
        self, _: str, partitions: Sequence[TopicPartition]
    ) -> Mapping[TopicPartition, OffsetAndMetadata]:
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, KafkaError):
            raise answer
        return answer


@pytest.mark.parametrize(("offset", "expected"), [(7, 7), (-1, None)])
async def test_a_coordinator_that_is_loading_does_not_say_that_nothing_is_done(
    offset: int, expected: int | None
) -> None:
    source = TopicPartition("t", 0)
    admin = _Moving({}, GroupCoordinatorNotAvailableError(), {source: OffsetAndMetadata(offset, "")})
    assert await committed(admin, "g", source) == expected


async def test_a_coordinator_that_never_says_anything_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qinfer_workers.kafka.progress._TIMEOUT", 0.1)
    with pytest.raises(BusUnavailable, match="group 'g': its coordinator does not say how far t/0 is"):
        await committed(_Moving({}), "g", TopicPartition("t", 0))


async def test_what_comes_while_nobody_has_a_new_partition_is_not_skipped(kafka: str, doubling: Path) -> None:
    pipeline = await new_pipeline(kafka, doubling, partitions=1, start="latest")
    source = pipeline.topics.sources[0]
    await send(kafka, source, range(10))
    async with running(pipeline):
        pass
    await send(kafka, source, range(10, 20))
    async with running(pipeline):
        found = await read(kafka, pipeline.topics.output, 10)
    assert [int(record.key) for record in found] == list(range(10, 20))


async def test_what_is_left_of_a_backlog_is_read_where_some_was_deleted(kafka: str, doubling: Path) -> None:
    pipeline = await new_pipeline(kafka, doubling, partitions=1, start="latest")
    source = pipeline.topics.sources[0]
    async with running(pipeline):
        await send(kafka, source, range(10))
        await read(kafka, pipeline.topics.output, 10)
    await send(kafka, source, range(10, 30))
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka)
    await admin.start()
    await admin.delete_records({TopicPartition(source, 0): RecordsToDelete(before_offset=20)})
    await admin.close()
    async with running(pipeline):
        await read(kafka, pipeline.topics.output, 20)
    found = await read(kafka, pipeline.topics.output, 0, settled=True)
    assert [int(record.key) for record in found] == [*range(10), *range(20, 30)]
