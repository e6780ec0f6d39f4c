"""Membership of the group: slow models, rebalances, stopping, zombies."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions

from qinfer.errors import SetupError
from qinfer_workers.kafka.contract import Client, Delivery, Limits, Window
from qinfer_workers.kafka.engine import Engine
from qinfer_workers.kafka.stats import PipelineStats
from tests.helpers.waiting import PATIENCE, eventually
from tests.kafka.scorer import ScorerProcess
from tests.kafka.support import (
    MODEL,
    build_repository,
    new_pipeline,
    new_scorer,
    producer,
    read,
    row,
    running,
)

EITHER = pytest.mark.parametrize("delivery", ["at-least-once", "exactly-once"])


@pytest.fixture
def gate(doubling: Path) -> Iterator[Path]:
    """While it is there, batches of the model do not end."""
    path = doubling / "gate"
    path.touch()
    yield path
    path.unlink(missing_ok=True)


def open_gate(gate: Path) -> None:
    gate.unlink(missing_ok=True)


async def send(bootstrap: str, topic: str, numbers: range, partitions: int = 3) -> None:
    async with producer(bootstrap) as sender:
        for number in numbers:
            await sender.send(topic, row(number), key=b"%d" % number, partition=number % partitions)
        await sender.flush()


async def test_a_batch_may_take_longer_than_a_member_may_be_silent(
    kafka: str, doubling: Path, gate: Path
) -> None:
    silent = 0.5
    client = Client(
        bootstrap=kafka, session_timeout=1.0, consumer={"max_poll_interval_ms": round(silent * 1000)}
    )
    pipeline = await new_pipeline(kafka, doubling, delivery="exactly-once", client=client)
    await send(kafka, pipeline.topics.sources[0], range(300))
    async with running(pipeline) as (_, stats):
        await eventually(lambda: stats.read)
        began = asyncio.get_running_loop().time()
        await eventually(lambda: asyncio.get_running_loop().time() - began > 4 * silent)
        open_gate(gate)
        found = await read(kafka, pipeline.topics.output, 300)
        assert stats.rebalances == 1
    assert len(found) == 300


@EITHER
async def test_partitions_move_without_loss_or_doubles(
    kafka: str, doubling: Path, delivery: Delivery
) -> None:
    # Results are written long before they are committed: a scorer that just stopped would double them.
    limits = Limits(commit_interval_ms=400.0)
    pipeline = await new_pipeline(kafka, doubling, delivery=delivery, partitions=4, limits=limits)
    source, output = pipeline.topics.sources[0], pipeline.topics.output
    enough = asyncio.Event()

    async def keep_sending() -> int:
        number = 0
        while not enough.is_set():
            await send(kafka, source, range(number, number + 40), 4)
            number += 40
        return number

    async with asyncio.TaskGroup() as tasks, running(pipeline) as (_, first):
        sending = tasks.create_task(keep_sending())
        await eventually(lambda: first.written > 100)
        async with running(pipeline) as (_, second):
            await eventually(lambda: len(first.progress()) == len(second.progress()) == 2)
            await eventually(lambda: second.written > 100)
        await eventually(lambda: len(first.progress()) == 4)
        enough.set()
        count = await sending
        await read(kafka, output, count)
        found = await read(kafka, output, 0, settled=True)
    # Not even at least once doubles anything in good order: what is in flight is finished first.
    assert sorted(int(record.key) for record in found) == list(range(count))
    assert first.restarts == second.restarts == 0


async def test_a_stopped_scorer_commits_what_it_has(kafka: str, doubling: Path, gate: Path) -> None:
    pipeline = await new_pipeline(kafka, doubling, limits=Limits(commit_interval_ms=60_000.0))
    await send(kafka, pipeline.topics.sources[0], range(90))
    async with running(pipeline) as (_, stats):
        await eventually(lambda: stats.read == 90)
        open_gate(gate)
    assert stats.written == 90
    assert len(await read(kafka, pipeline.topics.output, 0, settled=True)) == 90
    async with running(pipeline) as (_, again):
        await eventually(lambda: len(again.progress()) == 3)
        assert sum(progress.committed for progress in again.progress().values()) == 90
    assert again.read == 0


async def test_what_does_not_end_in_time_is_left_to_the_next(kafka: str, doubling: Path, gate: Path) -> None:
    pipeline = await new_pipeline(
        kafka, doubling, delivery="exactly-once", limits=Limits(drain_timeout=0.2, commit_interval_ms=10.0)
    )
    await send(kafka, pipeline.topics.sources[0], range(30))
    async with running(pipeline) as (_, stats):
        await eventually(lambda: stats.read == 30)
    open_gate(gate)
    async with running(pipeline):
        await read(kafka, pipeline.topics.output, 30)
    assert len(await read(kafka, pipeline.topics.output, 0, settled=True)) == 30


async def test_a_partition_that_is_added_is_read_from_its_beginning(kafka: str, doubling: Path) -> None:
    client = Client(bootstrap=kafka, session_timeout=3.0, options={"metadata_max_age_ms": 200})
    pipeline = await new_pipeline(kafka, doubling, partitions=1, client=client)
    source = pipeline.topics.sources[0]
    async with running(pipeline) as (_, stats):
        await send(kafka, source, range(10), 1)
        await read(kafka, pipeline.topics.output, 10)
        admin = AIOKafkaAdminClient(bootstrap_servers=kafka)
        await admin.start()
        await admin.create_partitions({source: NewPartitions(3)})
        await admin.close()
        await eventually(lambda: len(stats.progress()) == 3)
        await send(kafka, source, range(10, 40), 3)
        found = await read(kafka, pipeline.topics.output, 40)
    assert {record.partition for record in found} == {0}  # the output has one partition only


async def test_who_was_locked_out_begins_anew(kafka: str, doubling: Path) -> None:
    pipeline = await new_pipeline(kafka, doubling, delivery="exactly-once", partitions=1)
    source, output = pipeline.topics.sources[0], pipeline.topics.output
    async with running(pipeline) as (engine, stats):
        await send(kafka, source, range(10), 1)
        await read(kafka, output, 10)
        await lock_out(kafka, pipeline.group, source)
        await send(kafka, source, range(10, 20), 1)
        await read(kafka, output, 20)
        assert stats.transactions["fenced"] == 1
        assert engine.health.state == "running"
    found = await read(kafka, output, 0, settled=True)
    assert [int(record.key) for record in found] == list(range(20))


async def test_who_is_locked_out_again_and_again_gives_up(kafka: str, doubling: Path) -> None:
    pipeline = await new_pipeline(kafka, doubling, delivery="exactly-once", partitions=1)
    source = pipeline.topics.sources[0]
    stats = PipelineStats()
    engine = Engine(pipeline, new_scorer(pipeline), stats)
    gate = doubling / "gate"
    gate.touch()
    await send(kafka, source, range(10), 1)
    task = asyncio.create_task(engine.run(asyncio.Event()))
    try:
        for times in range(3):
            gate.touch()
            seen = stats.read
            await eventually(lambda seen=seen: stats.read > seen or task.done())
            await lock_out(kafka, pipeline.group, source)
            gate.unlink()
            await eventually(lambda times=times: stats.transactions["fenced"] > times)
        with pytest.raises(SetupError, match="3 times in a row"):
            await asyncio.wait_for(task, PATIENCE)
    finally:
        gate.unlink(missing_ok=True)
        task.cancel()
    assert await read(kafka, pipeline.topics.output, 0, settled=True) == []


async def lock_out(bootstrap: str, group: str, source: str) -> None:
    """Do what a scorer does that is given a partition of another one."""
    other = AIOKafkaProducer(bootstrap_servers=bootstrap, transactional_id=f"{group}:{source}:0")
    await other.start()
    await other.stop()


async def test_a_zombie_changes_nothing(kafka: str, doubling: Path, tmp_path: Path) -> None:
    pipeline = await new_pipeline(
        kafka,
        doubling,
        delivery="exactly-once",
        partitions=1,
        client=Client(bootstrap=kafka, session_timeout=3.0),
    )
    source, output = pipeline.topics.sources[0], pipeline.topics.output
    zombie = ScorerProcess(pipeline, tmp_path / "zombie.log")
    try:
        await send(kafka, source, range(2000), 1)
        await read(kafka, output, 64)
        zombie.signal(signal.SIGSTOP)
        await send(kafka, source, range(2000, 2100), 1)
        async with running(pipeline) as (_, stats):
            await read(kafka, output, 2100)
            zombie.signal(signal.SIGCONT)
            await send(kafka, source, range(2100, 2200), 1)
            await read(kafka, output, 2200)
            assert stats.restarts == 0
        assert await zombie.stop() == 0
    finally:
        zombie.kill()
    found = await read(kafka, output, 0, settled=True)
    assert [int(record.key) for record in found] == list(range(2200))


async def test_members_of_another_kind_are_told_apart(kafka: str, doubling: Path) -> None:
    from aiokafka import AIOKafkaConsumer

    pipeline = await new_pipeline(kafka, doubling, partitions=1)
    other = AIOKafkaConsumer(pipeline.topics.sources[0], bootstrap_servers=kafka, group_id=pipeline.group)
    await other.start()
    try:
        engine = Engine(pipeline, new_scorer(pipeline), PipelineStats())
        with pytest.raises(SetupError, match="members of another kind"):
            await asyncio.wait_for(engine.run(asyncio.Event()), PATIENCE)
    finally:
        await other.stop()


async def test_the_models_signature_reaches_the_codec(kafka: str, tmp_path: Path) -> None:
    pipeline = await new_pipeline(kafka, build_repository(tmp_path / "models"), partitions=1)
    async with running(pipeline):
        info = pipeline.signatures[MODEL]
    assert (info.name, info.versions, info.max_batch_size) == (MODEL, ["1"], 64)
    assert [(record.name, record.datatype, tuple(record.dims)) for record in info.inputs] == [
        ("x", "FP32", (4,))
    ]


@pytest.mark.parametrize("unit", ["records", "bytes"])
async def test_what_is_in_flight_is_bounded_for_each_partition(
    kafka: str, doubling: Path, gate: Path, unit: str
) -> None:
    rows, flight = 8, 12
    bound = {"max_in_flight": flight} if unit == "records" else {"max_in_flight_bytes": flight * len(row(0))}
    pipeline = await new_pipeline(
        kafka,
        doubling,
        window=Window(max_rows=rows, max_delay_ms=0.0),
        limits=Limits(commit_interval_ms=10.0, **bound),
    )
    await send(kafka, pipeline.topics.sources[0], range(600))
    async with running(pipeline) as (_, stats):
        share = flight // 3

        def in_flight() -> list[int]:
            return [progress.in_flight for progress in stats.progress().values()]

        await eventually(lambda: len(in_flight()) == 3 and min(in_flight()) >= share)
        assert max(in_flight()) < share + rows
        open_gate(gate)
        await read(kafka, pipeline.topics.output, 600)
