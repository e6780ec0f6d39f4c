"""`--log-requests`: one structured line for each request, whatever became of it.

A body is not read for a model that does not exist: such a line has no id.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from tests.gateway.grpc.calls import CHANNEL, fp32
from tests.helpers import http, served_models
from tests.helpers.http import infer, tensor
from tests.helpers.served_models import IDENTITY
from tests.helpers.system import serving
from tests.helpers.waiting import eventually

MODEL = IDENTITY["FP32"]


def request_lines(log: Path) -> list[dict[str, Any]]:
    """The lines about requests that are whole."""
    whole = [line for line in log.read_text().splitlines(keepends=True) if line.endswith("\n")]
    found = [json.loads(line) for line in whole if line.startswith("{")]
    return [line for line in found if line["logger"] == "qinfer.request"]


async def test_a_line_for_every_request(served_repository: Path, tmp_path: Path) -> None:
    repository = served_models.copy(served_repository, tmp_path / "models", MODEL)
    with serving(repository, "--log-requests", "--log-format=json") as system:
        async with http.connect(system.http_port) as connection:
            good = {"id": "one", "inputs": [tensor([1.0, 2.0], "FP32", [2, 1])]}
            wrong = {"id": "two", "inputs": [tensor([1.0, 2.0], "FP32", [2])]}
            for model, body in ((MODEL, good), (MODEL, wrong), ("nobody", {**good, "id": "three"})):
                await connection.ask(infer(model, body))
        with triton.InferenceServerClient(system.grpc, channel_args=CHANNEL) as client:
            client.infer(MODEL, fp32(1, 2), request_id="four")
            with pytest.raises(InferenceServerException):
                client.infer("nobody", fp32(1, 2), request_id="five")
        await eventually(lambda: len(request_lines(system.log)) >= 5, "all lines are written")
        lines = request_lines(system.log)
    told = [(line["protocol"], line["model"], line["status"], line["outcome"]) for line in lines]
    assert told == [
        ("http", MODEL, 200, "ok"),
        ("http", MODEL, 400, "invalid_request"),
        ("http", "nobody", 404, "model_not_found"),
        ("grpc", MODEL, 0, "ok"),
        ("grpc", "nobody", 5, "model_not_found"),
    ]
    assert [line.get("request_id", "") for line in lines] == ["one", "two", "", "four", "five"]
    first, fourth = lines[0], lines[3]
    assert (first["rows"], first["version"], first["role"]) == (2, "1", "gateway")
    for line in (first, fourth):
        assert 0 < line["compute_us"] <= line["total_us"]
