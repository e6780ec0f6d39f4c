"""A gateway and workers that have nothing but Kafka between them."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from tests.helpers import http
from tests.helpers.http import infer, tensor
from tests.helpers.served_models import GATED, IDENTITY
from tests.helpers.system import Fleet, fleet
from tests.helpers.waiting import eventually

MODEL = IDENTITY["INT64"]
CLIENTS = 8


@pytest.fixture
def url(kafka: str) -> str:
    return f"kafka://{kafka}?partitions=4&reply_partitions=2&replicas=1&session_ms=1000"


def began(journal: Path) -> set[int]:
    """Processes that have begun the batch."""
    return {int(line) for line in journal.read_text().split()} if journal.exists() else set()


async def ask(running: Fleet, model: str, value: object, datatype: str) -> object:
    async with http.connect(running.port) as connection:
        answer = await connection.ask(infer(model, {"inputs": [tensor([value], datatype, [1, 1])]}))
        assert answer.status == 200, answer
        return answer.outputs()["y"][0]


async def test_a_killed_worker_loses_nothing(
    url: str, namespace: str, served_repository: Path, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    journal = Path(f"{gate}.began")
    async with fleet(url, namespace, served_repository) as running:
        workers = [await running.add_worker_process(MODEL, GATED, **{"ack-wait": "1"}) for _ in range(2)]
        answers = await asyncio.gather(*(ask(running, MODEL, number, "INT64") for number in range(CLIENTS)))
        assert answers == list(range(CLIENTS))
        held = asyncio.create_task(ask(running, GATED, str(gate), "BYTES"))
        await eventually(lambda: began(journal), "a batch has begun")
        (victim,) = began(journal)
        os.kill(victim, signal.SIGKILL)
        asked = [asyncio.create_task(ask(running, MODEL, number, "INT64")) for number in range(100)]
        gate.touch()
        assert await held
        assert await asyncio.gather(*asked) == list(range(100))
        assert began(journal) - {victim}, "another worker ran it"
        assert sorted(worker.returncode is None for worker in workers) == [False, True]


async def test_large_tensors_and_keys(url: str, namespace: str, served_repository: Path) -> None:
    count = 150_000  # more than a message holds
    values = list(range(count))
    async with fleet(url, namespace, served_repository) as running:
        worker = await running.add_worker(MODEL)
        async with http.connect(running.port) as connection:
            large = infer(MODEL, {"inputs": [tensor(values, "INT64", [1, count])]})
            answer = await connection.ask(large)
            assert answer.outputs() == {"y": values}
            small = {"inputs": [tensor([7], "INT64", [1, 1])]}
            keyed = infer(MODEL, small, "Idempotency-Key: once")
            answers = [await connection.ask(keyed) for _ in range(3)]
            assert [answer.outputs() for answer in answers] == [{"y": [7]}] * 3
        (stats,) = worker.stats()
        assert stats.executions == 2, "the key's request was run once"
