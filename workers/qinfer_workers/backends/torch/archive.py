"""Keeps code out of `model.pt2` files before PyTorch opens them.

`torch.export.load` unpickles parts of an archive, and falls back to doing so without any limits where its own
restricted unpickler refuses. A pickle can run any code, so archives are let in only if each of their pickles
holds nothing but tensors and plain values.
"""

from __future__ import annotations

import io
import json
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from qinfer.errors import ConfigError

_OBJECTS = ("custom_obj_", "opaque_obj_")
_COMPILED = "aotinductor"
_MAX_DIRECTORY_BYTES = 16 * 1024 * 1024


def check_archive(torch: Any, path: Path, name: str) -> None:
    """Refuse an archive that could run code when it is opened.

    Args:
        torch: the library.
        path: the file.
        name: what messages call it.

    Raises:
        ConfigError: it could, or it is no archive.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            for entry in archive.namelist():
                parts = PurePosixPath(entry).parts
                if parts[-1].startswith(_OBJECTS) or _COMPILED in parts:
                    raise ConfigError(
                        f"{name}: {entry}: found an object of Python or C++; expected tensors only"
                    )
            for entry in _pickles(archive):
                _check_pickle(torch, archive.read(entry), f"{name}: {entry}")
    except (zipfile.BadZipFile, OSError, KeyError, ValueError, RuntimeError, NotImplementedError) as error:
        raise ConfigError(
            f"{name}: torch {torch.__version__} cannot load it: {error}; expected an exported program, as"
            " torch.export.save writes it"
        ) from error


def _pickles(archive: zipfile.ZipFile) -> Iterator[str]:
    """The entries that PyTorch unpickles: those that are named so, and those that a directory says are."""
    for entry in archive.namelist():
        path = PurePosixPath(entry)
        if path.suffix == ".pt":
            yield entry
        elif path.name.endswith("_config.json"):
            if archive.getinfo(entry).file_size > _MAX_DIRECTORY_BYTES:
                raise ValueError(f"{entry} is above {_MAX_DIRECTORY_BYTES} bytes")
            listed = json.loads(archive.read(entry)).get("config", {})
            yield from (
                str(path.with_name(payload["path_name"]))
                for payload in listed.values()
                if payload["use_pickle"]
            )


def _check_pickle(torch: Any, data: bytes, name: str) -> None:
    if not data:
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
    except Exception as error:  # whatever the unpickler's parts raise: it is not opened
        raise ConfigError(
            f"{name}: found a pickle that holds more than tensors, and could run any code; expected tensors"
        ) from error
