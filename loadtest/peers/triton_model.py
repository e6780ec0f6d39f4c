"""The load test's model for Triton's Python backend: the ONNX file beside this one, in onnxruntime.

Triton's stub process loads this file as `model.py`; it runs on the peer's own packages, without qinfer.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

# The stub starts Python in isolated mode, which ignores PYTHONPATH.
sys.path.insert(0, os.environ["LOADTEST_TRITON_PACKAGES"])

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found]


class TritonPythonModel:
    """One instance of the model."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load `model.onnx` for one thread."""
        folder = Path(args["model_repository"]) / args["model_version"]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"]
        )
        self._input = self._session.get_inputs()[0].name
        self._output = self._session.get_outputs()[0].name

    def execute(self, requests: list[Any]) -> list[Any]:
        """Run all requests of a batch at once and split the answer."""
        inputs = [pb_utils.get_input_tensor_by_name(request, self._input).as_numpy() for request in requests]
        rows = inputs[0] if len(inputs) == 1 else np.concatenate(inputs)
        result = self._session.run(None, {self._input: rows})[0]
        responses = []
        start = 0
        for part in inputs:
            end = start + len(part)
            tensor = pb_utils.Tensor(self._output, result[start:end])
            responses.append(pb_utils.InferenceResponse([tensor]))
            start = end
        return responses
