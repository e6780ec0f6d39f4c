"""What the quickstart tells its reader to type does what the page says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from examples.showcase.direct import OnnxFile

from qinfer.repository import Repository

PAGE = Path(__file__).resolve().parents[2] / "docs" / "quickstart.md"
_TITLED = re.compile(r"^```\w+ title=(\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


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
