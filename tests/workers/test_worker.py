"""A worker on the memory bus, with models of a real repository."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TypeAlias

import pytest
import pytest_asyncio

from qinfer.bus import connect
from qinfer_workers.options import WorkerOptions
from qinfer_workers.worker import Worker

Write: TypeAlias = Callable[..., Path]
Start: TypeAlias = Callable[..., Awaitable[Worker]]

MODEL = """
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        return [pb_utils.InferenceResponse([]) for _ in requests]
"""
TENSORS = 'input { name: "x" data_type: TYPE_FP32 dims: 1 } output { name: "y" data_type: TYPE_FP32 dims: 1 }'


@pytest.fixture
def repository(tmp_path: Path) -> Write:
    def write(**configs: str) -> Path:
        for name, config in configs.items():
            version = tmp_path / name / "1"
            version.mkdir(parents=True)
            (version / "model.py").write_text(MODEL)
            (version.parent / "config.pbtxt").write_text(f'backend: "python" {TENSORS} {config}')
        return tmp_path

    return write


@pytest_asyncio.fixture
async def start(namespace: str) -> AsyncIterator[Start]:
    async with AsyncExitStack() as stack:

        async def start(repository: Path, *models: str) -> Worker:
            bus = connect("memory://worker", namespace=namespace)
            await bus.start()
            stack.push_async_callback(bus.close)
            worker = Worker(WorkerOptions(nats="", repositories=(repository,), models=models), bus)
            stack.push_async_callback(worker.drain)
            await worker.start()
            return worker

        yield start


async def test_fields_without_effect_are_named_in_the_log(
    repository: Write, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    ignoring = (
        "dynamic_batching { default_queue_policy { max_queue_size: 3 } } response_cache { enable: true }"
    )
    await start(repository(ignoring=ignoring, obeying="dynamic_batching {}"))
    (line,) = [line for line in caplog.messages if "without effect" in line]
    assert line.startswith("model ignoring: ")
    assert "response_cache, dynamic_batching.default_queue_policy" in line


async def test_only_the_models_that_are_asked_for_are_loaded(repository: Write, start: Start) -> None:
    folder = repository(one="", two="", broken="max_batch_size: -1")
    worker = await start(folder, "one", "nobody")
    assert set(worker.services) == {"one"}
    assert worker.problems == {"nobody": "not in any model repository"}
    everything = await start(folder)
    assert set(everything.services) == {"one", "two"}
    assert set(everything.problems) == {"broken"}
