"""What an ONNX model says of its tensors."""

from __future__ import annotations

from typing import Any

from qinfer.errors import ConfigError
from qinfer_workers.backends.signature import FileSignature, FileTensor

DATATYPES = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(bfloat16)": "BF16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
}
"""Protocol datatype of each of ONNX Runtime's type names."""


def read_signature(session: Any, path: str) -> FileSignature:
    """Read the inputs and outputs of a loaded session.

    Raises:
        ConfigError: a tensor is of a type the protocol lacks: a sequence, a map, an 8-bit float.
    """
    return FileSignature(
        path=path,
        inputs=[_tensor(node, path) for node in session.get_inputs()],
        # The library gives [] both for a scalar and for a shape the file leaves out. Exporters always give
        # the shapes of inputs; of outputs they often do not know it, so the configuration is asked.
        outputs=[_tensor(node, path, unknown=[]) for node in session.get_outputs()],
    )


def _tensor(node: Any, path: str, unknown: list[int] | None = None) -> FileTensor:
    datatype = DATATYPES.get(node.type)
    if datatype is None:
        raise ConfigError(
            f"{path}: tensor {node.name!r}: found type {node.type}; expected one of {', '.join(DATATYPES)}"
        )
    if node.shape == unknown:
        return FileTensor(name=node.name, datatype=datatype, shape=None)
    # Variable dimensions are names, or None for nameless ones.
    shape = tuple(dim if isinstance(dim, int) else -1 for dim in node.shape)
    return FileTensor(name=node.name, datatype=datatype, shape=shape)
