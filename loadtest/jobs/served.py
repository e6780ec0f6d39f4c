"""The system under fire: `qinfer serve` with file storage, whose supervisor starts again what is killed."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from pathlib import Path
from textwrap import dedent

from qinfer.errors import Unavailable

HOST = "127.0.0.1"
MODEL = "twice"

_SOURCE = """
import time
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        time.sleep(0.002)
        inputs = [pb_utils.get_input_tensor_by_name(request, "x").as_numpy() for request in requests]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("y", 2 * x)]) for x in inputs]
"""
_CONFIG = """
backend: "python"
max_batch_size: 16
input { name: "x" data_type: TYPE_FP32 dims: 1 }
output { name: "y" data_type: TYPE_FP32 dims: 1 }
"""
_START_SECONDS = 90.0
_STOP_SECONDS = 30.0


class Served:
    """A running system; an async context manager.

    Args:
        folder: for the model, the broker's store and logs.
        secret_file: what webhooks are signed with.
        gateways, workers: processes of each.

    Attributes:
        port: for HTTP.
    """

    def __init__(self, folder: Path, secret_file: Path, *, gateways: int = 2, workers: int = 2) -> None:
        self._folder = folder
        self._secret_file = secret_file
        self._counts = (gateways, workers)
        self._process: asyncio.subprocess.Process | None = None
        self.port = _free_port()

    async def __aenter__(self) -> Served:
        model = self._folder / "models" / MODEL
        (model / "1").mkdir(parents=True)
        (model / "1" / "model.py").write_text(dedent(_SOURCE))
        (model / "config.pbtxt").write_text(_CONFIG)
        gateways, workers = self._counts
        with (self._folder / "log").open("wb") as log, (self._folder / "screen").open("wb") as screen:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "qinfer", "serve", str(self._folder / "models")),
                *(f"--http-port={self.port}", "--grpc-port=-1", "--metrics-port=-1"),
                *(f"--gateways={gateways}", f"--workers={workers}", "--storage=file"),
                *(f"--store-dir={self._folder / 'store'}", f"--webhook-secret-file={self._secret_file}"),
                f"--webhook-allow={HOST}/32",
                env={name: value for name, value in os.environ.items() if not name.startswith("QINFER_")},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=screen,
                stderr=log,
                start_new_session=True,
            )
        try:
            await self._ready()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        process = self._process
        if process is None or process.returncode is not None:
            return
        process.terminate()
        try:
            await asyncio.wait_for(process.wait(), _STOP_SECONDS)
        except TimeoutError:
            os.killpg(process.pid, signal.SIGKILL)
            await process.wait()

    def kill(self, role: str) -> bool:
        """Kill a process of a role ("gateway", "worker", "broker"); False where there is none."""
        assert self._process is not None
        for pid in _children(self._process.pid):
            if _role(pid) == role:
                os.kill(pid, signal.SIGKILL)
                return True
        return False

    async def _ready(self) -> None:
        assert self._process is not None
        give_up = asyncio.get_running_loop().time() + _START_SECONDS
        screen = self._folder / "screen"
        while "qinfer is ready" not in screen.read_text(errors="replace"):
            late = asyncio.get_running_loop().time() > give_up
            if late or self._process.returncode is not None:
                raise Unavailable(f"the system is not ready:\n{(self._folder / 'log').read_text()[-4000:]}")
            await asyncio.sleep(0.05)


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _role(pid: int) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return ""
    if any(b"nats-server" in word for word in words[:1]):
        return "broker"
    return next((role for role in ("gateway", "worker") if role.encode() in words), "")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])
