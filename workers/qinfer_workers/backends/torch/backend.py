"""Makes instances out of TorchScript (`model.pt`) and `torch.export` (`model.pt2`) files."""

from __future__ import annotations

import importlib
import warnings
from pathlib import Path
from typing import Any, ClassVar

from qinfer.errors import BackendUnavailable, ConfigError
from qinfer.repository import ModelConfig
from qinfer_workers.backends.base import Instance, InstanceSpec
from qinfer_workers.backends.files import model_file, short_name
from qinfer_workers.backends.reshape import reshaping
from qinfer_workers.backends.signature import fit
from qinfer_workers.backends.torch.archive import check_archive
from qinfer_workers.backends.torch.instance import TorchInstance
from qinfer_workers.backends.torch.options import Options, apply_process_settings
from qinfer_workers.backends.torch.program import ExportedModule, Program, ScriptModule
from qinfer_workers.backends.torch.signature import read_signature

SCRIPT_FILENAME = "model.pt"
EXPORT_FILENAME = "model.pt2"


class TorchBackend:
    """PyTorch programs. Eager modules saved with `torch.save` are pickles, which are never opened."""

    name: ClassVar[str] = "torch"
    filename: ClassVar[str] = SCRIPT_FILENAME

    def check(self) -> None:
        """See `Backend.check`."""
        _library()

    def complete(self, config: ModelConfig, directory: Path, version: int) -> ModelConfig:
        """See `Backend.complete`. An exported program tells its whole signature, TorchScript none of it."""
        path = model_file(config, directory, version, SCRIPT_FILENAME, EXPORT_FILENAME)
        if path.suffix != ".pt2":
            return config
        torch = _library()
        name = short_name(config, version, path)
        return fit(config, read_signature(torch, _open_export(torch, path, name), name))

    def load(self, spec: InstanceSpec) -> Instance:
        """See `Backend.load`."""
        torch = _library()
        options = Options.of(spec.config)
        apply_process_settings(torch, options, spec.config)
        path = model_file(spec.config, spec.directory, spec.version, SCRIPT_FILENAME, EXPORT_FILENAME)
        name = short_name(spec.config, spec.version, path)
        device = _device(torch, spec)
        program: Program
        if path.suffix == ".pt2":
            program = ExportedModule(torch, _open_export(torch, path, name), device, name)
        else:
            program = ScriptModule(_open_script(torch, path, name, device))
        return reshaping(spec.config, TorchInstance(torch, program, spec, options, device))


def _library() -> Any:
    try:
        return importlib.import_module("torch")
    except ImportError as error:
        raise BackendUnavailable(
            f"backend torch needs the torch library: pip install 'qinfer[torch]': {error}"
        ) from error


def _device(torch: Any, spec: InstanceSpec) -> Any:
    if spec.kind != "GPU":
        return torch.device("cpu")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if spec.device >= count:
        raise BackendUnavailable(
            f"{spec.name}: instance_group wants GPU {spec.device}; torch {torch.__version__} sees {count}"
            " (expected a CUDA build of torch and a driver it can use)"
        )
    return torch.device("cuda", spec.device)


def _open_script(torch: Any, path: Path, name: str, device: Any) -> Any:
    try:
        with warnings.catch_warnings():
            # torch advises torch.export, which is also accepted here; TorchScript files remain in service.
            warnings.filterwarnings("ignore", message=r".*torch\.jit\.load.* is deprecated")
            return torch.jit.load(str(path), map_location=device).eval()
    except (RuntimeError, ValueError, OSError) as error:
        raise ConfigError(
            f"{name}: torch {torch.__version__} cannot load it: {_first_line(error)}; expected TorchScript,"
            " as"
            " torch.jit.save writes it (a pickle made by torch.save is not opened: it can run any code)"
        ) from error


def _open_export(torch: Any, path: Path, name: str) -> Any:
    check_archive(torch, path, name)
    try:
        return torch.export.load(str(path))
    except Exception as error:  # the loader lets whatever its parts raise pass
        raise ConfigError(
            f"{name}: torch {torch.__version__} cannot load it: {_first_line(error)}; expected an exported"
            " program, as torch.export.save writes it"
        ) from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
