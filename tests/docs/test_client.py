"""Every example of `docs/client.md` is run, and prints what it says."""

from __future__ import annotations

import ast
import asyncio
import inspect
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from qinfer.client import connect
from tests.docs.pages import blocks, read
from tests.helpers.system import Fleet, fleet

PAGE = "docs/client.md"
PRINTS = re.compile(r"print\(.*?\)  # (.*)$", re.MULTILINE)

_HEAD = "import time\nimport numpy as np\nimport triton_python_backend_utils as pb_utils\n"
_MODEL = """
class TritonPythonModel:
    def execute(self, requests):
        {before}
        inputs = [pb_utils.get_input_tensor_by_name(request, "x").as_numpy() for request in requests]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("y", x)]) for x in inputs]
"""
_COUNT = """
class TritonPythonModel:
    def count(self, request):
        for i in range(pb_utils.get_input_tensor_by_name(request, "n").as_numpy()[0]):
            yield pb_utils.InferenceResponse([pb_utils.Tensor("i", np.array([i], np.int32))])

    def execute(self, requests):
        return [self.count(request) for request in requests]
"""
_FLOATS = """max_batch_size: 64
input { name: "x" data_type: TYPE_FP32 dims: -1 }
output { name: "y" data_type: TYPE_FP32 dims: -1 }
"""
_NUMBERS = """
input { name: "n" data_type: TYPE_INT32 dims: 1 }
output { name: "i" data_type: TYPE_INT32 dims: 1 }
model_transaction_policy { decoupled: true }
"""
MODELS = {
    "mlp": (_FLOATS, _MODEL.format(before="pass")),
    "slow": (_FLOATS, _MODEL.format(before="time.sleep(0.5)")),
    "count": (_NUMBERS, _COUNT),
}


@pytest_asyncio.fixture
async def running(nats_url: str, namespace: str, tmp_path: Path) -> AsyncIterator[Fleet]:
    for name, (config, source) in MODELS.items():
        (tmp_path / name / "1").mkdir(parents=True)
        (tmp_path / name / "1" / "model.py").write_text(_HEAD + source)
        (tmp_path / name / "config.pbtxt").write_text(f'backend: "python"\n{config}')
    async with fleet(nats_url, namespace, tmp_path) as made:
        await made.add_worker()
        yield made


async def run(code: str, scope: dict[str, Any]) -> None:
    """Run code that may await."""
    compiled = compile(code, PAGE, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
    if compiled.co_flags & inspect.CO_COROUTINE:
        await eval(compiled, scope)
    else:  # it waits, and the fleet is on this loop
        await asyncio.to_thread(exec, compiled, scope)


@pytest.mark.parametrize("way", ["http", "nats"])
async def test_every_example(running: Fleet, way: str) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("pandas")
    http, nats = f"http://127.0.0.1:{running.port}", running.nats
    url, options = (http, {}) if way == "http" else (nats, {"namespace": running.namespace})
    said: list[str] = []
    async with connect(url, **options) as client:
        scope: dict[str, Any] = {
            "client": client,
            "print": lambda *values: said.extend(" ".join(map(str, values)).splitlines()),
        }
        for code in blocks(read(PAGE), "python"):
            code = code.replace('"http://localhost:8000"', repr(http)).replace(
                '"nats://localhost:4222", namespace="default"', f"{nats!r}, namespace={running.namespace!r}"
            )
            said.clear()
            scope["client"] = client  # some examples open one of their own
            await run(code, scope)
            assert said == [line for text in PRINTS.findall(code) for line in text.split(" | ")], code


def test_the_examples_say_what_they_print() -> None:
    assert len(PRINTS.findall("\n".join(blocks(read(PAGE), "python")))) >= 15
