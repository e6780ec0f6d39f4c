"""The perceptron of the load tests, without any configuration: its signature is read from the file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from loadtest import mlp

from examples.zoo.recipe import Recipe


def _write(model: Path, archives: Mapping[str, Path]) -> None:  # noqa: ARG001  it has no sources
    mlp.build_mlp(model / "1" / "model.onnx")


RECIPE = Recipe(
    name=mlp.MODEL_NAME,
    backend="onnxruntime",
    summary="seeded perceptron, no configuration file",
    write=_write,
    needs={
        "onnx": "pip install -r examples/requirements.txt",
        "onnxruntime": "pip install 'qinfer[onnx]'",
    },
    also=(Path(mlp.__file__),),
)
