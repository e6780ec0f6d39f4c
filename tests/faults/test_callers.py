"""Callers who send what a model cannot bear, or do not wait for their answer."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

from tests.faults.load import began, gated
from tests.helpers import http
from tests.helpers.http import infer, tensor
from tests.helpers.served_models import GATED, PICKY, RAISES
from tests.helpers.system import fleet
from tests.helpers.waiting import eventually


async def test_a_row_that_the_model_refuses_costs_its_batch_mates_nothing(
    nats_url: str, namespace: str, served_repository: Path
) -> None:
    values = [1, 2, RAISES, 4, 5, 6]
    async with fleet(nats_url, namespace, served_repository) as running, AsyncExitStack() as stack:
        worker = await running.add_worker(PICKY)
        connections = [await stack.enter_async_context(http.connect(running.port)) for _ in values]
        for connection, value in zip(connections, values, strict=True):
            connection.send(infer(PICKY, {"inputs": [tensor([value], "FP32", [1, 1])]}))
        answers = await asyncio.gather(*(connection.answer() for connection in connections))
        for answer, value in zip(answers, values, strict=True):
            if value == RAISES:
                assert (answer.status, answer.reason) == (500, "model_failed")
            else:
                assert answer.outputs() == {"y": [2 * value]}
        (stats,) = worker.stats()
        assert max(batch.batch_size for batch in stats.snapshot().batch_stats) > 1, "they shared one"


async def test_what_nobody_waits_for_is_not_run(
    nats_url: str, namespace: str, served_repository: Path, tmp_path: Path
) -> None:
    running_gate, abandoned_gate = tmp_path / "running", tmp_path / "abandoned"
    async with fleet(nats_url, namespace, served_repository) as running:
        worker = await running.add_worker(GATED)
        async with http.connect(running.port) as patient:
            patient.send(gated(running_gate))
            await eventually(lambda: began(running_gate), "the model is busy")
            async with http.connect(running.port) as impatient:
                impatient.send(gated(abandoned_gate))
                await eventually(lambda: running.in_flight == 2, "the second request is on its way")
                held = worker.services[GATED]._held
                await eventually(lambda: len(held) == 2, "it waits at the worker")
            await eventually(lambda: running.in_flight == 1, "its caller has gone")
            await eventually(lambda: len(held) == 1, "and so has the request")
            running_gate.touch()
            assert (await patient.answer()).status == 200
            assert (await patient.ask(gated(""))).status == 200
        assert not began(abandoned_gate)
