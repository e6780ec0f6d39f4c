"""Makes ONNX Runtime sessions out of `model.onnx`."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, ClassVar

from qinfer.errors import BackendUnavailable, ConfigError
from qinfer.repository import ModelConfig
from qinfer_workers.backends.base import Instance, InstanceSpec
from qinfer_workers.backends.files import model_file, short_name
from qinfer_workers.backends.onnxruntime.instance import make_instance
from qinfer_workers.backends.onnxruntime.options import CPU_PROVIDER, providers, run_options, session_options
from qinfer_workers.backends.onnxruntime.signature import read_signature
from qinfer_workers.backends.reshape import reshaping
from qinfer_workers.backends.signature import fit


class OnnxRuntimeBackend:
    """ONNX models, on CPU and, with `onnxruntime-gpu`, on CUDA and TensorRT."""

    name: ClassVar[str] = "onnxruntime"
    filename: ClassVar[str] = "model.onnx"

    def check(self) -> None:
        """See `Backend.check`."""
        _library()

    def complete(self, config: ModelConfig, directory: Path, version: int) -> ModelConfig:
        """See `Backend.complete`. The file is opened without optimising it, once more than to load it."""
        ort = _library()
        path = model_file(config, directory, version, self.filename)
        name = short_name(config, version, path)
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 3
        options.add_session_config_entry("session.disable_prepacking", "1")
        session = _open(ort, path, name, options, [(CPU_PROVIDER, {})])
        return fit(config, read_signature(session, name))

    def load(self, spec: InstanceSpec) -> Instance:
        """See `Backend.load`."""
        ort = _library()
        path = model_file(spec.config, spec.directory, spec.version, self.filename)
        name = short_name(spec.config, spec.version, path)
        wanted = providers(spec, ort.get_available_providers())
        session = _open(ort, path, name, session_options(ort, spec.config), wanted)
        # The library falls back to the CPU with only a log line when a provider's own libraries are missing.
        missing = {provider for provider, _ in wanted} - set(session.get_providers())
        if missing:
            raise BackendUnavailable(
                f"{spec.name}: {', '.join(sorted(missing))} could not start on {spec.kind} {spec.device};"
                " ONNX Runtime"
                " logged which of its libraries is missing. expected the CUDA and cuDNN that"
                " onnxruntime-gpu names"
            )
        return reshaping(spec.config, make_instance(ort, session, spec, run_options(ort, spec)))


def _library() -> Any:
    try:
        return importlib.import_module("onnxruntime")
    except ImportError as error:
        raise BackendUnavailable(
            "backend onnxruntime needs the onnxruntime library: pip install 'qinfer[onnx]'"
            f" (or 'qinfer[gpu]' for GPUs): {error}"
        ) from error


def _open(ort: Any, path: Path, name: str, options: Any, wanted: list[tuple[str, dict[str, str]]]) -> Any:
    try:
        return ort.InferenceSession(str(path), options, providers=wanted)
    except Exception as error:  # the library's errors share no base class but Exception
        raise ConfigError(
            f"{name}: ONNX Runtime {ort.__version__} cannot load it: {error}; expected an ONNX model"
        ) from error
