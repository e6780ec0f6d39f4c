"""What a PyTorch file says of its tensors, and how the configuration's names map to `forward`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from qinfer.errors import ConfigError
from qinfer.repository import ModelConfig
from qinfer_workers.backends.parameters import complain
from qinfer_workers.backends.signature import FileSignature, FileTensor

_INDEXED = re.compile(r".*__(\d+)$")
"""Triton's naming convention: anything, two underscores, the position."""


def datatypes(torch: Any) -> dict[Any, str]:
    """Protocol datatype of each torch dtype."""
    return {
        torch.bool: "BOOL",
        torch.uint8: "UINT8",
        torch.uint16: "UINT16",
        torch.uint32: "UINT32",
        torch.uint64: "UINT64",
        torch.int8: "INT8",
        torch.int16: "INT16",
        torch.int32: "INT32",
        torch.int64: "INT64",
        torch.float16: "FP16",
        torch.bfloat16: "BF16",
        torch.float32: "FP32",
        torch.float64: "FP64",
    }


def read_signature(torch: Any, program: Any, path: str) -> FileSignature:
    """Read the signature of an exported program.

    Inputs have the names of the arguments of `forward`. Outputs have no names in the file: they are
    called `OUTPUT__0`, `OUTPUT__1`, ...

    Raises:
        ConfigError: an argument or result is no tensor, or of a dtype outside the protocol.
    """
    names = datatypes(torch)
    values = {node.name: node.meta.get("val") for node in program.graph.nodes}

    def tensor(node: object, name: str) -> FileTensor:
        value = values.get(node) if isinstance(node, str) else None
        if not isinstance(value, torch.Tensor) or value.dtype not in names:
            found = f"{value.dtype}" if isinstance(value, torch.Tensor) else f"{type(value).__name__}"
            expected = ", ".join(sorted(str(dtype) for dtype in names))
            raise ConfigError(f"{path}: tensor {name!r}: found {found}; expected one of {expected}")
        shape = tuple(dim if isinstance(dim, int) else -1 for dim in value.shape)
        return FileTensor(name=name, datatype=names[value.dtype], shape=shape)

    signature = program.graph_signature
    return FileSignature(
        path=path,
        inputs=[tensor(node, str(node)) for node in signature.user_inputs],
        outputs=[tensor(node, f"OUTPUT__{index}") for index, node in enumerate(signature.user_outputs)],
    )


def map_inputs(config: ModelConfig, arguments: Sequence[str]) -> dict[str, str]:
    """Which argument of `forward` each configured input goes to.

    In this order: all inputs are named after arguments; all follow the convention `<anything>__<position>`;
    none is named after an argument, and they are as many: by position.

    Raises:
        ConfigError: none of these holds.
    """
    names = [tensor.name for tensor in config.inputs]
    signature = f"forward({', '.join(arguments)})"
    if all(name in arguments for name in names):
        return {name: name for name in names}
    positions = indices(names)
    if positions is not None:
        if max(positions) >= len(arguments):
            raise complain(config, "input", f"found {names[positions.index(max(positions))]!r}", signature)
        return {name: arguments[position] for name, position in zip(names, positions, strict=True)}
    if len(names) == len(arguments) and not set(names) & set(arguments):
        return dict(zip(names, arguments, strict=True))
    raise complain(
        config,
        "input",
        f"found {', '.join(names)}",
        f"the names of the arguments of {signature}, or INPUT__0, INPUT__1, ..., or one input for each in"
        " order",
    )


def map_outputs(config: ModelConfig) -> dict[str, int]:
    """The position in a result of each configured output: by `<anything>__<position>`, else by order."""
    names = [tensor.name for tensor in config.outputs]
    positions = indices(names)
    return dict(zip(names, positions if positions is not None else range(len(names)), strict=True))


def indices(names: Sequence[str]) -> list[int] | None:
    """Positions by the naming convention; None unless all names follow it and no position comes twice."""
    matches = [_INDEXED.match(name) for name in names]
    positions = [int(match[1]) for match in matches if match is not None]
    if not names or len(positions) != len(names) or len(set(positions)) != len(positions):
        return None
    return positions
