"""The contract of a peer: a model server that the load tests know how to install, start and talk to.

A new peer is a module beside this one with a class that fits `Peer`, and a line in `loadtest.peers.PEERS`.
One that speaks the Open Inference Protocol derives from `OpenInference` and writes only what is its own.
"""

from __future__ import annotations

import json
import urllib.request
from typing import TYPE_CHECKING, Protocol

import msgspec
import numpy as np

from loadtest.mlp import INPUT_NAME, MODEL_NAME, OUTPUT_NAME, Floats

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from loadtest.clients import Wire

HTTP_SECONDS = 30.0
"""How long any single call to a server may take."""


class Ports(msgspec.Struct, frozen=True, kw_only=True):
    """Free ports of the loopback address, for one server."""

    http: int
    grpc: int
    metrics: int

    @property
    def base(self) -> str:
        """URL of the HTTP front, without a slash at the end."""
        return f"http://127.0.0.1:{self.http}"


class Command(msgspec.Struct, frozen=True, kw_only=True):
    """How to start a server in the foreground: its arguments and what is added to the environment."""

    arguments: list[str]
    environment: dict[str, str] = {}


class Counters(msgspec.Struct, frozen=True, kw_only=True):
    """A server's own count of what it has done for the model since it started."""

    inferences: int
    executions: int


class Peer(Protocol):
    """One kind of model server."""

    @property
    def name(self) -> str:
        """Short name, the one `--only` takes."""

    @property
    def title(self) -> str:
        """What reports call it: product and version."""

    @property
    def remark(self) -> str:
        """What a reader must know to judge its numbers: a sentence or two for reports."""

    @property
    def infer_path(self) -> str:
        """Path of the inference route."""

    @property
    def wires(self) -> Sequence[Wire]:
        """How it can be asked. All but "http-json" mean the Open Inference Protocol, for `perf_analyzer`."""

    def prepare(self, cache: Path) -> None:
        """Install what the server needs below `cache`; do nothing where it is already there.

        Raises:
            SetupError: something is missing that only the user can install. The message says what and how.
        """

    def versions(self) -> Mapping[str, str]:
        """Versions of the software that takes part, by name."""

    def command(self, cache: Path, folder: Path, ports: Ports) -> Command:
        """Write the model and its configuration below `folder`; return how to serve it on `ports`."""

    def role(self, arguments: Sequence[str]) -> str:
        """What a process of the server is for, by its command line."""

    def is_ready(self, base: str) -> bool:
        """Whether the model can be used now. Never raises: a server that cannot be reached is not ready."""

    def body(self, row: Floats) -> bytes:
        """The JSON request for one row, FP32 [64], without line breaks."""

    def answer(self, body: bytes) -> Floats:
        """The row that a JSON response holds, FP32 [16]."""

    def counters(self, base: str) -> Counters | None:
        """The server's own counters; None when it has none."""


class OpenInference:
    """What peers that speak the Open Inference Protocol (v2) with Triton's statistics have in common."""

    infer_path = f"/v2/models/{MODEL_NAME}/infer"
    wires: Sequence[Wire] = ("http-json", "http-binary", "grpc")

    def is_ready(self, base: str) -> bool:
        try:
            get(f"{base}/v2/models/{MODEL_NAME}/ready")
        except OSError:  # not listening yet, or an HTTP status that says "not yet"
            return False
        return True

    def body(self, row: Floats) -> bytes:
        data = [round(float(value), 4) for value in row]
        tensor = {"name": INPUT_NAME, "shape": [1, len(data)], "datatype": "FP32", "data": data}
        return json.dumps({"inputs": [tensor]}, separators=(",", ":")).encode()

    def answer(self, body: bytes) -> Floats:
        outputs = {output["name"]: output for output in json.loads(body)["outputs"]}
        return np.asarray(outputs[OUTPUT_NAME]["data"], dtype=np.float32)

    def counters(self, base: str) -> Counters | None:
        entry = json.loads(get(f"{base}/v2/models/{MODEL_NAME}/stats"))["model_stats"][0]
        return Counters(inferences=int(entry["inference_count"]), executions=int(entry["execution_count"]))


def get(url: str) -> bytes:
    """The body of a GET; raises OSError (`urllib.error.URLError`, `HTTPError`) when there is none."""
    return _call(urllib.request.Request(url))


def post(url: str, body: bytes) -> bytes:
    """The body of the answer to a POST of JSON; raises OSError when there is none."""
    return _call(urllib.request.Request(url, body, {"Content-Type": "application/json"}))


def _call(request: urllib.request.Request) -> bytes:
    with urllib.request.urlopen(request, timeout=HTTP_SECONDS) as response:
        body: bytes = response.read()
    return body
