"""The formats that scoring reads and writes: each a module of the same shape, chosen by a path's suffix."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from qinfer.errors import InvalidRequest
from qinfer.scoring.formats.base import Field, Part, Reader, Writer
from qinfer.scoring.formats.csv import CsvReader, CsvWriter
from qinfer.scoring.formats.folder import FolderReader, FolderWriter
from qinfer.scoring.formats.jsonl import JsonlReader, JsonlWriter
from qinfer.scoring.formats.npy import NpyReader, NpyWriter
from qinfer.scoring.formats.parquet import ParquetReader, ParquetWriter

__all__ = ["Field", "Part", "Reader", "Writer", "is_folder", "open_reader", "writer_of"]

_READERS: dict[str, Callable[[Path], Reader]] = {
    ".npy": NpyReader,
    ".jsonl": JsonlReader,
    ".parquet": ParquetReader,
    ".csv": CsvReader,
}
_WRITERS: dict[str, type[Writer]] = {
    ".npy": NpyWriter,
    ".jsonl": JsonlWriter,
    ".parquet": ParquetWriter,
    ".csv": CsvWriter,
}


def open_reader(path: Path, *, within: Path | None = None) -> Reader:
    """A reader for an input.

    Args:
        path: the file or folder.
        within: a folder that links among the files of a folder must not lead out of; None where they may.

    Raises:
        InvalidRequest: there is no such file, or it is of no known format.
        BackendUnavailable: what reads the format is not installed.
    """
    if path.is_dir():
        return FolderReader(path, within=within)
    make = _READERS.get(path.suffix.lower())
    if make is None:
        raise InvalidRequest(f"{path}: expected a folder or a file of {', '.join(_READERS)}")
    if path.exists() and not path.is_file():
        raise InvalidRequest(
            f"{path}: found a pipe or device; expected a file, which can be read from anywhere"
        )
    return make(path)


def writer_of(path: Path, fields: Sequence[Field], *, binary: bool = False) -> Writer:
    """A writer for an output.

    Raises:
        InvalidRequest: the format cannot hold these fields, or is not known.
        BackendUnavailable: what writes the format is not installed.
    """
    if is_folder(path):
        return FolderWriter(fields, binary=binary)
    make = _WRITERS.get(path.suffix.lower())
    if make is None:
        raise InvalidRequest(
            f"{path}: expected a name without suffix, for a folder, or one of {', '.join(_WRITERS)}"
        )
    return make(fields, binary=binary)


def is_folder(path: Path) -> bool:
    """Whether an output of that name is a folder: one without a suffix."""
    return not path.suffix
