"""Reading the files of a repository, and nothing outside it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from qinfer.errors import ConfigError

MAX_CONFIG_BYTES = 256 * 1024
MAX_LABEL_BYTES = 16 * 1024 * 1024


def confine(path: Path, root: Path) -> Path:
    """Return `path` if it leads, links followed, to something inside `root`, which is a resolved path.

    Raises:
        ConfigError: it leads elsewhere, or round in a circle.
    """
    try:
        inside = path.resolve().is_relative_to(root)
    except (OSError, RuntimeError) as error:
        raise ConfigError(f"{path}: cannot be followed: {error}; expected a file or directory") from None
    if not inside:
        raise ConfigError(f"{path}: leads out of the model repository; expected a place inside {root}")
    return path


def relative(name: str) -> str | None:
    """What is wrong with a file name that a configuration gives, if anything."""
    if not name.isprintable():
        return f"found {name!r}; expected printable characters"
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.name:
        return f"found {name!r}; expected the name of a file below its directory, without '..'"
    return None


def read_text(path: Path, root: Path, limit: int) -> str:
    """Read a UTF-8 file of the repository.

    Raises:
        ConfigError: it is outside `root`, no regular file, cannot be read, larger than `limit` bytes, or not
            UTF-8.
    """
    confine(path, root)
    if not path.is_file():  # a pipe would be read for ever
        raise ConfigError(f"{path}: {'not a file' if path.exists() else 'no such file'}; expected a file")
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}; expected a readable file") from None
    if len(data) > limit:
        raise ConfigError(f"{path}: larger than {limit} bytes; expected at most that")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}: {line}: byte {data[error.start]:#04x}; expected UTF-8 text") from None


def read_labels(path: Path, root: Path) -> tuple[str, ...]:
    """Class labels: one a line, in order; empty lines at the end do not count.

    Raises:
        ConfigError: as `read_text`.
    """
    lines = [line.strip() for line in read_text(path, root, MAX_LABEL_BYTES).split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    return tuple(lines)


def version_directories(directory: Path) -> Iterator[int]:
    """The versions of a model; as in Triton, directories of other names or with a leading 0 do not count."""
    for child in directory.iterdir():
        name = child.name
        if name.isascii() and name.isdecimal() and name[0] != "0" and len(name) <= 18 and child.is_dir():
            yield int(name)
