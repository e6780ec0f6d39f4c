"""Starting, checking and stopping a server."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from loadtest.mlp import example_rows
from loadtest.peers import QInfer, Triton
from loadtest.peers.base import Ports
from loadtest.server import Server
from loadtest.verify import DISTINCT_REQUESTS, requests_file, verify

from qinfer.errors import ModelFailed, Unavailable

Tiny = Callable[..., AbstractContextManager[Server]]


def test_runs_within_its_context_and_answers_like_onnxruntime(tiny: Tiny) -> None:
    with tiny() as server:
        verify(server, server.peer.wires)
        bodies = requests_file(server).read_bytes().splitlines()
        pid = server.pid
        counters = server.peer.counters(server.ports.base)
        assert [item.role for item in server.snapshot().values()] == ["front"]
    assert bodies == [server.peer.body(row) for row in example_rows(DISTINCT_REQUESTS)]
    assert counters is not None
    assert counters.inferences == 1 + DISTINCT_REQUESTS
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    with pytest.raises(Unavailable, match="tiny is not running"):
        server.snapshot()


@pytest.mark.parametrize(
    ("fault", "message"), [("wrong", "wrong answer to example row 0"), ("refuse", "HTTP Error 429")]
)
def test_a_server_that_answers_wrongly_is_not_measured(tiny: Tiny, fault: str, message: str) -> None:
    with tiny(fault) as server, pytest.raises(ModelFailed, match=message):
        verify(server, server.peer.wires)


def test_a_server_that_does_not_start_shows_its_log(tiny: Tiny) -> None:
    with pytest.raises(Unavailable, match=r"(?s)ended with status 1 .*no such device"), tiny("exit"):
        pass


@pytest.mark.parametrize(
    ("command", "role"),
    [
        ("/venv/bin/python -P -m qinfer gateway --http-port=1", "gateway"),
        ("/venv/bin/python -P -m qinfer worker --storage=memory -- /tmp/worker/models", "worker"),
        ("/venv/lib/nats_server/bin/nats-server -c /tmp/nats.conf", "broker"),
        ("/venv/bin/python /venv/bin/qinfer serve /tmp/models --gateways 1 --workers 1", "supervisor"),
    ],
)
def test_roles_of_qinfer(command: str, role: str) -> None:
    assert QInfer().role(command.split()) == role


@pytest.mark.parametrize(
    ("command", "role"),
    [
        ("/cache/bin/tritonserver --model-repository=/tmp/models", "server"),
        ("/cache/backends/python/triton_python_backend_stub /tmp/mlp/1/model.py", "python backend"),
    ],
)
def test_roles_of_triton(command: str, role: str) -> None:
    assert Triton().role(command.split()) == role


def test_triton_gets_the_same_model_and_configuration(tmp_path: Path) -> None:
    ports = Ports(http=1, grpc=2, metrics=3)
    for peer in (QInfer(), Triton()):
        peer.command(tmp_path / "cache", tmp_path / peer.name, ports)
    files = [tmp_path / name / "models" / "mlp" for name in ("qinfer", "triton")]
    models = [(folder / "1" / "model.onnx").read_bytes() for folder in files]
    assert models[0] == models[1]
    ours, theirs = ((folder / "config.pbtxt").read_text() for folder in files)
    assert ours.replace('"onnxruntime"', '"python"').startswith(theirs)
