"""Runs the model files without any server: what the server's answers are compared with."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np

from examples.showcase.clients import Tensors
from qinfer.errors import SetupError

ABSOLUTE, RELATIVE = 1e-4, 1e-4
"""Tolerances for floats: a batch of another size may add up in another order. Other types must be equal."""


class Direct(Protocol):
    """A model in this process."""

    def run(self, inputs: Tensors) -> Tensors:
        """All outputs for the inputs of one request."""


class OnnxFile:
    """An ONNX file in onnxruntime, one thread."""

    def __init__(self, path: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session: Any = onnxruntime.InferenceSession(
            path, sess_options=options, providers=["CPUExecutionProvider"]
        )
        self._outputs = [output.name for output in self._session.get_outputs()]

    def run(self, inputs: Tensors) -> Tensors:
        return dict(zip(self._outputs, self._session.run(self._outputs, dict(inputs)), strict=True))


class TorchScriptFile:
    """A TorchScript file in torch.

    Args:
        path: the file.
        inputs: names of the arguments of `forward`, in order.
        outputs: names for the tuple that it returns, in order.
    """

    def __init__(self, path: Path, *, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        import torch

        with warnings.catch_warnings():
            # TorchScript is deprecated, and this is what the model is.
            warnings.simplefilter("ignore", category=FutureWarning)
            warnings.simplefilter("ignore", category=DeprecationWarning)
            self._module = torch.jit.load(path)  # type: ignore[no-untyped-call]
        self._torch = torch
        self._inputs, self._outputs = inputs, outputs

    def run(self, inputs: Tensors) -> Tensors:
        arguments = [self._torch.tensor(inputs[name]) for name in self._inputs]
        with self._torch.inference_mode():
            results = self._module(*arguments)
        return {name: result.numpy() for name, result in zip(self._outputs, results, strict=True)}


def load_module(path: Path) -> ModuleType:
    """Import a Python file from outside the import path, under a name of its own.

    Raises:
        SetupError: there is no such file.
    """
    spec = importlib.util.spec_from_file_location(f"qinfer_example_{path.stem}", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise SetupError(f"{path}: no such Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def same(found: Tensors, expected: Tensors) -> bool:
    """Whether two answers agree: same outputs, shapes and types, and values within the tolerances."""
    return found.keys() == expected.keys() and all(
        _same_array(array, expected[name]) for name, array in found.items()
    )


def _same_array(found: Any, expected: Any) -> bool:
    if found is None or found.shape != expected.shape or found.dtype != expected.dtype:
        return False
    if np.issubdtype(expected.dtype, np.floating):
        return bool(np.allclose(found, expected, rtol=RELATIVE, atol=ABSOLUTE))
    return bool(np.array_equal(found, expected))
