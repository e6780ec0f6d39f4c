"""A model that never returns."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from qinfer_workers.watchdog import Watchdog
from tests.helpers import http, served_models
from tests.helpers.http import Answer, infer, tensor
from tests.helpers.system import System, serving

MODEL = "sleeper"
FOR_EVER = 666
_SOURCE = """
import threading
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        responses = []
        for request in requests:
            x = pb_utils.get_input_tensor_by_name(request, "x")
            if x.as_numpy().item() == 666:
                threading.Event().wait()
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("y", x.as_numpy())]))
        return responses
"""


@pytest.fixture
def system(tmp_path: Path) -> Iterator[System]:
    folder = tmp_path / "models" / MODEL / "1"
    folder.mkdir(parents=True)
    (folder / "model.py").write_text(_SOURCE)
    configuration = f'backend: "python"\nmax_batch_size: 4\n{served_models.signature("INT64", 1)}\n'
    (folder.parent / "config.pbtxt").write_text(configuration)
    options = ("--hang-timeout=0.4", "--drain-timeout=0.1", "--request-timeout=1")
    with serving(tmp_path / "models", *options) as system:
        yield system


async def ask(port: int, value: int) -> Answer:
    async with http.connect(port) as connection:
        return await connection.ask(infer(MODEL, {"inputs": [tensor([value], "INT64", [1, 1])]}))


async def test_a_worker_whose_model_hangs_is_replaced(system: System) -> None:
    assert (await ask(system.http_port, 1)).status == 200
    assert (await ask(system.http_port, FOR_EVER)).status == 504
    async with asyncio.timeout(30):
        while (answer := await ask(system.http_port, 2)).status != 200:
            assert answer.status in (503, 504)
    assert answer.outputs() == {"y": [2]}
    assert "sleeper_0 hangs" in system.log.read_text()


class _Instance:
    """Stands for an instance thread with a batch."""

    name = "stub_0"

    def __init__(self, batch: object) -> None:
        self.batch = batch


class _Batch:
    def __init__(self, *, cancelled: bool) -> None:
        self.cancelled = cancelled

    def is_cancelled(self) -> bool:
        return self.cancelled


class _Served:
    def __init__(self, *batches: _Batch | None) -> None:
        self.instances = [_Instance(batch) for batch in batches]


async def test_only_what_nobody_waits_for_hangs() -> None:
    served = _Served(_Batch(cancelled=False), None)
    watchdog = Watchdog(lambda: [served], timeout=0.02)  # type: ignore[list-item]
    watching = asyncio.ensure_future(watchdog.hung())
    done, _ = await asyncio.wait({watching}, timeout=0.2)
    assert not done
    served.instances[0].batch.cancelled = True  # type: ignore[attr-defined]
    async with asyncio.timeout(20):
        assert await watching == "stub_0"


async def test_a_batch_is_given_its_time() -> None:
    """One batch after the other that ends late is no hanging instance."""
    served = _Served(_Batch(cancelled=True))
    watchdog = Watchdog(lambda: [served], timeout=0.1)  # type: ignore[list-item]
    watching = asyncio.ensure_future(watchdog.hung())
    for _ in range(20):
        served.instances[0].batch = _Batch(cancelled=True)
        done, _ = await asyncio.wait({watching}, timeout=0.02)
        assert not done
    watching.cancel()
