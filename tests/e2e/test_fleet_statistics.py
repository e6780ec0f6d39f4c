"""Statistics are the fleet's: whichever worker ran a request, and whichever gateway is asked."""

from __future__ import annotations

import asyncio
from pathlib import Path

from qinfer_workers.worker import Worker
from tests.helpers import http
from tests.helpers.http import Answer, infer, tensor
from tests.helpers.served_models import IDENTITY
from tests.helpers.system import Fleet, fleet
from tests.helpers.waiting import PATIENCE

MODEL = IDENTITY["INT32"]
ROWS = 3


async def ask(running: Fleet, request: bytes) -> Answer:
    async with http.connect(running.port) as connection:
        return await connection.ask(request)


def answered(worker: Worker) -> int:
    """Rows a worker has answered, by its own count."""
    (stats,) = worker.stats()
    return stats.rows


async def test_workers_are_added_up(nats_url: str, namespace: str, served_repository: Path) -> None:
    request = infer(MODEL, {"inputs": [tensor([1] * ROWS, "INT32", [ROWS, 1])]})
    async with fleet(nats_url, namespace, served_repository) as running:
        workers = [await running.add_worker(MODEL) for _ in range(2)]
        sent = 0
        async with asyncio.timeout(PATIENCE):
            while not all(answered(worker) for worker in workers):
                answers = await asyncio.gather(*(ask(running, request) for _ in range(8)))
                assert {answer.status for answer in answers} == {200}
                sent += len(answers)
        for path in (f"/v2/models/{MODEL}/stats", "/v2/models/stats"):
            (stats,) = (await ask(running, http.get(path))).json()["model_stats"]
            assert stats["inference_count"] == sent * ROWS == sum(map(answered, workers))
            assert stats["inference_stats"]["success"]["count"] == sent
            batches = [(size["batch_size"], size["compute_infer"]["count"]) for size in stats["batch_stats"]]
            assert sum(size * count for size, count in batches) == sent * ROWS
            assert sum(count for _, count in batches) == stats["execution_count"]
