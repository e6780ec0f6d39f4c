"""The model repository that the system tests serve: one model for each thing that can be asked or go wrong.

Most are written for Triton's Python backend, since that is the quickest way to misbehave on purpose.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from textwrap import dedent, indent

from loadtest.mlp import build_mlp, config_pbtxt

from qinfer.datatypes import DATATYPES

MAX_BATCH = 16
"""max_batch_size of the Python models that have a batch dimension."""

MLP, MLP_PATIENT = "mlp", "mlp_patient"
PATIENCE_US = 20_000
"""How long `MLP_PATIENT` holds a batch open for company."""

IDENTITY = {datatype: f"identity_{datatype.lower()}" for datatype in DATATYPES}
"""Datatype to the model that returns its input "x" of shape [n, k] as "y"; Python backend."""

ONNX_IDENTITY = {datatype: f"onnx_{datatype.lower()}" for datatype in DATATYPES if datatype != "BF16"}
"""The same in ONNX; BF16 has no numpy form that ONNX Runtime takes."""

WHOLE, SCALAR, AUTO, VERSIONS = "whole", "scalar", "auto", "versions"
PICKY, GATED, SAYS_ALL = "picky", "gated", "says_all"
RAISES_EXECUTE, RAISES_FINALIZE = "raises_execute", "raises_finalize"

BROKEN = {
    "broken_config": "max_batch_size",
    "broken_missing": "model.onnx",
    "broken_import": "raised on import",
    "broken_initialize": "raised in initialize",
}
"""Models that cannot be loaded, each with a part of the reason that is to be given."""

_HEAD = "import json, os, time\nimport numpy as np\nimport triton_python_backend_utils as pb_utils\n"


def build(root: Path) -> Path:
    """Write all models; returns the repository."""
    for datatype, name in IDENTITY.items():
        source = _BF16_IDENTITY if datatype == "BF16" else _answering("pb_utils.Tensor('y', x)")
        _python(root, name, signature(datatype), source)
    for datatype, name in ONNX_IDENTITY.items():
        _onnx_identity(root / name, datatype)
        (root / name / "config.pbtxt").write_text(
            f'backend: "onnxruntime"\nmax_batch_size: {MAX_BATCH}\n' + signature(datatype)
        )
    _onnx_identity(root / AUTO, "FP32")
    for name, delay in ((MLP, 1000), (MLP_PATIENT, PATIENCE_US)):
        _mlp(root / name, name, delay)
    _special(root)
    _broken(root)
    return root


def signature(datatype: str, *dims: int, output: str = "") -> str:
    """`config.pbtxt` text of one input "x" and one output "y", both of `dims` (default: [-1])."""
    shape = list(dims or (-1,))
    return "\n".join(
        f'{role} [{{ name: "{name}" data_type: TYPE_{"STRING" if kind == "BYTES" else kind} dims: {shape} }}]'
        for role, name, kind in (("input", "x", datatype), ("output", "y", output or datatype))
    )


def _answering(tensors: str, *before: str) -> str:
    """A model whose requests are answered one by one with the given tensors, after the given lines."""
    lines = indent(dedent("\n".join(before)), " " * 12)
    return f"""
class TritonPythonModel:
    def execute(self, requests):
        responses = []
        for request in requests:
            x = pb_utils.get_input_tensor_by_name(request, "x").as_numpy()
{lines}
            responses.append(pb_utils.InferenceResponse([{tensors}]))
        return responses
"""


def _special(root: Path) -> None:
    _python(root, WHOLE, signature("FP32", 2, 3), _answering("pb_utils.Tensor('y', x + 1)"), max_batch_size=0)
    _python(
        root,
        SCALAR,
        signature("INT64", -1, -1),
        _answering("pb_utils.Tensor('y', x)"),
        max_batch_size=0,
    )
    _python(
        root, VERSIONS, signature("FP32") + "\nversion_policy: { all {} }", _TIMES_VERSION, versions=(1, 2)
    )
    _python(root, PICKY, signature("FP32", 1), _PICKY)
    _python(root, GATED, signature("BYTES", 1), _GATED)
    _python(root, SAYS_ALL, signature("INT32", 1, output="BYTES"), _SAYS_ALL)
    _python(root, RAISES_EXECUTE, signature("FP32"), _raising("execute", "self, requests"))
    finalize = (
        _answering("pb_utils.Tensor('y', x)") + "    def finalize(self):\n        raise RuntimeError('no')\n"
    )
    _python(root, RAISES_FINALIZE, signature("FP32"), finalize)


def _broken(root: Path) -> None:
    identity = _answering("pb_utils.Tensor('y', x)")
    _python(root, "broken_config", signature("FP32"), identity, max_batch_size=-3)
    (root / "broken_missing" / "1").mkdir(parents=True)
    (root / "broken_missing" / "config.pbtxt").write_text('backend: "onnxruntime"\n' + signature("FP32"))
    _python(root, "broken_import", signature("FP32"), "raise RuntimeError('raised on import')\n")
    initialize = (
        _raising("initialize", "self, args") + "    def execute(self, requests):\n        return []\n"
    )
    _python(root, "broken_initialize", signature("FP32"), initialize)


def _python(
    root: Path,
    name: str,
    config: str,
    source: str,
    *,
    max_batch_size: int = MAX_BATCH,
    versions: tuple[int, ...] = (1,),
) -> None:
    for version in versions:
        folder = root / name / str(version)
        folder.mkdir(parents=True)
        (folder / "model.py").write_text(_HEAD + source)
    text = f'backend: "python"\nmax_batch_size: {max_batch_size}\n{config}\n'
    (root / name / "config.pbtxt").write_text(text)


def _onnx_identity(folder: Path, datatype: str) -> None:
    import onnx
    from onnx import helper

    names = {"FP16": "FLOAT16", "FP32": "FLOAT", "FP64": "DOUBLE", "BYTES": "STRING"}
    element = getattr(onnx.TensorProto, names.get(datatype, datatype))
    tensors = [helper.make_tensor_value_info(name, element, ["n", "k"]) for name in ("x", "y")]
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])], "identity", tensors[:1], tensors[1:]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    (folder / "1").mkdir(parents=True)
    onnx.save(model, folder / "1" / "model.onnx")


def _mlp(folder: Path, name: str, delay_us: int) -> None:
    (folder / "1").mkdir(parents=True)
    build_mlp(folder / "1" / "model.onnx")
    config = config_pbtxt("onnxruntime").replace(f'name: "{MLP}"', f'name: "{name}"')
    default = "max_queue_delay_microseconds: 1000"
    assert default in config
    (folder / "config.pbtxt").write_text(config.replace(default, f"max_queue_delay_microseconds: {delay_us}"))


def _raising(method: str, arguments: str) -> str:
    return f"""
class TritonPythonModel:
    def {method}({arguments}):
        raise RuntimeError('raised in {method}')
"""


def copy(repository: Path, target: Path, *names: str) -> Path:
    """A repository of only some of the models."""
    for name in names:
        shutil.copytree(repository / name, target / name)
    return target


_BF16_IDENTITY = """
class TritonPythonModel:
    # numpy has no BF16: the bit patterns go through as they are.
    def execute(self, requests):
        given = [pb_utils.get_input_tensor_by_name(request, "x") for request in requests]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("y", x.raw(), "BF16")]) for x in given]
"""

_TIMES_VERSION = """
class TritonPythonModel:
    def initialize(self, args):
        self.factor = np.float32(args["model_version"])

    def execute(self, requests):
        return [
            pb_utils.InferenceResponse(
                [pb_utils.Tensor("y", pb_utils.get_input_tensor_by_name(r, "x").as_numpy() * self.factor)]
            )
            for r in requests
        ]
"""

RAISES, REFUSED, WRONG_SHAPE, WRONG_COUNT, EXITS, INTERRUPTS = 13.0, 14.0, 15.0, 16.0, 17.0, 18.0
"""Values of a row that `PICKY` takes offence at; any other is returned, doubled."""

_PICKY = f"""
class TritonPythonModel:
    def execute(self, requests):
        responses = []
        for request in requests:
            x = pb_utils.get_input_tensor_by_name(request, "x").as_numpy()
            if {RAISES} in x:
                raise ValueError("thirteen")
            if {EXITS} in x:
                raise SystemExit("seventeen")
            if {INTERRUPTS} in x:
                raise KeyboardInterrupt("eighteen")
            if {REFUSED} in x:
                error = pb_utils.TritonError("fourteen", pb_utils.TritonError.INVALID_ARG)
                responses.append(pb_utils.InferenceResponse([], error))
                continue
            if {WRONG_COUNT} in x:
                return []
            y = x[:, :0] if {WRONG_SHAPE} in x else 2 * x
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("y", y)]))
        return responses
"""

_GATED = """
class TritonPythonModel:
    # Each row is the path of a gate: a batch tells that it has begun (PATH.began, with its process) and ends
    # when all its gates are there. A row without a path passes. The row's answer is the process that gave it.
    def execute(self, requests):
        give_up = time.monotonic() + 30
        rows = [pb_utils.get_input_tensor_by_name(r, "x").as_numpy() for r in requests]
        paths = [path.decode() for x in rows for path in x.ravel() if path]
        for path in paths:
            with open(f"{path}.began", "a") as journal:
                journal.write(f"{os.getpid()}\\n")
        while not all(map(os.path.exists, paths)):
            if time.monotonic() > give_up:
                raise TimeoutError("nobody opened the gate")
            time.sleep(0.002)
        pid = str(os.getpid()).encode()
        answers = [np.full(x.shape, pid, dtype=object) for x in rows]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("y", y)]) for y in answers]
"""

_SAYS_ALL = """
class TritonPythonModel:
    # What the model is told of a request, as JSON.
    def execute(self, requests):
        responses = []
        for request in requests:
            told = {
                "id": request.request_id(),
                "parameters": json.loads(request.parameters()),
                "priority": request.priority(),
                "has_timeout": request.timeout() > 0,
                "requests": len(requests),
            }
            y = np.array([[json.dumps(told).encode()]], dtype=object)
            tensors = [pb_utils.Tensor("y", y)]
            responses.append(pb_utils.InferenceResponse(tensors, parameters={"said": True, "count": 3}))
        return responses
"""
