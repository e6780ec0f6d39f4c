"""One `qinfer serve` for what needs a server: the command, and what the page about it says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from textwrap import indent

import pytest

from tests.helpers.system import System, serving

_MODEL = """
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        x = pb_utils.get_input_tensor_by_name(request, "{input}").as_numpy()
{lines}
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, y) for name, y in outputs.items()])
"""

_SENTIMENT = """
texts = [text.decode().lower() for text in x.reshape(-1)]
score = np.array([[text.count("lovely")] for text in texts], dtype=np.float32)
label = np.array([[b"good" if value else b"bad"] for value in score], dtype=object)
outputs = {"label": label, "score": score}
"""

_PICKY = """
if 13 in x:
    raise ValueError("thirteen")
outputs = {"y": 2 * x}
"""

_MODELS = {
    "sentiment": (
        _SENTIMENT,
        """
        input { name: "text" data_type: TYPE_STRING dims: 1 }
        output { name: "label" data_type: TYPE_STRING dims: 1 }
        output { name: "score" data_type: TYPE_FP32 dims: 1 }
        """,
        "text",
    ),
    "churn": (
        'outputs = {"risk": x.sum(axis=1, keepdims=True)}',
        """
        input { name: "x" data_type: TYPE_FP32 dims: 3 }
        output { name: "risk" data_type: TYPE_FP32 dims: 1 }
        """,
        "x",
    ),
    "picky": (
        _PICKY,
        'input { name: "x" data_type: TYPE_FP32 dims: 2 } output { name: "y" data_type: TYPE_FP32 dims: 2 }',
        "x",
    ),
}


def write_models(root: Path) -> Path:
    for name, (lines, signature, given) in _MODELS.items():
        (root / name / "1").mkdir(parents=True)
        source = _MODEL.format(input=given, lines=indent(lines.strip(), " " * 8))
        (root / name / "1" / "model.py").write_text(source)
        (root / name / "config.pbtxt").write_text(f'backend: "python" max_batch_size: 8 {signature}')
    return root


@pytest.fixture(scope="package")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    root = tmp_path_factory.mktemp("scorer")
    (root / "data").mkdir()
    with serving(write_models(root / "models"), f"--batch-root=data={root / 'data'}") as running:
        yield running
