"""A model of known capacity: it sleeps for a fixed time a batch, so that the server itself hardly counts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loadtest.mlp import MODEL_NAME
from loadtest.peers.base import Command
from loadtest.peers.qinfer import QInfer

if TYPE_CHECKING:
    from pathlib import Path

    from loadtest.peers.base import Ports

_SOURCE = """
import time
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        time.sleep({seconds!r})
        inputs = [pb_utils.get_input_tensor_by_name(request, "x").as_numpy() for request in requests]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("y", x)]) for x in inputs]
"""
_CONFIG = """
backend: "python"
max_batch_size: {batch}
input {{ name: "x" data_type: TYPE_FP32 dims: 1 }}
output {{ name: "y" data_type: TYPE_FP32 dims: 1 }}
"""

BODY = b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,1],"data":[1]}]}'
"""A request of one row."""


class SlowModel(QInfer):
    """qinfer with that model.

    Args:
        batch: rows of a batch.
        seconds: a batch takes, whatever its size.
        gateways, workers: processes of each.
    """

    def __init__(self, *, batch: int, seconds: float, gateways: int = 1, workers: int = 1) -> None:
        self._batch = batch
        self._seconds = seconds
        self._gateways = gateways
        self._workers = workers

    def command(self, cache: Path, folder: Path, ports: Ports) -> Command:
        command = super().command(cache, folder, ports)
        model = folder / "models" / MODEL_NAME
        (model / "1" / "model.onnx").unlink()
        (model / "1" / "model.py").write_text(_SOURCE.format(seconds=self._seconds))
        (model / "config.pbtxt").write_text(_CONFIG.format(batch=self._batch))
        more = ["--gateways", str(self._gateways), "--workers", str(self._workers)]
        return Command(arguments=[*command.arguments, *more])  # the last one of an option counts
