"""What the quickstart tells its reader to type does what the page says."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import numpy as np
import pytest
from examples.showcase.direct import OnnxFile
from examples.showcase.server import Endpoints, serving

from qinfer.repository import Repository

PAGE = Path(__file__).resolve().parents[2] / "docs" / "quickstart.md"
_TITLED = re.compile(r"^```\w+ title=(\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_CURL = re.compile(r"^curl http://127\.0\.0\.1:8000(\S+)(?: -d '([^']*)')?$", re.MULTILINE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every file of the page, after `python train.py`."""
    root = tmp_path_factory.mktemp("quickstart")
    for name, content in _TITLED.findall(PAGE.read_text()):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    subprocess.run([sys.executable, "train.py"], cwd=root, check=True, timeout=60)
    return root


def test_the_trained_model_tells_the_clouds_apart(folder: Path) -> None:
    direct = OnnxFile(folder / "my-models" / "clouds" / "1" / "model.onnx")
    points = np.array([[0.1, -0.2], [3.8, 0.3], [0.2, 4.4]], dtype=np.float32)
    assert direct.run({"point": points})["probability"].argmax(axis=1).tolist() == [0, 1, 2]


def test_the_repository_of_the_page_is_sound(folder: Path) -> None:
    entries, problems = Repository(folder / "my-models").scan()
    assert problems == []
    clouds, shout = sorted(entries, key=lambda entry: entry.name)
    assert (clouds.config.backend, clouds.config.max_batch_size) == ("onnxruntime", 64)
    assert clouds.config.outputs[0].labels == ("middle", "right", "top")
    assert shout.config.backend == "python"


@pytest.fixture(scope="module")
def endpoints(folder: Path) -> Iterator[Endpoints]:
    with serving(folder / "my-models", ["clouds", "shout"], folder / "server.log") as endpoints:
        yield endpoints


def _call(endpoints: Endpoints, path: str, body: str | None) -> dict[str, Any]:
    request = Request(f"http://{endpoints.http}{path}", data=body.encode() if body else None)
    with urlopen(request, timeout=30) as answer:
        result: dict[str, Any] = json.load(answer)
    return result


def test_the_curl_lines_of_the_page(endpoints: Endpoints) -> None:
    lines = [(path, body) for path, body in _CURL.findall(PAGE.read_text()) if "/clouds/" in path]
    assert [path.rpartition("/")[2] for path, _ in lines] == ["infer", "stats"]
    answer, statistics = (_call(endpoints, path, body) for path, body in lines)
    (output,) = answer["outputs"]
    assert output["shape"] == [1, 3]
    assert output["data"].index(max(output["data"])) == 1
    assert statistics["model_stats"][0]["name"] == "clouds"


def test_the_python_model_of_the_page(endpoints: Endpoints) -> None:
    body = {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [2, 1], "data": ["Grüße", "ok"]}]}
    answer = _call(endpoints, "/v2/models/shout/infer", json.dumps(body))
    assert answer["outputs"][0]["data"] == ["GRÜSSE", "OK"]


def test_the_grpc_client_of_the_page(folder: Path, endpoints: Endpoints) -> None:
    done = subprocess.run(
        [sys.executable, "ask.py", endpoints.grpc],
        cwd=folder, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.stdout == "1\n", done.stderr
