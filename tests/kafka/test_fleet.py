"""Scoring by a fleet of workers instead of in the scorer's process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from qinfer.bus import connect
from qinfer.client import connect as connect_client
from qinfer_workers.kafka.contract import ModelUse
from qinfer_workers.kafka.engine import Engine
from qinfer_workers.kafka.fleet import FleetScorer
from qinfer_workers.kafka.stats import PipelineStats
from qinfer_workers.options import WorkerOptions
from qinfer_workers.worker import Worker
from tests.helpers.waiting import PATIENCE, eventually
from tests.kafka.support import MODEL, POISON, doubled, new_pipeline, producer, read, row


@asynccontextmanager
async def worker(nats_url: str, namespace: str, repository: Path) -> AsyncIterator[Worker]:
    bus = connect(nats_url, namespace=namespace, name="worker")
    await bus.start()
    serving = Worker(WorkerOptions(nats=nats_url, repositories=(repository,), namespace=namespace), bus)
    await serving.start()
    try:
        yield serving
    finally:
        await serving.drain()
        await bus.close()


async def test_a_fleet_scores_and_may_be_away(
    kafka: str, nats_url: str, namespace: str, doubling: Path
) -> None:
    pipeline = await new_pipeline(kafka, doubling, partitions=1, delivery="exactly-once")
    source, output = pipeline.topics.sources[0], pipeline.topics.output
    stats = PipelineStats()
    client = connect_client(nats_url, namespace=namespace)
    scorer = FleetScorer(client, pipeline.models, timeout=2.0)
    stopping = asyncio.Event()
    async with asyncio.TaskGroup() as tasks, producer(kafka) as sender:

        async def send(first: int, last: int) -> None:
            for number in range(first, last):
                value = row(number, first=POISON) if number == 17 else row(number)
                await sender.send(source, value, key=b"%d" % number)
            await sender.flush()

        async with worker(nats_url, namespace, doubling):
            engine = tasks.create_task(Engine(pipeline, scorer, stats).run(stopping))
            await send(0, 100)
            found = await read(kafka, output, 99)
            assert [int(record.key) for record in found] == [n for n in range(100) if n != 17]
            assert all(record.value == doubled(row(int(record.key))) for record in found)
            (letter,) = await read(kafka, pipeline.topics.dead, 1)
            headers = dict(letter.headers)
            assert letter.key == b"17"
            assert headers["qinfer-reason"] == b"model_failed"
            assert int(headers["qinfer-attempts"]) > 1
        await send(100, 120)
        await eventually(lambda: stats.read == 120)
        async with worker(nats_url, namespace, doubling):
            found = await read(kafka, output, 119)
            stopping.set()
            await asyncio.wait_for(engine, PATIENCE)
    assert [int(record.key) for record in found] == [n for n in range(120) if n != 17]
    assert stats.buried == {"model_failed": 1}


async def test_the_fleets_signature_is_known(nats_url: str, namespace: str, doubling: Path) -> None:
    async with worker(nats_url, namespace, doubling):
        scorer = FleetScorer(
            connect_client(nats_url, namespace=namespace),
            [ModelUse(label=MODEL, name=MODEL)],
            timeout=PATIENCE,
        )
        infos = await scorer.start()
        await scorer.close()
    assert infos[MODEL].max_batch_size == 64
    assert [record.name for record in infos[MODEL].inputs] == ["x"]
