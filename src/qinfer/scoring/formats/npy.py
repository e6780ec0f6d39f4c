"""`.npy`: one array, whose first dimension is the rows; a structured one has a column for each field."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from qinfer.datatypes import DATATYPES, Array
from qinfer.errors import InvalidRequest
from qinfer.scoring.columns import ArrayColumn, Block, Chunk
from qinfer.scoring.formats.base import CHUNK_BYTES, Field, Part, Reader, Writer, join_files, named, opened

DATA = "data"
"""Name of the one column of an array."""


class NpyReader(Reader):
    """Reads an array, which is mapped into memory and not held there."""

    def __init__(self, path: Path) -> None:
        self.path = path
        opened(path).close()
        try:
            self._array: Array = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise InvalidRequest(f"{path}: no .npy file: {error}") from None
        if not isinstance(self._array, np.ndarray) or not self._array.ndim:
            raise InvalidRequest(f"{path}: found no array with rows; expected at least one dimension")
        self.columns = self._array.dtype.names or (DATA,)
        self.rows = self.extent = len(self._array)

    def read(
        self, names: Sequence[str], rows: int, *, first: int = 0, begin: int | None = None
    ) -> Iterator[Chunk]:
        """Read chunk by chunk."""
        at = first if begin is None else begin
        size = self._array[:1].nbytes
        rows = min(rows, max(1, CHUNK_BYTES // size)) if size else rows
        while at < self.extent:
            # A copy: pages of the file must not be read where the event loop runs.
            chosen = np.array(self._array[at : at + rows])
            fields = {
                name: ArrayColumn(chosen[name] if self._array.dtype.names else chosen) for name in names
            }
            yield Chunk(first=at, rows=len(chosen), columns=fields, end=at + len(chosen))
            at += len(chosen)

    def close(self) -> None:
        """Let go of the file."""
        self._array = self._array[:0].copy()


class _NpyPart(Part):
    """An array of its own; how many rows it has is written into its head at the end."""

    def __init__(self, path: Path, dtype: np.dtype[Any], row: tuple[int, ...]) -> None:
        self._file = path.open("wb")
        self._dtype = dtype
        self._row = row
        self._count = 0

    def write(self, block: Block) -> int:
        (column,) = block.columns.values()
        array = np.ascontiguousarray(column.values(), dtype=self._dtype)
        if not self._count:
            self._row = array.shape[1:]
            self._file.write(_head(self._dtype, 0, self._row))
        elif self._row != array.shape[1:]:
            raise _ragged(self._row, array.shape[1:])
        self._count += len(array)
        self._file.write(array.reshape(-1).view(np.uint8).data if array.size else b"")
        return array.nbytes

    def close(self) -> None:
        self._file.seek(0)
        self._file.write(_head(self._dtype, self._count, self._row))
        self._file.close()


class NpyWriter(Writer):
    """Writes one output as an array."""

    def __init__(self, fields: Sequence[Field], *, binary: bool = False) -> None:
        super().__init__(fields, binary=binary)
        if len(fields) != 1 or not fields[0].output:
            raise InvalidRequest(
                f".npy holds one output; found columns {named(fields)}; expected one (--map-output), or "
                "another format, for instance .parquet"
            )
        if fields[0].datatype == "BYTES":
            raise InvalidRequest(
                f"output {fields[0].output!r} is BYTES, which .npy cannot hold; expected for instance .jsonl"
            )
        self._dtype = DATATYPES[fields[0].datatype].dtype

    def part(self, path: Path) -> Part:
        """Begin a part."""
        return _NpyPart(path, self._dtype, self._unseen)

    def join(self, parts: Sequence[Path], target: Path) -> None:
        """One array of all parts."""
        arrays = [np.load(part, mmap_mode="r") for part in parts]
        shapes = [array.shape for array in arrays if len(array)] or [(0, *self._unseen)]
        row = shapes[0][1:]
        for shape in shapes:
            if shape[1:] != row:
                raise _ragged(row, shape[1:])
        head = _head(self._dtype, sum(len(array) for array in arrays), row)
        skipped = [(part, array.offset) for part, array in zip(parts, arrays, strict=True) if len(array)]
        join_files(skipped, target, head)

    @property
    def _unseen(self) -> tuple[int, ...]:
        """Shape of a row when there is none to tell."""
        return tuple(max(size, 0) for size in self.fields[0].dims)


def _head(dtype: np.dtype[Any], count: int, row: Sequence[int]) -> bytes:
    """The head of a file; as long for any count (numpy leaves room for it)."""
    head = BytesIO()
    described = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (count, *row)}
    np.lib.format.write_array_header_1_0(head, described)
    return head.getvalue()


def _ragged(one: Sequence[int], other: Sequence[int]) -> InvalidRequest:
    return InvalidRequest(
        f"the outputs of rows have shapes {list(one)} and {list(other)}, which one array cannot hold; "
        "expected another format, for instance .parquet"
    )
