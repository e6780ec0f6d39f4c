"""A folder: each file is a row, `.npy` files an array and others their bytes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from qinfer.datatypes import Array
from qinfer.errors import InvalidRequest, PayloadTooLarge, QInferError
from qinfer.scoring.columns import MISSING, Block, Chunk, ListColumn
from qinfer.scoring.formats.base import CHUNK_BYTES, Field, Part, Reader, Writer, named
from qinfer.scoring.formats.npy import DATA

FILE = "file"
"""Column with a row's name: the file's path below the folder."""

MAX_FILE = 1 << 30
"""Largest file that is read, in bytes."""


class FolderReader(Reader):
    """Reads the files of a folder and those below it, in the order of their names; hidden ones are left out.

    Their names are held in memory, their contents chunk by chunk.

    Args:
        path: the folder.
        within: a folder, without links in its path, that links must not lead out of; None where they may.
    """

    names_rows = True

    def __init__(self, path: Path, *, within: Path | None = None) -> None:
        self.path = path
        self._within = within
        self.columns = (FILE, DATA)
        self._names = sorted(_files(path))
        self.rows = self.extent = len(self._names)

    def read(
        self, names: Sequence[str], rows: int, *, first: int = 0, begin: int | None = None
    ) -> Iterator[Chunk]:
        """Read chunk by chunk."""
        at = first if begin is None else begin
        while at < self.extent:
            chosen: list[str] = []
            data: list[Any] = []
            faults: dict[int, QInferError] = {}
            size = 0
            for name in self._names[at : at + rows]:
                if size >= CHUNK_BYTES:
                    break
                value: Any = self._value(name) if DATA in names else b""
                if isinstance(value, QInferError):
                    faults[len(chosen)] = value
                    value = MISSING
                else:
                    size += len(value) if isinstance(value, bytes) else value.nbytes
                chosen.append(name)
                data.append(value)
            columns = {FILE: ListColumn(list(chosen)), DATA: ListColumn(data)}
            yield Chunk(first=at, rows=len(chosen), columns=columns, end=at + len(chosen), faults=faults)
            at += len(chosen)

    def close(self) -> None:
        """Nothing is held between two readings."""

    def _value(self, name: str) -> bytes | Array | QInferError:
        path = self.path / name
        if self._within is not None and not path.resolve().is_relative_to(self._within):
            return InvalidRequest(f"{path}: is a link out of the folders that may be read")
        try:
            if (size := path.stat().st_size) > MAX_FILE:
                return PayloadTooLarge(f"{path}: found {size} bytes; expected at most {MAX_FILE >> 20} MiB")
            if path.suffix == ".npy":
                array: Array = np.load(path, allow_pickle=False)
                return array
            return path.read_bytes()
        except (OSError, ValueError, EOFError) as error:
            return InvalidRequest(f"{path}: cannot be read: {error}")

    def identity(self) -> dict[str, Any]:
        """How many files there are, and a hash of their names, sizes and times of change."""
        digest = sha256()
        for name in self._names:
            try:
                facts = (self.path / name).stat()
                told = f"{name}\0{facts.st_size}\0{facts.st_mtime_ns}\0"
            except OSError:
                told = f"{name}\0\0\0"
            digest.update(told.encode(errors="surrogateescape"))
        return {"files": self.rows, "sha256_of_list": digest.hexdigest()}


def _files(root: Path) -> Iterator[str]:
    def refuse(error: OSError) -> None:
        raise InvalidRequest(f"{error.filename}: cannot be read: {error.strerror}") from None

    for folder, below, files in os.walk(root, onerror=refuse):
        below[:] = [name for name in below if not name.startswith(".")]
        prefix = PurePosixPath(Path(folder).relative_to(root))
        for name in files:
            if not name.startswith("."):
                yield str(prefix / name)


class _FolderPart(Part):
    """A folder with a file for each row and output."""

    def __init__(self, writer: FolderWriter, path: Path) -> None:
        self._writer = writer
        self._root = path
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir()

    def write(self, block: Block) -> int:
        names = block.names or [f"{row:09d}" for row in block.rows]
        return sum(
            self._write(field, name, value)
            for field in self._writer.fields
            for name, value in zip(names, block.columns[field.name].values(), strict=True)
        )

    def _write(self, field: Field, name: str, value: Any) -> int:
        stem = name if len(self._writer.fields) == 1 else f"{name}.{field.name}"
        path = self._root / f"{stem}{self._writer.suffix(field)}"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            if field.datatype == "BYTES":
                (element,) = value.reshape(-1) if isinstance(value, np.ndarray) else (value,)
                file.write(element if isinstance(element, bytes) else str(element).encode())
            else:
                np.save(file, value)
            return file.tell()

    def close(self) -> None:
        """Every file is closed already."""


class FolderWriter(Writer):
    """Writes a file a row: `.npy`, or the bytes of BYTES; a row's name is that of its file, or its number."""

    def __init__(self, fields: Sequence[Field], *, binary: bool = False) -> None:
        super().__init__(fields, binary=binary)
        kept = [field for field in fields if not field.output]
        if kept:
            raise InvalidRequest(
                f"a folder holds outputs only; found columns {named(kept)} to be kept; expected for instance "
                "a .jsonl output"
            )
        for field in fields:
            if field.datatype == "BYTES" and not field.single:
                raise InvalidRequest(
                    f"output {field.output!r} has BYTES of dims {list(field.dims)}; expected one element a "
                    "file, or for instance a .jsonl output"
                )

    def suffix(self, field: Field) -> str:
        """What is added to the name of a row."""
        if field.datatype != "BYTES":
            return ".npy"
        return ".bin" if self.binary else ".txt"

    def part(self, path: Path) -> Part:
        """Begin a part."""
        return _FolderPart(self, path)

    def join(self, parts: Sequence[Path], target: Path) -> None:
        """All files in one folder: the same files under a second name where the disk can have that."""
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()
        for part in parts:
            for folder, _, files in os.walk(part):
                into = target / Path(folder).relative_to(part)
                into.mkdir(parents=True, exist_ok=True)
                for name in files:
                    _link(Path(folder, name), into / name)


def _link(source: Path, target: Path) -> None:
    with suppress(OSError):
        target.hardlink_to(source)
        return
    shutil.copyfile(source, target)
