"""`.parquet`: Apache Parquet, by pyarrow (extra `parquet`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from qinfer.datatypes import DATATYPES, Array, from_bf16
from qinfer.errors import BackendUnavailable, InvalidRequest, QInferError
from qinfer.scoring.columns import MISSING, Block, Chunk, Column
from qinfer.scoring.formats.base import CHUNK_BYTES, Field, Part, Reader, Writer, file_identity, opened

_GROUP_BYTES = 32 << 20  # of a row group, about
_GROUP_ROWS = 1 << 16
_UNKNOWN_DIM = 128  # guess for a dimension that the signature leaves open


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise BackendUnavailable(
            "Parquet files need pyarrow, which is not installed; pip install 'qinfer[parquet]'"
        ) from None
    return pyarrow


class ArrowColumn(Column):
    """A pyarrow array."""

    def __init__(self, array: Any) -> None:
        self.array = array

    def __len__(self) -> int:
        return len(self.array)

    def values(self) -> Array | list[Any]:
        """A numpy array where there are numbers, or vectors of them, and nothing is null; else a list."""
        dense = _dense(self.array)
        if dense is not None:
            return dense
        try:
            listed: list[Any] = self.array.to_pylist()
        except ValueError:  # Python's times have no nanoseconds
            listed = self.array.cast(_pyarrow().string()).to_pylist()
        return listed

    def take(self, rows: Sequence[int]) -> Column:
        """Only these rows."""
        return ArrowColumn(self.array.take(_pyarrow().array(rows, _pyarrow().int64())))


def _dense(array: Any) -> Array | None:
    kind = array.type
    types = _pyarrow().types
    if array.null_count:
        return None
    if types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind):
        plain: Array = array.to_numpy(zero_copy_only=False)
        return plain
    if types.is_fixed_size_list(kind):
        width = kind.list_size
    elif types.is_list(kind) or types.is_large_list(kind):
        lengths = set(array.value_lengths().unique().to_pylist())
        if len(lengths) != 1:
            return None
        (width,) = lengths
    else:
        return None
    inner = _dense(array.flatten())
    return None if inner is None else inner.reshape(len(array), width, *inner.shape[1:])


class ParquetReader(Reader):
    """Reads row group by row group, only the columns that are wanted."""

    def __init__(self, path: Path) -> None:
        self.path = path
        pyarrow = _pyarrow()
        opened(path).close()
        try:
            self._file = pyarrow.parquet.ParquetFile(path)
        except (OSError, pyarrow.ArrowException) as error:
            raise InvalidRequest(f"{path}: no Parquet file: {error}") from None
        self._metadata = self._file.metadata
        self._schema = self._file.schema_arrow
        self.columns = list(self._schema.names)
        self.rows = self.extent = self._metadata.num_rows

    def hint(self, name: str) -> Any:
        """The column's own type."""
        return self._schema.field(name).type

    def read(
        self, names: Sequence[str], rows: int, *, first: int = 0, begin: int | None = None
    ) -> Iterator[Chunk]:
        """Read chunk by chunk."""
        at = first if begin is None else begin
        groups = [self._metadata.row_group(number) for number in range(self._metadata.num_row_groups)]
        behind, start = 0, 0
        while start < len(groups) and behind + groups[start].num_rows <= at:
            behind += groups[start].num_rows
            start += 1
        skipped = at - behind
        pyarrow = _pyarrow()
        batches = self._file.iter_batches(
            batch_size=self._rows_of(groups, rows),
            row_groups=range(start, len(groups)),
            columns=list(dict.fromkeys(names)),
            use_threads=False,
        )
        try:
            for batch in batches:
                if skipped >= batch.num_rows:
                    skipped -= batch.num_rows
                    continue
                chosen = batch.slice(skipped)
                skipped = 0
                columns = {name: ArrowColumn(chosen.column(name)) for name in names}
                end = at + chosen.num_rows
                yield Chunk(first=at, rows=chosen.num_rows, columns=columns, end=end)
                at = end
        except (OSError, pyarrow.ArrowException) as error:
            raise InvalidRequest(f"{self.path}: behind row {at}: {error}") from None

    def _rows_of(self, groups: Sequence[Any], rows: int) -> int:
        """No more rows than a chunk has bytes for, on average."""
        size = sum(group.total_byte_size for group in groups) // max(1, self._metadata.num_rows)
        return max(1, min(rows, CHUNK_BYTES // max(1, int(size))))

    def identity(self) -> dict[str, Any]:
        """What tells whether this is still the same file."""
        return file_identity(self.path)

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()


class _ParquetPart(Part):
    """An Arrow stream: it takes rows as they come, where Parquet wants whole row groups."""

    def __init__(self, writer: ParquetWriter, path: Path) -> None:
        pyarrow = _pyarrow()
        self._writer = writer
        self._file = pyarrow.OSFile(str(path), "wb")
        self._stream = pyarrow.ipc.new_stream(self._file, writer.schema)

    def write(self, block: Block) -> int:
        fields = self._writer.fields
        arrays = [
            self._writer.arrow(field, block.columns[field.name], kind)
            for field, kind in zip(fields, self._writer.schema.types, strict=True)
        ]
        batch = _pyarrow().RecordBatch.from_arrays(arrays, schema=self._writer.schema)
        self._stream.write_batch(batch)
        return int(batch.nbytes)

    def close(self) -> None:
        self._stream.close()
        self._file.close()


class ParquetWriter(Writer):
    """Writes columns of their own types: numbers, lists of them, text or binary; what is kept as it was."""

    def __init__(self, fields: Sequence[Field], *, binary: bool = False) -> None:
        super().__init__(fields, binary=binary)
        pyarrow = _pyarrow()
        self.schema = pyarrow.schema([(field.name, self._type(field)) for field in fields])

    def part(self, path: Path) -> Part:
        """Begin a part."""
        return _ParquetPart(self, path)

    def join(self, parts: Sequence[Path], target: Path) -> None:
        """One file, whose row groups do not depend on where the parts end."""
        pyarrow = _pyarrow()
        rows = self._group_rows()
        with pyarrow.parquet.ParquetWriter(target, self.schema, compression="zstd") as writer:
            held: list[Any] = []
            count = 0
            for batch in _batches(parts):
                held.append(batch)
                count += batch.num_rows
                while count >= rows:
                    table = pyarrow.Table.from_batches(held, self.schema)
                    writer.write_table(table.slice(0, rows).combine_chunks(), row_group_size=rows)
                    held = table.slice(rows).to_batches()
                    count -= rows
            if count:
                table = pyarrow.Table.from_batches(held, self.schema)
                writer.write_table(table.combine_chunks(), row_group_size=rows)

    def faults(self, field: Field, column: Column) -> Mapping[int, QInferError]:
        """Rows of a kept column whose value is of another type than the first ones."""
        pyarrow = _pyarrow()
        kind = self.schema.field(field.name).type
        try:
            self.arrow(field, column, kind)
        except (pyarrow.ArrowException, TypeError, ValueError, OverflowError):
            return {
                place: InvalidRequest(f"column {field.name!r}: found {str(value)[:60]!r}; expected {kind}")
                for place, value in enumerate(column.values())
                if not _fits(value, kind)
            }
        return {}

    def arrow(self, field: Field, column: Column, kind: Any) -> Any:
        """Values as a pyarrow array of that type."""
        pyarrow = _pyarrow()
        if isinstance(column, ArrowColumn):
            return column.array.cast(kind) if column.array.type != kind else column.array
        values = column.values()
        if not isinstance(values, np.ndarray):
            return pyarrow.array([None if value is MISSING else value for value in values], kind)
        if field.datatype == "BF16":
            values = from_bf16(values)
        if field.output and field.single:
            values = values.reshape(len(values))
        return _nested(values, kind)

    def _type(self, field: Field) -> Any:
        pyarrow = _pyarrow()
        if field.output:
            if field.datatype == "BYTES":
                kind = pyarrow.binary() if self.binary else pyarrow.string()
            elif field.datatype == "BF16":
                kind = pyarrow.float32()
            else:
                kind = pyarrow.from_numpy_dtype(DATATYPES[field.datatype].dtype)
            for _ in range(0 if field.single else len(field.dims)):
                kind = pyarrow.list_(kind)
            return kind
        if field.hint is not None:
            return field.hint
        try:
            known = [value for value in field.sample if value is not MISSING]
            kind = pyarrow.array(known).type
        except (pyarrow.ArrowException, TypeError, ValueError) as error:
            raise InvalidRequest(
                f"column {field.name!r}: its first rows have no common type: {error}"
            ) from None
        return pyarrow.string() if kind == pyarrow.null() else kind

    def _group_rows(self) -> int:
        size = 0
        for field in self.fields:
            dims = [_UNKNOWN_DIM if dim < 0 else dim for dim in field.dims]
            size += prod(dims) * (DATATYPES[field.datatype].itemsize or _UNKNOWN_DIM if field.output else 8)
        return max(1, min(_GROUP_ROWS, _GROUP_BYTES // max(1, size)))


def _batches(parts: Sequence[Path]) -> Iterator[Any]:
    pyarrow = _pyarrow()
    for part in parts:
        with pyarrow.OSFile(str(part), "rb") as file, pyarrow.ipc.open_stream(file) as stream:
            yield from stream


def _nested(values: Array, kind: Any) -> Any:
    """An array of several dimensions as lists of lists, without making Python values of them."""
    pyarrow = _pyarrow()
    if values.ndim == 1:
        return pyarrow.array(values, kind)
    count, width = values.shape[:2]
    inner = _nested(values.reshape(count * width, *values.shape[2:]), kind.value_type)
    offsets = pyarrow.array(np.arange(count + 1, dtype=np.int32) * np.int32(width))
    return pyarrow.ListArray.from_arrays(offsets, inner, kind)


def _fits(value: Any, kind: Any) -> bool:
    pyarrow = _pyarrow()
    try:
        pyarrow.array([None if value is MISSING else value], kind)
    except (pyarrow.ArrowException, TypeError, ValueError, OverflowError):
        return False
    return True
