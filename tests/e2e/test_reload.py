"""Models that come, change and go while requests for them never stop."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.helpers import http
from tests.helpers.http import Answer
from tests.helpers.steady import MODEL, SteadyLoad, write_model
from tests.helpers.system import Fleet, fleet
from tests.helpers.waiting import eventually

POLL = {"model_control_mode": "poll", "repository_poll_secs": 0.1}


@asynccontextmanager
async def serving_model(
    nats_url: str, namespace: str, root: Path, workers: int = 1, **options: Any
) -> AsyncIterator[Fleet]:
    async with fleet(nats_url, namespace, root, grpc_port=0) as running:
        for _ in range(workers):
            await running.add_worker(**{**POLL, **options})
        yield running


def load_of(running: Fleet, **options: Any) -> SteadyLoad:
    assert running.gateway.grpc is not None
    return SteadyLoad(running.port, running.gateway.grpc.port, **options)


async def ask(running: Fleet, request: bytes) -> Answer:
    async with http.connect(running.port) as connection:
        return await connection.ask(request)


def changes(numbers: list[int]) -> list[int]:
    """The numbers without repetitions."""
    return [number for number, before in zip(numbers, [0, *numbers], strict=False) if number != before]


async def test_a_new_version_takes_over_without_an_error(
    nats_url: str, namespace: str, tmp_path: Path
) -> None:
    """Answers from the old version, then from the new one."""
    root = write_model(tmp_path, version=1, number=10)
    async with serving_model(nats_url, namespace, root) as running:
        async with load_of(running) as load:
            await load.more()
            write_model(root, version=2, number=20)
            await load.until(20)
            await load.more()
        load.check()
        # Batches of both versions may end in another order than they began in, for an instant.
        assert changes(load.numbers[: load.numbers.index(20)]) == [10]
        assert set(load.numbers) == {10, 20}
        row = (await ask(running, http.get(f"/v2/models/{MODEL}"))).json()
        assert row["versions"] == ["2"]
