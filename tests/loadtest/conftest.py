"""A small real server for the load tests to measure."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from loadtest.mlp import build_mlp
from loadtest.peers import PEERS
from loadtest.peers.base import Command, OpenInference, Ports
from loadtest.server import Server


class TinyPeer(OpenInference):
    """The tiny server beside this file; `fault` makes it misbehave."""

    title = "Tiny server"
    remark = "It has no batching."
    wires = ("http-json",)

    def __init__(self, name: str = "tiny", fault: str = "") -> None:
        self.name = name
        self._fault = fault

    def prepare(self, cache: Path) -> None:
        pass

    def versions(self) -> Mapping[str, str]:
        return {"tiny": "1"}

    def command(self, cache: Path, folder: Path, ports: Ports) -> Command:
        build_mlp(folder / "model.onnx")
        script = Path(__file__).with_name("tiny_server.py")
        arguments = [sys.executable, str(script), str(ports.http), str(folder / "model.onnx"), self._fault]
        return Command(arguments=arguments)

    def role(self, arguments: Sequence[str]) -> str:
        return "front" if arguments[1].endswith("tiny_server.py") else "unexpected"


@pytest.fixture
def peers(monkeypatch: pytest.MonkeyPatch) -> dict[str, TinyPeer]:
    """Two tiny servers take the place of all peers."""
    tiny = {name: TinyPeer(name) for name in ("first", "second")}
    for name in list(PEERS):
        monkeypatch.delitem(PEERS, name)
    for name, peer in tiny.items():
        monkeypatch.setitem(PEERS, name, peer)
    return tiny


@pytest.fixture
def tiny(tmp_path: Path) -> Callable[..., AbstractContextManager[Server]]:
    """Makes a tiny server: `with tiny(fault="wrong") as server`."""

    def make(fault: str = "") -> Server:
        return Server(TinyPeer(fault=fault), cache=tmp_path, folder=tmp_path / "tiny")

    return make
