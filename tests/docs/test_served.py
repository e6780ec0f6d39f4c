"""What the pages tell their reader to send is answered, over HTTP and gRPC."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from qinfer_gateway.http.app import make_app
from tests.docs.pages import blocks, first_column, read, section
from tests.helpers import http
from tests.helpers.http import Answer
from tests.helpers.system import Fleet, fleet

CURL = re.compile(r"curl localhost:8000(\S+) -d '([^']*)'")
IDENTITY = """
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        inputs = [pb_utils.get_input_tensor_by_name(request, "x").as_numpy() for request in requests]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("y", x)]) for x in inputs]
"""
CONFIG = """
backend: "python"
max_batch_size: 8
input { name: "x" data_type: TYPE_FP32 dims: -1 }
output { name: "y" data_type: TYPE_FP32 dims: -1 }
"""


@pytest_asyncio.fixture
async def running(nats_url: str, namespace: str, tmp_path: Path) -> AsyncIterator[Fleet]:
    for name in ("mlp", "mymodel"):
        (tmp_path / name / "1").mkdir(parents=True)
        (tmp_path / name / "1" / "model.py").write_text(IDENTITY)
        (tmp_path / name / "config.pbtxt").write_text(CONFIG)
    async with fleet(nats_url, namespace, tmp_path, grpc_port=0) as made:
        await made.add_worker()
        yield made


async def ask(running: Fleet, request: bytes) -> Answer:
    async with http.connect(running.port) as connection:
        return await connection.ask(request)


@pytest.mark.parametrize(
    "name", ["README.md", "docs/http-grpc.md", "docs/overload.md", "docs/idempotency.md"]
)
async def test_curl(running: Fleet, name: str) -> None:
    text = "\n".join(blocks(read(name), "console"))
    ((path, body),) = [found for found in CURL.findall(text) if found[0].endswith("/infer")]
    answer = await ask(running, http.post(path, body.encode(), *re.findall("-H '([^']*)'", text)))
    given = json.loads(body)
    assert answer.outputs() == {"y": given["inputs"][0]["data"]}
    assert answer.json().get("id") == given.get("id")


async def test_generate(running: Fleet) -> None:
    ((path, body, answer),) = re.findall(
        CURL.pattern + r"\n(.*)", "\n".join(blocks(section(read("docs/http-grpc.md"), "Generate"), "console"))
    )
    assert (await ask(running, http.post(path, body.encode()))).body.decode() == answer


async def test_routes(running: Fleet) -> None:
    """Every route of the table answers, and there is no other."""
    cells = first_column(section(read("docs/http-grpc.md"), "Routes"))
    named = [path for cell in cells for path in re.findall(r"`(?:GET |POST )?([^`]+)`", cell)]
    model = "/v2/models/{m}[/versions/{v}]"
    full = [path.replace("…", model) for path in named]
    paths = {
        spelling for path in full for spelling in (path.replace("[/versions/{v}]", ""), _with_version(path))
    }
    served = {route.path.replace("{model}", "{m}").replace("{version}", "{v}") for route in _routes()}
    assert paths == served
    for path in paths:
        address = path.replace("{m}", "mlp").replace("{v}", "1")
        if address.startswith("/v2/repository"):
            status = 200 if address.endswith("/index") else 501  # the worker's mode is none
            assert (await ask(running, http.post(address, b""))).status == status, address
        elif address.startswith("/v2/jobs/"):
            acts = address.endswith(("/cancel", "/retry"))
            asked = http.post(address, b"") if acts else http.get(address)
            assert (await ask(running, asked)).reason == "job_not_found", address
        elif not address.endswith(("/infer", "/generate", "/generate_stream")):
            assert (await ask(running, http.get(address))).status == 200, address


def _with_version(path: str) -> str:
    return path.replace("[/versions/{v}]", "/versions/{v}")


def _routes() -> list:
    return make_app(None).routes  # type: ignore[arg-type]


async def test_the_stream_of_the_page(running: Fleet) -> None:
    assert running.gateway.grpc is not None
    (code,) = blocks(section(read("docs/http-grpc.md"), "Streams"), "python")
    code = code.replace("localhost:8001", f"127.0.0.1:{running.gateway.grpc.port}")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code + "\nprint([float(answer[0, 0]) for answer in answers])",
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    async with asyncio.timeout(60):
        out, err = await process.communicate()
    assert out == b"[0.0, 1.0, 2.0]\n", err.decode()


async def test_binary_tensors_as_described(running: Fleet) -> None:
    """N bytes of JSON and the raw bytes after it, both ways; or nothing but raw bytes."""
    raw = b"\x00\x00\x80?\x00\x00\x00@\x00\x00@@"
    tensor = {"name": "x", "shape": [1, 3], "datatype": "FP32", "parameters": {"binary_data_size": len(raw)}}
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    header = "Inference-Header-Content-Length"
    for request in (
        http.post(http.infer_path("mlp"), head + raw, f"{header}: {len(head)}"),
        http.post(http.infer_path("mlp"), raw, f"{header}: 0"),
    ):
        answer = await ask(running, request)
        length = int(answer.headers[header.lower()])
        (output,) = json.loads(answer.body[:length])["outputs"]
        assert output["shape"] == [1, 3]
        assert answer.body[length:] == raw
