"""What tells whether a model was changed on disk."""

from __future__ import annotations

import os
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path

from qinfer.proto import ModelConfig as ModelConfigMessage
from qinfer.repository.scan import CONFIG_FILES, ModelEntry

_PASSED_OVER = frozenset(("__pycache__", *CONFIG_FILES))
_MAX_FILES = 100_000


def fingerprints(entry: ModelEntry) -> dict[str, str]:
    """A text for each version to be served, which is another one when the version has to be loaded again.

    It follows from what the configuration says (but not from which versions it selects), and from the size
    and time of the files in the version's directory and of those in the model's that belong to no version.

    Raises:
        OSError: the directory cannot be read.
    """
    common = blake2b(_meaning(entry), digest_size=16)
    versions = {str(version) for version in entry.available}
    for line in _files(entry.directory, versions):
        common.update(line)
    found = {}
    for version in entry.versions:
        digest = common.copy()
        for line in _files(entry.directory / str(version), frozenset()):
            digest.update(line)
        found[str(version)] = digest.hexdigest()
    return found


def _meaning(entry: ModelEntry) -> bytes:
    """The configuration without its version policy."""
    config = entry.config
    message = ModelConfigMessage.FromString(config.proto)
    message.ClearField("version_policy")
    labels = [(output.name, output.labels) for output in config.outputs]
    said = repr((config.backend, config.max_batch_size_given, labels)).encode()
    return message.SerializeToString(deterministic=True) + said


def _files(directory: Path, passed_over: set[str] | frozenset[str]) -> Iterator[bytes]:
    """A line for each file below a directory."""
    count = 0
    for folder, folders, names in os.walk(directory):
        top = Path(folder) == directory
        folders[:] = sorted(
            name for name in folders if name not in _PASSED_OVER and not (top and name in passed_over)
        )
        # A link to a directory is not followed, but one that leads elsewhere now is seen.
        for name in sorted(names) + [name for name in folders if Path(folder, name).is_symlink()]:
            if name in _PASSED_OVER:
                continue
            count += 1
            if count > _MAX_FILES:
                return
            path = Path(folder, name)
            try:
                status = path.stat()
            except FileNotFoundError:  # removed this moment, or a link to nowhere
                continue
            place = path.relative_to(directory)
            yield f"{place}\0{status.st_size}\0{status.st_mtime_ns}\0{status.st_ino}\n".encode(
                errors="surrogateescape"
            )
