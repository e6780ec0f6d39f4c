"""The contract of a file format: how rows are read, and how they are written in parts."""

from __future__ import annotations

import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO

from qinfer.errors import InvalidRequest, QInferError
from qinfer.scoring.columns import Block, Chunk, Column

SAMPLE_ROWS = 100
"""Rows from which types are told that the format does not tell."""

CHUNK_BYTES = 8 << 20
"""Bytes of the file after which a chunk ends, whatever rows it has."""

_EDGE = 64 << 10  # bytes at both ends of a file that are looked at to know it again
_COPY = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """One column of the output.

    Attributes:
        name: its name there.
        output: the model's output it holds; "" for a column of the input that is kept.
        datatype: of the output; "" for a kept column.
        dims: of the output, without the batch dimension.
        hint: the type of a kept column, where the input's format tells it: a pyarrow type.
        sample: the first rows of a kept column.
    """

    name: str
    output: str = ""
    datatype: str = ""
    dims: tuple[int, ...] = ()
    hint: Any = None
    sample: Sequence[Any] = ()

    @property
    def single(self) -> bool:
        """Whether a row has one value here and not a vector: an output of dims () or (1,)."""
        return self.dims in ((), (1,))


class Reader(ABC):
    """Reads rows, from any place on.

    Attributes:
        path: the file or folder.
        columns: names of its columns, as far as they are known beforehand.
        rows: how many rows there are; None where only reading all of it would tell.
        extent: where the last row ends, in the measure of `Chunk.end`.
        names_rows: whether rows have names of their own, in the column "file".
    """

    path: Path
    columns: Sequence[str]
    rows: int | None
    extent: int
    names_rows = False

    @abstractmethod
    def read(
        self, names: Sequence[str], rows: int, *, first: int = 0, begin: int | None = None
    ) -> Iterator[Chunk]:
        """Read chunk by chunk; no more than one is held.

        Args:
            names: the columns that are wanted.
            rows: of a chunk, at most; fewer where they are large.
            first, begin: where to begin: number of the row, and the `end` of the chunk before it.

        Raises:
            InvalidRequest: the file is none of its format. What is wrong with one row is told in
                `Chunk.faults`.
        """

    def hint(self, name: str) -> Any:  # noqa: ARG002 (for those that know)
        """The pyarrow type of a column, where the format has it; None elsewhere."""
        return None

    def sample(self) -> Chunk | None:
        """The first rows with all columns; None when there are none."""
        return next(self.read(self.columns, SAMPLE_ROWS), None)

    def identity(self) -> dict[str, Any]:
        """What tells whether this is still the same input."""
        return file_identity(self.path)

    @abstractmethod
    def close(self) -> None:
        """Let go of the file."""


class Part(ABC):
    """A part of the output while it is written."""

    @abstractmethod
    def write(self, block: Block) -> int:
        """Add rows; returns the bytes written, about."""

    @abstractmethod
    def close(self) -> None:
        """Write what is left, and let go of the file."""


class Writer(ABC):
    """Writes parts of an output, and joins them. What comes out depends on the rows only, not on the parts.

    Args:
        fields: the columns.
        binary: BYTES are written as they are, or in base64, instead of as text.
    """

    def __init__(self, fields: Sequence[Field], *, binary: bool = False) -> None:
        self.fields = fields
        self.binary = binary

    @abstractmethod
    def part(self, path: Path) -> Part:
        """Begin a part."""

    @abstractmethod
    def join(self, parts: Sequence[Path], target: Path) -> None:
        """Make one output of the parts at `target`, which is not there yet or was left half done."""

    def faults(self, field: Field, column: Column) -> Mapping[int, QInferError]:  # noqa: ARG002
        """Which rows of a kept column cannot be written, by place, and why."""
        return {}


def file_identity(path: Path) -> dict[str, Any]:
    """Size, time of the last change, and a hash of both ends of a file."""
    with opened(path) as file:
        facts = os.fstat(file.fileno())
        digest = sha256(file.read(_EDGE))
        file.seek(max(0, facts.st_size - _EDGE))
        digest.update(file.read(_EDGE))
    return {"size": facts.st_size, "changed_ns": facts.st_mtime_ns, "sha256_of_ends": digest.hexdigest()}


def opened(path: Path) -> BinaryIO:
    """A file to read.

    Raises:
        InvalidRequest: it cannot be read.
    """
    try:
        return path.open("rb")
    except OSError as error:
        raise InvalidRequest(f"{path}: cannot be read: {error.strerror}") from None


def sync(path: Path) -> None:
    """Have a file on the disk, or a folder with all that is in it."""
    if path.is_dir():
        for folder, _, files in os.walk(path):
            for name in files:
                _sync(Path(folder, name))
            _sync(Path(folder))
    else:
        _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def join_files(parts: Sequence[tuple[Path, int]], target: Path, head: bytes = b"") -> None:
    """One file of a head and the parts' contents, each from an offset on."""
    with target.open("wb") as joined:
        joined.write(head)
        for part, offset in parts:
            with part.open("rb") as file:
                file.seek(offset)
                shutil.copyfileobj(file, joined, _COPY)


def named(fields: Sequence[Field]) -> str:
    """The fields' names, for messages."""
    return ", ".join(field.name for field in fields)
