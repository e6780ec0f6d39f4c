"""Where a model's file is."""

from __future__ import annotations

from pathlib import Path

from qinfer.errors import ConfigError
from qinfer.repository import ModelConfig
from qinfer.repository.files import confine


def model_file(config: ModelConfig, directory: Path, version: int, *defaults: str) -> Path:
    """The model's file of one version: `default_model_filename`, else the first of `defaults` that is there.

    A directory of that name holding a file of that name is accepted too: the layout Triton asks for when
    an ONNX model keeps its weights in files of their own.

    Raises:
        ConfigError: there is no such file (the message names what was looked for), or it is a link that leads
            out of the model repository.
    """
    root = directory.parent.resolve()
    names = (config.default_model_filename,) if config.default_model_filename else defaults
    for name in names:
        path = directory / str(version) / name
        if path.is_dir():
            path /= name
        if path.is_file():
            return confine(path, root)
    raise ConfigError(
        f"{directory / str(version)}: no model file; expected {' or '.join(names)}"
        f"{'' if config.default_model_filename else ' (default_model_filename names another)'}"
    )


def short_name(config: ModelConfig, version: int, path: Path) -> str:
    """The file as messages name it: model, version and file name."""
    return f"{config.name}/{version}/{path.name}"
