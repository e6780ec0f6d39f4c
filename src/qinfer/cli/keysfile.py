"""Changes of the file of API keys that leave what people wrote in it as it is.

Entries are added and taken out as text, and the result is read again before it takes the file's place: a file
of a shape that this does not understand is left alone.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from qinfer.errors import ConfigError
from qinfer.keys import KeyEntry, parse_keys, read_keys

_MODE = 0o600
_HEADER = "# API keys of qinfer gateways; see `qinfer keys`. The keys themselves are not in it.\nkeys:\n"


def append_entry(path: Path, entry: Mapping[str, Any]) -> None:
    """Add an entry; the file is made if it is not there.

    Raises:
        ConfigError: the file, or the entry, is wrong; the file is as it was.
    """
    with _locked(path):
        before = read_keys(path) if path.exists() else ()
        text = path.read_text(encoding="utf-8") if path.exists() else _HEADER
        if not before:
            # Without entries the list may be written in any way, or not be there.
            text = "".join(f"{line}\n" for line in text.splitlines() if line.startswith("#")) + "keys:\n"
        if not text.endswith("\n"):
            text += "\n"
        indent = " " * _indentation(text)
        block = yaml.safe_dump([dict(entry)], sort_keys=False, allow_unicode=True, width=1000)
        text += "".join(f"{indent}{line}\n" for line in block.splitlines())
        _replace(path, text, expected=len(before) + 1, name=str(entry["name"]), kept=True)


def remove_entry(path: Path, name: str) -> None:
    """Take an entry out.

    Raises:
        ConfigError: the file is wrong, or has no such entry.
    """
    with _locked(path):
        before = read_keys(path)
        index = next((index for index, entry in enumerate(before) if entry.name == name), None)
        if index is None:
            known = ", ".join(sorted(entry.name for entry in before)) or "none"
            raise ConfigError(f"{path}: no key is called {name!r}; there are: {known}")
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        first, last = _lines_of(lines, index)
        del lines[first:last]
        _replace(path, "".join(lines), expected=len(before) - 1, name=name, kept=False)


def _indentation(text: str) -> int:
    """How far the entries of the list are indented; 2 where there are none."""
    items = _items(text)
    return items[0].start_mark.column - 2 if items else 2


def _lines_of(lines: list[str], index: int) -> tuple[int, int]:
    """First line of an entry and the one after its last; comments that follow belong to the next one."""
    node = _items("".join(lines))[index]
    first, last = node.start_mark.line, node.end_mark.line
    while last - 1 > first and (not lines[last - 1].strip() or lines[last - 1].lstrip().startswith("#")):
        last -= 1
    return first, max(last, first + 1)


def _items(text: str) -> list[yaml.Node]:
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    pairs = root.value if isinstance(root, yaml.MappingNode) else []
    for key, value in pairs:
        if key.value == "keys" and isinstance(value, yaml.SequenceNode):
            return list(value.value)
    return []


def _replace(path: Path, text: str, *, expected: int, name: str, kept: bool) -> None:
    """Put the new text in the file's place, all at once, if it says what it should."""
    entries: tuple[KeyEntry, ...] = parse_keys(text, str(path))
    if len(entries) != expected or any(entry.name == name for entry in entries) is not kept:
        raise ConfigError(
            f"{path}: its entries are not one field a line, so it was left as it is; edit it by hand"
        )
    mode = path.stat().st_mode & 0o777 if path.exists() else _MODE
    target = path.resolve()
    descriptor, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(descriptor)
            os.fchmod(descriptor, mode)
        Path(temporary).replace(target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Keep other commands from changing files of this folder meanwhile.

    Raises:
        ConfigError: there is no such folder.
    """
    folder = path.resolve().parent
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise ConfigError(
            f"{folder}: {error.strerror}; expected the folder of the file of API keys"
        ) from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
