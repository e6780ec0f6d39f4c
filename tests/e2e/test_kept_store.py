"""A broker's store that is kept between runs does not haunt the next one."""

from __future__ import annotations

import shutil
from pathlib import Path
from urllib.request import urlopen

from loadtest.mlp import build_mlp, config_pbtxt

from tests.helpers.system import serving


def add_model(repository: Path, name: str) -> None:
    folder = repository / name / "1"
    folder.mkdir(parents=True)
    build_mlp(folder / "model.onnx")
    (repository / name / "config.pbtxt").write_text(
        config_pbtxt("onnxruntime").replace('name: "mlp"', f'name: "{name}"')
    )


def test_a_model_that_left_the_repository_does_not_block_readiness(tmp_path: Path) -> None:
    repository, store = tmp_path / "models", tmp_path / "store"
    add_model(repository, "stays")
    add_model(repository, "leaves")
    with serving(repository, f"--store-dir={store}") as system:
        assert urlopen(f"http://{system.http}/v2/health/ready").status == 200
    shutil.rmtree(repository / "leaves")
    with serving(repository, f"--store-dir={store}") as system:
        # `serving` fails if the server calls itself unready; the model that stays is all there is.
        assert urlopen(f"http://{system.http}/v2/health/ready").status == 200
        assert b'"leaves"' not in urlopen(f"http://{system.http}/v2/models").read()
