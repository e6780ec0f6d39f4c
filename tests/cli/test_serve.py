"""The whole of it: `qinfer serve` with real roles, asked by the other commands."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from qinfer.cli.app import app

MODEL = """
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        answers = []
        for request in requests:
            x = pb_utils.get_input_tensor_by_name(request, "x").as_numpy()
            answers.append(pb_utils.InferenceResponse([pb_utils.Tensor("y", x * np.float32(2))]))
        return answers
"""

CONFIG = """
backend: "python"
max_batch_size: 8
input [{ name: "x" data_type: TYPE_FP32 dims: [ 3 ] }]
output [{ name: "y" data_type: TYPE_FP32 dims: [ 3 ] }]
"""

START = 60.0


class Server:
    """A running `qinfer serve` and what it printed."""

    def __init__(self, process: subprocess.Popen[str], panel: str) -> None:
        self.process = process
        self.panel = panel
        self.http = self.find(r"HTTP\s+(http://\S+)")
        self.metrics = self.find(r"metrics\s+(http://\S+)")

    def find(self, pattern: str) -> str:
        match = re.search(pattern, self.panel)
        assert match is not None, self.panel
        return match[1]


def read_panel(process: subprocess.Popen[str]) -> str:
    """What the server prints when it is ready: up to the line that can be tried."""
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if "curl" in line:
            break
    return "".join(lines)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    repository = tmp_path_factory.mktemp("models")
    (repository / "double" / "1").mkdir(parents=True)
    (repository / "double" / "1" / "model.py").write_text(MODEL)
    (repository / "double" / "config.pbtxt").write_text(CONFIG)
    (repository / "broken").mkdir()
    (repository / "broken" / "config.pbtxt").write_text("nonsense: 1")
    command = [sys.executable, "-m", "qinfer", "serve", str(repository), "--storage", "memory"]
    ports = ["--http-port=0", "--grpc-port=0", "--metrics-port=0", f"--startup-timeout={START}"]
    with (
        (repository / "log").open("w") as log,
        subprocess.Popen([*command, *ports], stdout=subprocess.PIPE, stderr=log, text=True) as process,
    ):
        try:
            panel = read_panel(process)
            assert panel, (repository / "log").read_text()
            yield Server(process, panel)
        finally:
            process.kill()


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), prog_name="qinfer")


def test_the_panel_names_models_problems_and_something_to_try(server: Server) -> None:
    assert re.search(r"double\s+1\s+python\s+ready\s+1", server.panel)
    assert re.search(r"broken\s+unavailable\s+0\s+\S", server.panel)
    done = subprocess.run(server.find("(curl .*)"), shell=True, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["outputs"][0]["data"] == [0.0, 0.0, 0.0]


def test_models(server: Server) -> None:
    rows = {row["name"]: row for row in json.loads(run("models", "--url", server.http, "--json").stdout)}
    assert rows["double"] == {
        "name": "double",
        "version": "1",
        "backend": "python",
        "state": "READY",
        "reason": "",
        "workers": 1,
    }
    assert rows["broken"]["state"] == "UNAVAILABLE"
    assert "nonsense" in rows["broken"]["reason"]
    shown = run("models", "--url", server.http).stdout
    assert re.search(r"^broken: .*nonsense", shown, re.MULTILINE | re.DOTALL)
    assert re.search(r"double\s+1\s+python\s+ready\s+1", shown)


def test_infer(server: Server, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([[1, 2, 3], [4, 5, 6]], "f4"))
    saved = tmp_path / "y.npy"
    result = run(
        "infer", "double", "--url", server.http, f"--input=x=@{tmp_path}/x.npy", f"--output=y=@{saved}"
    )
    assert result.exit_code == 0, result.output
    assert re.search(r"y\s+FP32\s+\[2, 3\]", result.output)
    np.testing.assert_array_equal(np.load(saved), [[2, 4, 6], [8, 10, 12]])
    result = run("infer", "double", "--url", server.http, "--input", "[[0.5, 1, 2]]", "--json")
    assert json.loads(result.stdout)["outputs"] == [
        {"name": "y", "datatype": "FP32", "shape": [1, 3], "data": [1.0, 2.0, 4.0]}
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nope", "--input", "x=[1]"], "nope"),
        (["double", "--input", "x=[[1, 2]]"], "shape"),
        (["double", "--input", "z=[[1, 2, 3]]"], "the model has no input 'z'; expected one of x"),
        (["double", "--input", "x=[[1, 2, 3]]", "--version", "7"], "7"),
    ],
)
def test_infer_says_what_is_wrong(server: Server, arguments: list[str], message: str) -> None:
    result = run("infer", "--url", server.http, *arguments)
    assert result.exit_code == 1
    assert result.output.startswith("Error: ")
    assert message in result.output


def test_metrics_of_the_roles_come_together(server: Server) -> None:
    with urllib.request.urlopen(server.metrics, timeout=10) as response:
        lines = response.read().decode().splitlines()
    for role in ("gateway", "worker", "broker"):
        assert f'qinfer_up{{instance="0",role="{role}"}} 1.0' in lines
    assert any(line.startswith("qinfer_requests_total{") and 'model="double"' in line for line in lines)


def test_ctrl_c_stops_it_well(server: Server) -> None:
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(START) == 0
