"""What JSON Lines and CSV have in common: lines that are found again by their offset, and values as text."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from qinfer.datatypes import from_bf16
from qinfer.errors import InvalidRequest
from qinfer.scoring.columns import Column
from qinfer.scoring.formats.base import Field, opened

MAX_LINE = 64 << 20
"""Longest line that is read, in bytes."""

_NEW_LINE = b"\n"


class LineTooLong(InvalidRequest):
    """A line that is longer than `MAX_LINE`."""


class Lines:
    """Lines of a text file, from an offset on.

    Attributes:
        offset: where the next line begins.
    """

    def __init__(self, path: Path, offset: int) -> None:
        self._file = opened(path)
        self._file.seek(offset)
        self.offset = offset

    def next(self) -> bytes:
        """The next line with its end; empty after the last one.

        Raises:
            LineTooLong: it is longer than `MAX_LINE`; it is behind us then.
        """
        line = self._file.readline(MAX_LINE)
        self.offset += len(line)
        if len(line) < MAX_LINE or line.endswith(_NEW_LINE):
            return line
        while not line.endswith(_NEW_LINE) and (line := self._file.readline(MAX_LINE)):
            self.offset += len(line)
        raise LineTooLong(f"found a line of more than {MAX_LINE >> 20} MiB; expected at most that")

    def text(self) -> Iterator[str]:
        """The lines that are left, as text.

        Raises:
            InvalidRequest: one is no UTF-8 or too long.
        """
        while line := self.next():
            try:
                yield line.decode()
            except UnicodeDecodeError as error:
                raise InvalidRequest(
                    f"found byte 0x{line[error.start]:02x} at {self.offset - len(line) + error.start}; "
                    "expected UTF-8"
                ) from None

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()


def plain(field: Field, column: Column, *, binary: bool) -> list[Any]:
    """Values as JSON can hold them.

    Args:
        field: what they are.
        column: the values.
        binary: bytes become base64 and not text.
    """
    values = column.values()
    if isinstance(values, np.ndarray):
        if field.datatype == "BF16":
            values = from_bf16(values)
        if field.output and field.single:
            values = values.reshape(len(values))
        values = values.tolist()
    return [_plain(value, binary) for value in values] if _may_hold_bytes(values) else values


def _may_hold_bytes(values: list[Any]) -> bool:
    return not values or not isinstance(values[0], bool | int | float | str)


def _plain(value: Any, binary: bool) -> Any:
    if isinstance(value, bytes):
        return b64encode(value).decode() if binary else value.decode(errors="replace")
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, list):
        return [_plain(item, binary) for item in value] if _may_hold_bytes(value) else value
    return value
