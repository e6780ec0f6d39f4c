"""Scorers that are killed, stopped and added, and a broker that is killed and brought back, under load."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from aiokafka import AIOKafkaProducer

from qinfer_workers.kafka.contract import Client, Delivery, Limits, Window
from tests.helpers import kafka as kafka_cluster
from tests.kafka.scorer import ScorerProcess
from tests.kafka.support import POISON, TestPipeline, doubled, new_pipeline, producer, read, row

RECORDS = 5000
PARTITIONS = 4
POISONED = range(333, RECORDS, 500)
"""Numbers of records that the model raises on."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[kafka_cluster.KafkaCluster]:
    """A Kafka of one's own, to be killed."""
    if reason := kafka_cluster.unavailable():
        pytest.skip(reason)
    with kafka_cluster.KafkaCluster(tmp_path_factory.mktemp("kafka") / "cluster") as running:
        yield running


def value(number: int) -> bytes:
    return row(number, first=POISON) if number in POISONED else row(number)


def print_logs(directory: Path) -> None:
    for log in sorted(directory.glob("*.log")):
        print(f"--- {log.name}\n{log.read_text()[-4000:]}")


async def send(sender: AIOKafkaProducer, topic: str, first: int, last: int) -> None:
    """Write the records of some numbers, each into the partition of its number."""
    for number in range(first, last):
        await sender.send(topic, value(number), key=b"%d" % number, partition=number % PARTITIONS)
    await sender.flush()


async def under_fire(cluster: kafka_cluster.KafkaCluster, pipeline: TestPipeline, logs: Path) -> None:
    """Have `RECORDS` records scored by processes that come and go."""
    source, output = pipeline.topics.sources[0], pipeline.topics.output
    step = RECORDS // 5
    with ExitStack() as stack:

        def start(name: str) -> ScorerProcess:
            scorer = ScorerProcess(pipeline, logs / f"{name}.log")
            stack.callback(scorer.kill)
            return scorer

        async with producer(cluster.bootstrap) as sender:
            first, second, third = start("first"), start("second"), start("third")
            await send(sender, source, 0, step)
            await read(cluster.bootstrap, output, step // 4)
            first.kill()
            await send(sender, source, step, 2 * step)
            start("fourth")
            await read(cluster.bootstrap, output, step + step // 4)
            assert await second.stop() == 0
            await send(sender, source, 2 * step, 3 * step)
            await read(cluster.bootstrap, output, 2 * step + step // 4)
            if (
                pipeline.delivery == "exactly-once"
            ):  # the other one has less to fear of it, and tests take time
                node = cluster.nodes[0]
                node.kill()
                cluster.spawn(node)
                await cluster.ready(node)
            await send(sender, source, 3 * step, 4 * step)
            await read(cluster.bootstrap, output, 3 * step + step // 4)
            third.kill()
            start("fifth")
            await send(sender, source, 4 * step, RECORDS)
        await read(cluster.bootstrap, output, RECORDS - len(POISONED))
        await read(cluster.bootstrap, pipeline.topics.dead, len(POISONED))


@pytest.mark.parametrize("delivery", ["exactly-once", "at-least-once"])
async def test_nothing_is_lost(
    cluster: kafka_cluster.KafkaCluster, doubling: Path, tmp_path: Path, delivery: Delivery
) -> None:
    pipeline = await new_pipeline(
        cluster.bootstrap,
        doubling,
        partitions=PARTITIONS,
        delivery=delivery,
        client=Client(bootstrap=cluster.bootstrap, session_timeout=1.5),
        window=Window(max_rows=32, max_delay_ms=2.0),
        limits=Limits(commit_interval_ms=50.0, commit_rows=100, max_in_flight=400),
    )
    try:
        async with asyncio.timeout(100):
            await under_fire(cluster, pipeline, tmp_path)
            found = await read(cluster.bootstrap, pipeline.topics.output, 0, settled=True)
            dead = await read(cluster.bootstrap, pipeline.topics.dead, 0, settled=True)
    except BaseException:
        print_logs(tmp_path)
        raise
    good = set(range(RECORDS)) - set(POISONED)
    assert all(record.value == doubled(value(int(record.key))) for record in found)
    for records, expected in ((found, good), (dead, set(POISONED))):
        counts = Counter(int(record.key) for record in records)
        assert set(counts) == expected
        if delivery == "exactly-once":
            assert max(counts.values()) == 1
            order = defaultdict(list)
            for record in records:
                order[record.partition].append(int(record.key))
            assert all(numbers == sorted(numbers) for numbers in order.values())
