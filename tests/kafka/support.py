"""Models, a codec and pipelines for tests of the engine, which need no formats."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from qinfer.client.base import ModelInfo
from qinfer.telemetry.tracing import Tracing
from qinfer_workers.kafka.contract import (
    BadRecord,
    Client,
    Codec,
    Decoded,
    Delivery,
    Limits,
    ModelUse,
    Record,
    Rows,
    Scored,
    Tombstones,
    Topics,
    Window,
)
from qinfer_workers.kafka.engine import Engine
from qinfer_workers.kafka.local import LocalScorer
from qinfer_workers.kafka.stats import PipelineStats
from tests.helpers.kafka import create_topics, topic_name
from tests.helpers.waiting import PATIENCE

WIDTH = 4
POISON = -666.0
"""First element of a row that the model raises on."""

MODEL = "double"
"""Gives twice its input; FP32 of shape [WIDTH], batches of up to 64 rows."""

_CONFIG = """\
backend: "python"
max_batch_size: 64
input [{{ name: "x" data_type: TYPE_FP32 dims: [{width}] }}]
output [{{ name: "y" data_type: TYPE_FP32 dims: [{width}] }}]
"""
_SOURCE = """\
import os, time
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        responses = []
        for request in requests:
            x = pb_utils.get_input_tensor_by_name(request, "x").as_numpy()
            if (x[:, 0] == {poison}).any():
                raise ValueError("poison")
            gate = {gate!r}
            while gate and os.path.exists(gate):
                time.sleep(0.01)
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("y", x * 2)]))
        return responses
"""


def build_repository(root: Path) -> Path:
    """A repository with the model `MODEL`; while the file `root`/gate exists, its batches do not end."""
    directory = root / MODEL
    (directory / "1").mkdir(parents=True)
    (directory / "config.pbtxt").write_text(_CONFIG.format(width=WIDTH))
    (directory / "1" / "model.py").write_text(_SOURCE.format(poison=POISON, gate=str(root / "gate")))
    return root


def row(number: float, first: float | None = None) -> bytes:
    """A value that the codec takes for a row of numbers."""
    values = np.full(WIDTH, number, dtype="<f4")
    if first is not None:
        values[0] = first
    return values.tobytes()


def doubled(value: bytes) -> bytes:
    """What becomes of it."""
    return (np.frombuffer(value, "<f4") * 2).tobytes()


class RawCodec:
    """Values are rows of float32; what has another length is malformed."""

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    async def prepare(self, records: Sequence[Record]) -> None: ...

    def decode(self, records: Sequence[Record]) -> Decoded:
        size = 4 * WIDTH
        values = [record.value or b"" for record in records]
        good = [place for place, value in enumerate(values) if len(value) == size]
        bad = {
            place: BadRecord("malformed", f"{len(value)} bytes; expected {size}")
            for place, value in enumerate(values)
            if len(value) != size
        }
        stacked = np.frombuffer(b"".join([values[place] for place in good]), "<f4").reshape(-1, WIDTH)
        return Decoded({MODEL: [Rows(good, {"x": stacked})] if good else []}, bad)

    def encode(
        self, records: Sequence[Record], decoded: Decoded, scored: Scored, places: Sequence[int]
    ) -> Sequence[bytes | BadRecord]:
        found: dict[int, bytes] = {}
        for rows in scored[MODEL]:
            for place, y in zip(rows.places, rows.tensors["y"], strict=True):
                found[place] = y.tobytes()
        return [found[place] for place in places]


@dataclass(kw_only=True)
class TestPipeline:
    """A pipeline without a file."""

    __test__ = False

    topics: Topics
    client: Client
    repositories: Sequence[Path]
    group: str
    delivery: Delivery = "at-least-once"
    tombstones: Tombstones = "pass"
    models: Sequence[ModelUse] = (ModelUse(label=MODEL, name=MODEL),)
    fleet: str = ""
    window: Window = field(default_factory=lambda: Window(max_rows=64, max_delay_ms=2.0))
    limits: Limits = field(default_factory=lambda: Limits(commit_interval_ms=20.0))
    start: Literal["earliest", "latest"] = "earliest"
    make_codec: type[Codec] = RawCodec
    signatures: Mapping[str, ModelInfo] = field(default_factory=dict)

    def codec(self, models: Mapping[str, ModelInfo]) -> Codec:
        self.signatures = models
        return self.make_codec()


async def new_pipeline(
    bootstrap: str, repository: Path, *, partitions: int = 3, **fields: Any
) -> TestPipeline:
    """A pipeline with topics of its own."""
    stem = topic_name()
    topics = fields.pop("topics", None)
    if topics is None:
        topics = Topics(sources=[f"{stem}-in"], output=f"{stem}-out", dead=f"{stem}-dead")
        await create_topics(bootstrap, topics.sources[0], topics.output, topics.dead, partitions=partitions)
    client = fields.pop("client", Client(bootstrap=bootstrap, session_timeout=3.0))
    return TestPipeline(
        topics=topics, client=client, repositories=[repository], group=f"{stem}-group", **fields
    )


def new_scorer(pipeline: TestPipeline) -> LocalScorer:
    """Scores in this process, as the command's would."""
    return LocalScorer(pipeline.repositories, pipeline.models, close_timeout=pipeline.limits.drain_timeout)


@asynccontextmanager
async def running(
    pipeline: TestPipeline, tracing: Tracing | None = None
) -> AsyncIterator[tuple[Engine, PipelineStats]]:
    """An engine in this process, which has its partitions; stopped in good order at the end."""
    stats = PipelineStats()
    engine = Engine(pipeline, new_scorer(pipeline), stats, tracing)
    stopping = asyncio.Event()
    # In a group, so that an engine that ends with an error ends the test.
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(engine.run(stopping))
        async with asyncio.timeout(PATIENCE):
            while engine.health.state != "running":  # noqa: ASYNC110 (it tells nobody)
                await asyncio.sleep(0.01)
        yield engine, stats
        stopping.set()
        async with asyncio.timeout(PATIENCE):
            await asyncio.shield(task)


@asynccontextmanager
async def producer(bootstrap: str, compression: str | None = None) -> AsyncIterator[AIOKafkaProducer]:
    """Writes what is to be scored."""
    sender = AIOKafkaProducer(bootstrap_servers=bootstrap, compression_type=compression)
    await sender.start()
    try:
        yield sender
    finally:
        await sender.stop()


async def read(
    bootstrap: str, topic: str, count: int, *, settled: bool = False, isolation: str = "read_committed"
) -> list[Any]:
    """Records of a topic until there are `count` different keys, in order within each partition.

    Args:
        bootstrap, topic: where.
        count: how many keys have to be there before long.
        settled: also look whether more come: read until the ends of the partitions as they are then.
        isolation: whether transactions count that are not committed.
    """
    consumer = AIOKafkaConsumer(
        topic, bootstrap_servers=bootstrap, isolation_level=isolation, auto_offset_reset="earliest"
    )
    await consumer.start()
    try:
        sources = sorted(consumer.assignment())
        found: list[Any] = []
        give_up = asyncio.get_running_loop().time() + PATIENCE * 2
        keys: set[bytes] = set()
        while len(keys) < count:
            for records in (await consumer.getmany(timeout_ms=200)).values():
                found += records
                keys.update(record.key for record in records)
            assert asyncio.get_running_loop().time() < give_up, f"{len(keys)} of {count} keys in {topic}"
        if settled:
            ends = await consumer.end_offsets(sources)
            while any([await consumer.position(source) < ends[source] for source in sources]):
                for records in (await consumer.getmany(timeout_ms=200)).values():
                    found += records
                assert asyncio.get_running_loop().time() < give_up, f"the end of {topic} is never reached"
        return found
    finally:
        await consumer.stop()
