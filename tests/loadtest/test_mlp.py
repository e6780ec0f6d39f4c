"""The model of the load tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from loadtest.mlp import build_mlp, config_pbtxt, example_rows, reference

from qinfer.repository import pbtxt


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mlp") / "model.onnx"
    build_mlp(path)
    return path


def test_is_the_same_every_time(model: Path, tmp_path: Path) -> None:
    build_mlp(tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == model.read_bytes()


def test_computes_what_its_weights_say(model: Path) -> None:
    weights = {item.name: onnx.numpy_helper.to_array(item) for item in onnx.load(model).graph.initializer}
    rows = hidden = example_rows(5)
    for layer in (0, 1):
        hidden = np.maximum(hidden @ weights[f"w{layer}"] + weights[f"b{layer}"], 0)
    np.testing.assert_allclose(
        reference(model, rows), hidden @ weights["w2"] + weights["b2"], rtol=1e-4, atol=1e-5
    )


def test_a_row_does_not_depend_on_its_batch(model: Path) -> None:
    rows = example_rows(64)
    alone = np.concatenate([reference(model, row[None]) for row in rows])
    np.testing.assert_allclose(reference(model, rows), alone, rtol=1e-4, atol=1e-5)


def test_answers_differ_so_that_a_mix_up_shows(model: Path) -> None:
    answers = reference(model, example_rows(32))
    distances = np.abs(answers[:, None] - answers[None]).max(axis=2)
    assert distances[~np.eye(32, dtype=bool)].min() > 0.1


def test_configuration_is_one_the_repository_reads() -> None:
    message = pbtxt.read(config_pbtxt("onnxruntime"), "config.pbtxt").message
    assert (message.name, message.backend, message.max_batch_size) == ("mlp", "onnxruntime", 64)
    assert message.dynamic_batching.max_queue_delay_microseconds == 1000
    assert [group.count for group in message.instance_group] == [1]
