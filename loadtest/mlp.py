"""The model every server of the load tests runs: a small seeded multilayer perceptron in ONNX.

Input "x" FP32 [n, 64], two hidden layers of 256 with ReLU, output "y" FP32 [n, 16]. It is small on purpose:
what is measured is the serving around it.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from qinfer.errors import BackendUnavailable, SetupError

if TYPE_CHECKING:
    from pathlib import Path

MODEL_NAME = "mlp"
INPUT_NAME, INPUT_SIZE = "x", 64
OUTPUT_NAME, OUTPUT_SIZE = "y", 16
MAX_BATCH_SIZE = 64
MAX_QUEUE_DELAY_US = 1000

_SIZES = (INPUT_SIZE, 256, 256, OUTPUT_SIZE)
_SEED = 2026
# Old enough for every onnxruntime in use, so that one file serves all peers.
_OPSET, _IR_VERSION = 17, 8

Floats: TypeAlias = NDArray[np.float32]


def build_mlp(path: Path) -> None:
    """Write the model to `path` (its folder must exist). The same bytes every time for one onnx release.

    Raises:
        SetupError: the `onnx` package is not installed.
    """
    try:
        import onnx
        from onnx import TensorProto, helper, numpy_helper
    except ImportError:
        raise SetupError("building the model needs the onnx package: pip install 'qinfer[dev]'") from None
    random = np.random.default_rng(_SEED)
    nodes, weights = [], []
    current = INPUT_NAME
    for layer, (rows, columns) in enumerate(pairwise(_SIZES)):
        last = layer == len(_SIZES) - 2
        weight = random.normal(0, np.sqrt(2 / rows), (rows, columns)).astype(np.float32)
        bias = random.normal(0, 0.1, columns).astype(np.float32)
        weights += [numpy_helper.from_array(weight, f"w{layer}"), numpy_helper.from_array(bias, f"b{layer}")]
        target = OUTPUT_NAME if last else f"h{layer}"
        nodes.append(helper.make_node("Gemm", [current, f"w{layer}", f"b{layer}"], [target]))
        current = target
        if not last:
            current = f"r{layer}"
            nodes.append(helper.make_node("Relu", [target], [current]))
    graph = helper.make_graph(
        nodes,
        MODEL_NAME,
        [helper.make_tensor_value_info(INPUT_NAME, TensorProto.FLOAT, ["n", INPUT_SIZE])],
        [helper.make_tensor_value_info(OUTPUT_NAME, TensorProto.FLOAT, ["n", OUTPUT_SIZE])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], producer_name="qinfer")
    model.ir_version = _IR_VERSION
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())


def config_pbtxt(backend: str, *, more: str = "") -> str:
    """The model's `config.pbtxt`: batches of up to 64 rows, 1 ms delay, one instance on the CPU.

    Args:
        backend: name of the backend that runs it.
        more: further fields, in protobuf text form.
    """
    return f"""name: "{MODEL_NAME}"
backend: "{backend}"
max_batch_size: {MAX_BATCH_SIZE}
input [{{ name: "{INPUT_NAME}" data_type: TYPE_FP32 dims: [{INPUT_SIZE}] }}]
output [{{ name: "{OUTPUT_NAME}" data_type: TYPE_FP32 dims: [{OUTPUT_SIZE}] }}]
dynamic_batching {{ max_queue_delay_microseconds: {MAX_QUEUE_DELAY_US} }}
instance_group [{{ count: 1 kind: KIND_CPU }}]
{more}"""


def example_rows(count: int) -> Floats:
    """Seeded inputs, FP32 [count, 64], rounded to four decimals so that their JSON form is short."""
    values = np.random.default_rng(_SEED + 1).normal(0, 1, (count, INPUT_SIZE))
    return np.round(values, 4).astype(np.float32)


def reference(path: Path, rows: Floats) -> Floats:
    """What the model at `path` answers, computed by onnxruntime without any server.

    Args:
        path: the ONNX file.
        rows: FP32 [n, 64].

    Returns:
        FP32 [n, 16].

    Raises:
        BackendUnavailable: onnxruntime is not installed.
    """
    try:
        import onnxruntime
    except ImportError:
        raise BackendUnavailable(
            "the reference answers need onnxruntime: pip install 'qinfer[onnx]'"
        ) from None
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    result: Floats = session.run([OUTPUT_NAME], {INPUT_NAME: rows})[0]
    return result
