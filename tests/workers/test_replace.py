"""A model's versions replaced and retired while it serves; on the memory bus, computed by stub instances."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterator
from functools import partial
from typing import Any

import pytest
import pytest_asyncio

from qinfer.message import Response
from qinfer.signature import Signature
from qinfer.telemetry.stats import ModelStats
from qinfer_workers.execution import Executor
from qinfer_workers.instance import Completion, InstanceThread
from qinfer_workers.record import BatchRecorder
from qinfer_workers.served import ServedVersion
from qinfer_workers.service import ModelService
from tests.helpers.waiting import eventually
from tests.workers.support import StubInstance, config_of, request_of
from tests.workers.test_service import PATIENT, Run, Stage


class Scene:
    """One service, and versions for it that multiply by a number."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.service: ModelService | None = None

    async def load(self, version: str, run: Run, *, max_batch_size: int = 8) -> ServedVersion:
        config = config_of(max_batch_size=max_batch_size)
        served: ServedVersion | None = None

        def completed(completion: Completion) -> None:
            assert self.service is not None
            assert served is not None
            self.service.completed(served, completion)

        thread = InstanceThread("stub", partial(Executor, config, StubInstance(run)), completed)
        await thread.start()
        self.stage.stack.push_async_callback(thread.close, 20)
        served = ServedVersion(
            version=version,
            config=config,
            instances=[thread],
            recorder=BatchRecorder(ModelStats("stub", version)),
            signature=Signature(config.inputs, config.outputs, config.max_batch_size),
        )
        return served

    async def serve(self, *versions: ServedVersion) -> ModelService:
        self.service = ModelService(self.stage.worker, "worker-1", "stub", versions)
        await self.service.start(PATIENT)
        self.stage.stack.push_async_callback(self.service.drain, 5)
        return self.service

    async def ask(self, number: int, version: str = "") -> float:
        """Send a request; returns what its values were multiplied by."""
        self.stage.send(request_of(number), version=version)
        return factor(number, (await self.stage.responses(1))[number])


def times(number: float) -> Run:
    return lambda batch: {"y": batch.inputs["x"] * number}


def factor(number: int, response: Response) -> float:
    assert response.error is None, response.error
    return float(response.outputs[0].numpy()[0][0]) / number


@pytest_asyncio.fixture
async def scene(namespace: str) -> AsyncIterator[Scene]:
    stage = Stage(namespace)
    await stage.start()
    yield Scene(stage)
    await stage.stack.aclose()


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


async def test_the_newest_that_stays_gets_what_names_no_version(scene: Scene) -> None:
    one = await scene.load("1", times(1))
    service = await scene.serve(one)
    two = await scene.load("2", times(2))
    assert await service.replace([two], []) == []
    assert [await scene.ask(7), await scene.ask(8, "1"), await scene.ask(9, "2")] == [2, 1, 2]
    await service.replace([], ["2"])
    assert [await scene.ask(10), await scene.ask(11, "2")] == [1, 2], "who has not heard yet is still served"
    await service.retire(two, 20)
    assert [await scene.ask(12), list(service.versions)] == [1, ["1"]]


async def test_a_version_that_is_replaced_finishes_what_it_holds(scene: Scene, gate: threading.Event) -> None:
    def held(batch: Any) -> Any:
        gate.wait(20)
        return times(1)(batch)

    old = await scene.load("1", held, max_batch_size=1)
    service = await scene.serve(old)
    for number in (1, 2, 3):
        scene.stage.send(request_of(number))
    await eventually(lambda: old.instances[0].batch is not None)
    await eventually(lambda: old.batcher is not None and old.batcher.waiting == 2)
    new = await scene.load("1", times(2))
    assert await service.replace([new], []) == [old]
    assert await scene.ask(4) == 2
    assert await scene.ask(5, "1") == 2
    gate.set()
    await service.retire(old, 20)
    answers = await scene.stage.responses(3)
    assert [factor(number, answers[number]) for number in (1, 2, 3)] == [1, 1, 1]
    await eventually(lambda: scene.stage.queued == 0, "all is acked")


async def test_what_does_not_finish_is_run_by_the_other(scene: Scene, gate: threading.Event) -> None:
    """And what the old one says of it afterwards does no harm: the answer comes twice, the ack once."""

    def stuck(batch: Any) -> Any:
        gate.wait(20)
        return times(1)(batch)

    old = await scene.load("1", stuck, max_batch_size=1)
    service = await scene.serve(old)
    for number in (1, 2):
        scene.stage.send(request_of(number))
    await eventually(lambda: old.batcher is not None and old.batcher.waiting == 1)
    new = await scene.load("1", times(2))
    await service.replace([new], [])
    await service.retire(old, 0.05)
    answers = await scene.stage.responses(2)
    assert [factor(number, answers[number]) for number in (1, 2)] == [2, 2]
    await eventually(lambda: scene.stage.queued == 0)
    gate.set()
    late = await scene.stage.responses(1)
    assert factor(1, late[1]) == 1
    assert await scene.ask(3) == 2


async def test_a_version_that_comes_back_before_it_has_left(scene: Scene) -> None:
    one, two = await scene.load("1", times(1)), await scene.load("2", times(2))
    service = await scene.serve(one, two)
    await service.replace([], ["2"])
    again = await scene.load("2", times(20))
    assert await service.replace([again], []) == [two]
    assert [await scene.ask(3), await scene.ask(4, "2")] == [20, 20]
    await service.retire(two, 20)
    assert [await scene.ask(5), await scene.ask(6, "2")] == [20, 20], "its queue is still pulled"
