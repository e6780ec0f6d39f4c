"""The models that are served while everything around them fails: whoever asks can compute the answer.

All have the inputs "x" INT64 [n, 4] and "id" INT64 [n, 1], and the outputs "y" INT64 [n, 4], which is
`x * FACTOR + version`, and "by" INT64 [n, 3]: the id again, the version, and a number of this very execution
(0 where the model cannot make one). Executions are written to a journal.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from qinfer.errors import SetupError

Integers: TypeAlias = NDArray[np.int64]

WIDTH = 4
FACTOR = 3
MAX_ROWS = 4
POISON = -666_666
"""A value of x that the Python models die of, and their worker with them."""

QUICK, SLOW, AFFINE = "quick", "slow", "affine"
MODELS = (QUICK, SLOW, AFFINE)
KEEPS_JOURNAL = (QUICK, SLOW)
"""Models that count their executions."""

SLOW_SECONDS = 0.04
"""How long a batch of `SLOW` takes: faults find batches that are running."""

_OPSET, _IR_VERSION = 17, 8

_CONFIG = """backend: "{backend}"
max_batch_size: {batch}
input [
  {{ name: "x" data_type: TYPE_INT64 dims: [ {width} ] }},
  {{ name: "id" data_type: TYPE_INT64 dims: [ 1 ] }}
]
output [
  {{ name: "y" data_type: TYPE_INT64 dims: [ {width} ] }},
  {{ name: "by" data_type: TYPE_INT64 dims: [ 3 ] }}
]
dynamic_batching {{ max_queue_delay_microseconds: 2000 }}
"""

_PYTHON = f"""
import itertools
import json
import os
import signal
import time

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        parameters = {{name: value["string_value"] for name, value in config["parameters"].items()}}
        self.version = int(args["model_version"])
        self.seconds = float(parameters["seconds"])
        self.count = itertools.count(time.time_ns())
        name = f"{{config['name']}}.{{os.getpid()}}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        self.journal = os.open(os.path.join(parameters["journal"], name), flags, 0o600)

    def execute(self, requests):
        given = [
            [pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in ("x", "id")]
            for request in requests
        ]
        began = time.monotonic_ns()
        runs = [next(self.count) for _ in requests]
        lines = [f"{{number[0, 0]}} {{run}} {{began}}\\n" for (_, number), run in zip(given, runs)]
        os.write(self.journal, "".join(lines).encode())
        if any((x == {POISON}).any() for x, _ in given):
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(self.seconds)
        return [self.answer(x, number, run) for (x, number), run in zip(given, runs)]

    def answer(self, x, number, run):
        by = np.concatenate([number, np.full_like(number, self.version), np.full_like(number, run)], axis=1)
        return pb_utils.InferenceResponse(
            [pb_utils.Tensor("y", x * {FACTOR} + self.version), pb_utils.Tensor("by", by)]
        )
"""


class Execution(NamedTuple):
    """A line of the journal.

    Attributes:
        id: of the request.
        run: the execution's number.
        began: by the clock `time.monotonic`, in seconds.
    """

    id: int
    run: int
    began: float


def build(repository: Path, journal: Path) -> None:
    """Write version 1 of all models; executions will be told in the folder `journal`, which must exist."""
    for name, batch, seconds in ((QUICK, 16, 0.0), (SLOW, 8, SLOW_SECONDS)):
        folder = _folder(repository, name, "python", batch)
        with (folder / "config.pbtxt").open("a") as config:
            for key, value in (("journal", str(journal)), ("seconds", str(seconds))):
                config.write(f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}\n')
    _folder(repository, AFFINE, "onnxruntime", 16)
    for name in MODELS:
        add_version(repository, name, 1)


def add_version(repository: Path, name: str, version: int) -> None:
    """Write a version of a model; its folder appears with everything in it."""
    draft = repository / name / f".{version}"
    draft.mkdir()
    if name == AFFINE:
        _build_affine(draft / "model.onnx", version)
    else:
        (draft / "model.py").write_text(_PYTHON)
    draft.rename(repository / name / str(version))


def expected(x: Integers, version: int) -> Integers:
    """What a version of any of the models answers."""
    return x * FACTOR + version


def read_journal(folder: Path) -> Iterator[Execution]:
    """All executions that were begun. A line that a killed worker did not finish is not one."""
    for file in folder.iterdir():
        for line in file.read_text().split("\n")[:-1]:
            number, run, began = line.split()
            yield Execution(int(number), int(run), int(began) / 1e9)


def _folder(repository: Path, name: str, backend: str, batch: int) -> Path:
    folder = repository / name
    folder.mkdir(parents=True)
    (folder / "config.pbtxt").write_text(_CONFIG.format(backend=backend, batch=batch, width=WIDTH))
    return folder


def _build_affine(path: Path, version: int) -> None:
    try:
        import onnx
        from onnx import TensorProto, helper
    except ImportError:
        raise SetupError("building the model needs the onnx package: pip install 'qinfer[dev]'") from None

    def constant(name: str, *values: int) -> onnx.TensorProto:
        return helper.make_tensor(name, TensorProto.INT64, [len(values)], values)

    def tensor(name: str, width: int) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.INT64, ["n", width])

    nodes = [
        helper.make_node("Mul", ["x", "factor"], ["product"]),
        helper.make_node("Add", ["product", "version"], ["y"]),
        helper.make_node("Mul", ["id", "zero"], ["nothing"]),
        helper.make_node("Add", ["nothing", "version"], ["versions"]),
        helper.make_node("Concat", ["id", "versions", "nothing"], ["by"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        AFFINE,
        [tensor("x", WIDTH), tensor("id", 1)],
        [tensor("y", WIDTH), tensor("by", 3)],
        [constant("factor", FACTOR), constant("version", version), constant("zero", 0)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], producer_name="qinfer")
    model.ir_version = _IR_VERSION
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())
