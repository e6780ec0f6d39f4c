"""Arrow: a value is an IPC stream, which is a table; each of its rows is scored."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from qinfer.datatypes import Array, from_bf16
from qinfer.errors import BackendUnavailable
from qinfer.scoring.columns import MISSING
from qinfer_workers.kafka.columns import TableColumn
from qinfer_workers.kafka.contract import BadRecord
from qinfer_workers.kafka.formats.base import Parsed, Reader, Setup, Writer
from qinfer_workers.kafka.outputs import OutputColumn, OutputField
from qinfer_workers.kafka.paths import Path

if TYPE_CHECKING:
    import pyarrow as pa

MAX_ROWS = 65_536
"""Rows a record may have where no model says so."""


def reader(setup: Setup) -> Reader:
    """What reads it.

    Raises:
        ValueError: a path is not that of a column.
        BackendUnavailable: pyarrow is not installed.
    """
    return ArrowReader(setup)


def writer(setup: Setup) -> Writer:
    """What writes it.

    Raises:
        BackendUnavailable: pyarrow is not installed.
    """
    return ArrowWriter(setup)


def _library() -> Any:
    try:
        import pyarrow.ipc
    except ImportError as error:
        raise BackendUnavailable(f"Arrow needs a library: pip install 'qinfer[parquet]': {error}") from error
    return pyarrow


class _Bad(Exception):
    """A record that cannot be read, or a column that is no tensor."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class ArrowReader(Reader):
    """Reads tables. Compressed ones are refused: Kafka itself compresses, and their size is only a claim."""

    column = TableColumn
    tabular = True

    def __init__(self, setup: Setup) -> None:
        if any(
            not path.steps or not all(isinstance(step, str) for step in path.steps) for path in setup.paths
        ):
            raise ValueError("tables have columns; expected their names as fields")
        self._arrow = _library()
        self._paths = setup.paths
        self._keep = setup.keep
        self._verbatim = setup.verbatim
        self._max_rows = setup.max_rows or MAX_ROWS

    def read(self, places: Sequence[int], values: Sequence[bytes]) -> Parsed:
        """Take tables apart."""
        columns: dict[str, list[Any]] = {path.text: [] for path in self._paths}
        parsed = Parsed([], columns)
        kept: list[Any] = []
        counts: list[int] = []
        for place, value in zip(places, values, strict=True):
            try:
                table = self._table(value)
                found = {path.text: _column(self._arrow, table, path) for path in self._paths}
                keeps = self._kept(table)
            except _Bad as error:
                parsed.bad[place] = BadRecord(error.reason, str(error))
                continue
            parsed.places.append(place)
            counts.append(table.num_rows)
            kept.append(keeps)
            for text, array in found.items():
                columns[text].append(array)
        parsed.kept = kept if self._keep != "none" else ()
        parsed.counts = counts
        return parsed

    def _table(self, value: bytes) -> pa.Table:
        arrow = self._arrow
        try:
            for message in arrow.ipc.MessageReader.open_stream(value):
                if _is_compressed(message.metadata.to_pybytes()):
                    raise _Bad("malformed", "a compressed Arrow stream; expected one without compression")
            batches = []
            rows = 0
            with arrow.ipc.open_stream(value) as stream:
                for batch in stream:
                    rows += batch.num_rows
                    if rows > self._max_rows:
                        raise _Bad("mapping", f"more than {self._max_rows} rows; expected at most that")
                    batch.validate(full=True)  # offsets that lead out of a buffer are believed otherwise
                    batches.append(batch)
                table = arrow.Table.from_batches(batches, schema=stream.schema).combine_chunks()
        except (arrow.ArrowException, OSError, ValueError, struct.error, IndexError) as error:
            raise _Bad("malformed", f"not an Arrow IPC stream: {error}"[:1000]) from None
        if not table.num_rows:
            raise _Bad("mapping", "a table without rows; expected at least one")
        return table

    def _kept(self, table: pa.Table) -> Any:
        if self._keep == "none":
            return None
        names = [name for name in table.column_names if self._keep == "all" or name in self._keep]
        if self._verbatim:
            return table.select(names)
        return {name: _numpy(self._arrow, _array(table, name), name) for name in names}


def _array(table: pa.Table, name: str) -> pa.Array:
    return table.column(name).combine_chunks()


def _column(arrow: Any, table: pa.Table, path: Path) -> Any:
    """A column as an array whose first dimension is the rows; `MISSING` where there is none."""
    name, *inner = [str(step) for step in path.steps]
    if table.schema.names.count(name) != 1:
        return MISSING
    array = _array(table, name)
    if isinstance(array, arrow.ChunkedArray):
        array = array.combine_chunks() if array.num_chunks != 1 else array.chunk(0)
    for step in inner:
        if not arrow.types.is_struct(array.type) or array.type.get_field_index(step) < 0:
            return MISSING
        array = array.flatten()[array.type.get_field_index(step)]
    return _numpy(arrow, array, path.text)


def _numpy(arrow: Any, array: pa.Array, name: str) -> Array:
    """An Arrow array as one of numpy, with lists as further dimensions.

    Raises:
        _Bad: it has nulls, or lists of different lengths, or is of a type that no tensor has.
    """
    types, kind = arrow.types, array.type
    if array.null_count:
        raise _Bad("mapping", f"column {name!r} has {array.null_count} nulls; expected none")
    if isinstance(array, arrow.FixedShapeTensorArray):
        return np.asarray(array.to_numpy_ndarray())
    if types.is_fixed_size_list(kind):
        return _nested(arrow, array, kind.list_size, name)
    if types.is_list(kind) or types.is_large_list(kind):
        lengths = np.unique(array.value_lengths().to_numpy(zero_copy_only=False))
        if len(lengths) > 1:
            raise _Bad(
                "mapping",
                f"column {name!r} has lists of {lengths[0]} to {lengths[-1]} elements; "
                "expected the same number in each row of a record",
            )
        return _nested(arrow, array, int(lengths[0]) if len(lengths) else 0, name)
    if types.is_dictionary(kind):
        values = _numpy(arrow, array.dictionary, name)
        return np.asarray(values[array.indices.to_numpy(zero_copy_only=False)])
    if types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind):
        return np.asarray(array.to_numpy(zero_copy_only=False))
    if (
        types.is_string(kind)
        or types.is_large_string(kind)
        or types.is_binary(kind)
        or types.is_large_binary(kind)
    ):
        texts = np.empty(len(array), dtype=object)
        texts[:] = array.to_pylist()
        return texts
    raise _Bad(
        "mapping", f"column {name!r} is of type {kind}; expected numbers, truth values, text, or lists"
    )


def _nested(arrow: Any, array: pa.Array, size: int, name: str) -> Array:
    inner = _numpy(arrow, array.flatten(), name)
    return inner.reshape(len(array), size, *inner.shape[1:])


class ArrowWriter(Writer):
    """Writes tables, each with the schema that follows from the fields and what is kept."""

    def __init__(self, setup: Setup) -> None:
        self._arrow = _library()
        self._names = {field.name for field in setup.fields}

    def write(
        self, columns: Sequence[OutputColumn], kept: Sequence[Any], count: int
    ) -> list[bytes | BadRecord]:
        """Make tables."""
        arrays = [column.arrays() for column in columns]
        bad = {place: why for column in columns for place, why in column.bad.items()}
        written: list[bytes | BadRecord] = []
        for place in range(count):
            if place in bad:
                written.append(BadRecord("encode", bad[place]))
                continue
            try:
                found = self._old(kept[place]) if kept else {}
                for column, array in zip(columns, arrays, strict=True):
                    found[column.field.name] = self._new(column.field, array[place])
                written.append(self._stream(found))
            except (self._arrow.ArrowException, ValueError, TypeError) as error:
                written.append(BadRecord("encode", f"the output cannot be written: {error}"[:1000]))
        return written

    def _old(self, kept: Any) -> dict[str, Any]:
        """What is kept, without what outputs take the place of."""
        if isinstance(kept, Mapping):  # tensors with rows, or the fields of a document
            columns = {
                name: _lists(self._arrow, value, value.shape[1:])
                if isinstance(value, np.ndarray)
                else self._arrow.array([value])
                for name, value in kept.items()
            }
        else:
            columns = {name: kept.column(name) for name in kept.column_names}
        return {name: column for name, column in columns.items() if name not in self._names}

    def _new(self, field: OutputField, array: Array) -> Any:
        rows = array if field.batched else array[np.newaxis]
        if field.datatype == "BF16":
            rows = from_bf16(rows)
        if field.datatype == "BYTES" and not field.binary:
            texts = np.empty(rows.shape, dtype=object)
            texts.reshape(-1)[:] = [
                value.decode() if isinstance(value, bytes) else value for value in rows.reshape(-1).tolist()
            ]
            rows = texts
        if field.single:
            return _lists(self._arrow, rows.reshape(len(rows)), ())
        return _lists(self._arrow, rows, field.dims)

    def _stream(self, columns: Mapping[str, Any]) -> bytes:
        table = self._arrow.table(dict(columns))
        sink = self._arrow.BufferOutputStream()
        with self._arrow.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table)
        return bytes(sink.getvalue().to_pybytes())


def _lists(arrow: Any, array: Array, dims: Sequence[int]) -> Any:
    """An array of numpy as one of Arrow: further dimensions as lists, of fixed size where `dims` has one."""
    shape = array.shape
    made = arrow.array(np.ascontiguousarray(array).reshape(-1))
    for depth in range(len(shape) - 1, 0, -1):
        size = shape[depth]
        if size and dims[depth - 1] != -1:
            made = arrow.FixedSizeListArray.from_arrays(made, size)
        else:
            lists = int(np.prod(shape[:depth]))
            offsets = arrow.array(np.arange(lists + 1, dtype=np.int32) * size)
            made = arrow.ListArray.from_arrays(offsets, made)
    return made


def _is_compressed(metadata: bytes) -> bool:
    """Whether the buffers of an IPC message are compressed (`Message.fbs` of Arrow)."""
    message = _root(metadata)
    kind = _slot(metadata, message, 1)
    header = _slot(metadata, message, 2)
    if not kind or not header:
        return False
    table = header + struct.unpack_from("<I", metadata, header)[0]
    if metadata[kind] == 2:  # a dictionary batch holds a record batch
        inner = _slot(metadata, table, 1)
        if not inner:
            return False
        table = inner + struct.unpack_from("<I", metadata, inner)[0]
    elif metadata[kind] != 3:
        return False
    return bool(_slot(metadata, table, 3))


def _root(metadata: bytes) -> int:
    return int(struct.unpack_from("<I", metadata, 0)[0])


def _slot(metadata: bytes, table: int, number: int) -> int:
    """Where a field of a flatbuffers table is; 0 where it has none."""
    vtable = table - struct.unpack_from("<i", metadata, table)[0]
    size = struct.unpack_from("<H", metadata, vtable)[0]
    place = 4 + 2 * number
    offset = struct.unpack_from("<H", metadata, vtable + place)[0] if place < size else 0
    return table + offset if offset else 0
