"""Models that misbehave: each request gets the error that is its own, its neighbours their answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from qinfer.errors import ModelFailed
from tests.helpers import http, served_models
from tests.helpers.http import Answer, infer, tensor
from tests.helpers.served_models import GATED, MAX_BATCH, PICKY, RAISES_EXECUTE, RAISES_FINALIZE
from tests.helpers.system import Fleet, System, fleet
from tests.helpers.waiting import eventually


def row(value: float) -> dict[str, Any]:
    return {"inputs": [tensor([value], "FP32", [1, 1])]}


@pytest_asyncio.fixture
async def picky_fleet(nats_url: str, namespace: str, served_repository: Path) -> AsyncIterator[Fleet]:
    async with fleet(nats_url, namespace, served_repository) as running:
        await running.add_worker(PICKY)
        yield running


async def ask(port: int, request: bytes) -> Answer:
    async with http.connect(port) as connection:
        return await connection.ask(request)


async def ask_all(port: int, requests: list[bytes]) -> list[Answer]:
    return list(await asyncio.gather(*(ask(port, request) for request in requests)))


@pytest.mark.parametrize(
    ("value", "status", "part"),
    [
        (served_models.RAISES, 500, "ValueError: thirteen"),
        (served_models.REFUSED, 400, "fourteen"),
        (served_models.WRONG_SHAPE, 500, "output 'y': shape: found [1, 0]; expected [1, 1]"),
        (served_models.WRONG_COUNT, 500, "execute returned 0 of them"),
        (served_models.EXITS, 500, "SystemExit: seventeen"),
        (served_models.INTERRUPTS, 500, "KeyboardInterrupt: eighteen"),
    ],
)
async def test_a_bad_row_does_not_spoil_its_batch(
    picky_fleet: Fleet, value: float, status: int, part: str
) -> None:
    """Sixteen requests in one batch, one of them bad: it alone fails."""
    values = [float(number) for number in range(100, 100 + MAX_BATCH)]
    values[5] = value
    answers = await ask_all(picky_fleet.port, [infer(PICKY, row(one)) for one in values])
    for one, answer in zip(values, answers, strict=True):
        if one == value:
            assert answer.status == status, answer
            assert part in answer.error
        else:
            assert answer.outputs() == {"y": [2 * one]}
    await settled(picky_fleet)


async def test_only_bad_rows(picky_fleet: Fleet) -> None:
    answers = await ask_all(picky_fleet.port, [infer(PICKY, row(served_models.RAISES))] * MAX_BATCH)
    assert {(answer.status, answer.reason) for answer in answers} == {(500, ModelFailed.reason)}
    assert (await ask(picky_fleet.port, infer(PICKY, row(1.0)))).outputs() == {"y": [2.0]}
    await settled(picky_fleet)


async def settled(running: Fleet) -> None:
    """Nothing leaks: nothing is in flight at the gateway, held by a worker, or left in the queue."""
    await eventually(lambda: running.in_flight == 0, "the gateway holds nothing")
    services = [service for worker in running.workers for service in worker.services.values()]
    await eventually(lambda: not any(service._held for service in services), "the workers hold nothing")
    await eventually(lambda: not any(service._credit.held_rows for service in services), "no rows are held")
    assert await running.queued(PICKY) == 0


async def test_a_model_that_always_raises(system: System) -> None:
    answer = await ask(system.http_port, infer(RAISES_EXECUTE, row(1.0)))
    assert answer.status == 500
    assert answer.reason == ModelFailed.reason
    assert "RuntimeError: raised in execute (model.py:" in answer.error


async def test_a_model_that_raises_at_its_end_serves_until_then(
    nats_url: str, namespace: str, served_repository: Path
) -> None:
    async with fleet(nats_url, namespace, served_repository) as running:
        worker = await running.add_worker(RAISES_FINALIZE)
        assert (await ask(running.port, infer(RAISES_FINALIZE, row(1.0)))).outputs() == {"y": [1.0]}
        await worker.drain()
        await running.unknown(worker.id)
        assert (await ask(running.port, infer(RAISES_FINALIZE, row(1.0)))).status == 503


@pytest.mark.parametrize("name", served_models.BROKEN)
async def test_models_that_could_not_be_loaded_do_not_exist(system: System, name: str) -> None:
    answer = await ask(system.http_port, infer(name, row(1.0)))
    assert (answer.status, answer.reason) == (404, "model_not_found")
    ready = await ask(system.http_port, http.get("/v2/health/ready"))
    assert ready.status == 200, "every model that was loaded has a worker"


async def test_an_expired_request_never_reaches_the_model(
    nats_url: str, namespace: str, served_repository: Path, tmp_path: Path
) -> None:
    """The model is busy with one request while the deadline of another passes."""
    first, second = tmp_path / "first", tmp_path / "second"
    async with fleet(nats_url, namespace, served_repository) as running:
        await running.add_worker(GATED)
        async with http.connect(running.port) as connection:
            connection.send(infer(GATED, gate(first)))
            await eventually(lambda: began(first), "the model is busy")
            late = await ask(running.port, infer(GATED, gate(second, timeout=50_000)))
            assert (late.status, late.reason) == (504, "deadline_exceeded")
            first.touch()
            assert (await connection.answer()).status == 200
        assert (await ask(running.port, infer(GATED, gate(None)))).status == 200
        assert not began(second)


async def test_a_client_that_hangs_up_is_forgotten(
    nats_url: str, namespace: str, served_repository: Path, tmp_path: Path
) -> None:
    async with fleet(nats_url, namespace, served_repository) as running:
        await running.add_worker(GATED)
        one = tmp_path / "gate"
        async with http.connect(running.port) as connection:
            connection.send(infer(GATED, gate(one)))
            await eventually(lambda: began(one), "the model is busy")
            assert running.in_flight == 1
        await eventually(lambda: running.in_flight == 0, "the gateway noticed")
        async with http.connect(running.port) as connection:
            connection.send(infer(GATED, gate(one))[:-20])  # in the middle of its body
            await connection.flush()
        one.touch()
        assert (await ask(running.port, infer(GATED, gate(None)))).status == 200
        assert running.in_flight == 0


def began(path: Path) -> bool:
    """Whether the model has begun a batch that waits for this gate."""
    return Path(f"{path}.began").exists()


def gate(path: Path | None, timeout: int = 0) -> dict[str, Any]:
    body: dict[str, Any] = {"inputs": [tensor([str(path) if path else ""], "BYTES", [1, 1])]}
    return {**body, "parameters": {"timeout": timeout}} if timeout else body
